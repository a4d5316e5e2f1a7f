"""A command with an end: `python -m tests.limited SECONDS COMMAND...` returns its exit status, or 124 after SECONDS.

What the command leaves running is named and killed: nobody who reads its output waits for a forgotten process.
At the limit the command gets SIGTERM and a minute to say what it was doing. Prints the processor seconds of everything
that has run. The processes are found by their descent, so on Linux only; elsewhere the command runs without this.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
LAST_WORDS_SECONDS = 60.0
LEFT_SECONDS = 3.0
"""What ends with its parent is given so long to do it."""


def run(seconds: float, command: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process
    process = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: process.terminate())
    try:
        status = _waited(process, seconds)
    finally:
        _end_descendants()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:.0f} s of processors", flush=True)
    return status


def _waited(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        try:
            if time.monotonic() < deadline:
                process.wait(min(1.0, deadline - time.monotonic()))
                continue
            print(f"no end after {seconds:.0f} s; running:", *_named(descendants()), sep="\n  ", flush=True)
            process.terminate()
            process.wait(LAST_WORDS_SECONDS)
            return 124
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline + LAST_WORDS_SECONDS:
                process.kill()
                process.wait()
                return 124
        except KeyboardInterrupt:  # the command has heard Ctrl-C, too
            continue
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end_descendants() -> None:
    deadline = time.monotonic() + LEFT_SECONDS
    while (left := descendants()) and time.monotonic() < deadline:
        _reap()
        time.sleep(0.05)
    if left:
        print("left running, and killed:", *_named(left), sep="\n  ", flush=True)
    while left := descendants():
        for number in left:
            _kill(number)
        _reap()
        time.sleep(0.05)
    _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _kill(number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)


def descendants() -> list[int]:
    """Return the numbers of the processes below this one that run."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            parents[int(folder.name)] = int(parent)
    return [number for number in parents if number != os.getpid() and _is_below(number, parents)]


def _is_below(number: int, parents: dict[int, int]) -> bool:
    while number in parents:
        number = parents[number]
        if number == os.getpid():
            return True
    return False


def _named(numbers: list[int]) -> list[str]:
    named = []
    for number in numbers:
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        named.append(f"{number}  {words[:150]}")
    return named


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit(subprocess.call(sys.argv[2:]))
    sys.exit(run(float(sys.argv[1]), sys.argv[2:]))
