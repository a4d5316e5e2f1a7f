"""What a Flower client keeps in `context.state`, on its silo's own disk: one file, the states after its last messages.

A message that is asked again, because who asked was killed before the answer was written down, begins from the state
before it: the same question has the same answer. The state never leaves the silo's machine.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ray_fed.errors import DataError, Trouble
from ray_fed.flower.package import flower
from ray_fed.flower.records import content_of, record_dict_of
from ray_fed.reporting.writing import write_atomically

KEPT = 8
"""States of this many messages that changed it."""


class ClientStates:
    """Of one silo in one run; `folder=""` keeps them in memory only."""

    def __init__(self, folder: str, silo: str):
        self.path = Path(folder) / silo / "flower-state.npz" if folder else None
        self.silo = silo
        self.states: dict[int, np.ndarray] = self._read()
        """Number of a message -> bytes of the state after it."""

    def before(self, number: int) -> Any:
        """Return a RecordDict: the state before a message, empty before the first that wrote something. DataError where
        it is no longer kept."""
        earlier = [known for known in self.states if known < number]
        if not earlier and len(self.states) == KEPT:
            what = f"silo '{self.silo}': its client's state before message {number} is no longer kept; start a new run"
            raise DataError(what, failure=Trouble.FILE_MISSING)
        return record_dict_of(self.states[max(earlier)]) if earlier else flower("app").RecordDict()

    def remember(self, number: int, state: Any) -> None:
        """Keep the state after a message, where it changed."""
        earlier = [known for known in self.states if known < number]
        content, old = content_of(state), self.states[max(earlier)] if earlier else np.zeros(0, np.uint8)
        later = [known for known in self.states if known >= number]  # of a run that had come further
        if np.array_equal(content, old) and not later:
            return
        kept = sorted(earlier)[-(KEPT - 1) :]
        self.states = {known: self.states[known] for known in kept} | {number: content}
        self._write()

    def _read(self) -> dict[int, np.ndarray]:
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as found:
                return {int(name): found[name] for name in found.files}
        except (OSError, ValueError) as error:
            what = f"silo '{self.silo}': {self.path} is damaged; start a new run"
            raise DataError(what, failure=Trouble.FILE_DAMAGED) from error

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        buffer = io.BytesIO()
        np.savez(buffer, **{str(number): content for number, content in self.states.items()})  # type: ignore[arg-type]
        write_atomically(self.path, buffer.getvalue())
