"""Whether the head of a cluster still answers: Ray ends a driver whose head is gone, before the driver can say so."""

import _thread
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

PATIENCE_SECONDS = 45.0
"""Ray 2.60 ends a driver 60 s after its head went silent; a head that comes back sooner goes on with its own state."""
LOOK_EVERY_SECONDS = 3.0


class HeadWatch(threading.Thread):
    """Looks at the head's port; when it has been closed for too long, says so and interrupts the main thread, which
    writes down what it has."""

    def __init__(
        self,
        address: str,
        patience: float = PATIENCE_SECONDS,
        every: float = LOOK_EVERY_SECONDS,
        interrupt: Callable[[], None] = _thread.interrupt_main,
    ):
        super().__init__(name="head watch", daemon=True)
        host, _, port = address.rpartition(":")
        self.address, self.place = address, (host.strip("[]"), int(port))
        self.patience, self.every, self.interrupt = patience, every, interrupt
        self.is_lost, self._ended = False, threading.Event()

    def run(self) -> None:
        answered = time.monotonic()
        while not self._ended.wait(self.every):
            if self._answers():
                answered = time.monotonic()
            elif time.monotonic() - answered >= self.patience:
                self.is_lost = True
                print(
                    f"the head of the Ray cluster at {self.address} has not answered for {self.patience:g} s; this run "
                    "ends here, and what was written of it can be gone on with once the head is back",
                    file=sys.stderr,
                    flush=True,
                )
                self.interrupt()
                return

    def end(self) -> None:
        self._ended.set()

    def _answers(self) -> bool:
        try:
            socket.create_connection(self.place, timeout=self.every).close()
        except OSError:
            return False
        return True


@contextlib.contextmanager
def watched_head(address: str) -> Iterator[HeadWatch]:
    """Watch a head for the duration of a block. address: HOST:PORT of its cluster state (GCS)."""
    watch = HeadWatch(address)
    watch.start()
    try:
        yield watch
    finally:
        watch.end()
