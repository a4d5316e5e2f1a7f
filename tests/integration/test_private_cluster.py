"""What a private cluster consists of, seen from outside; it lives in a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import PATIENCE, start

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, os, sys
from pathlib import Path
from actors import forking
from actors.session import session

forking.start("os:getpid")
with session("local"):
    import ray

    @ray.remote
    def parent():
        return Path(f"/proc/{os.getppid()}/cmdline").read_text().split(chr(0))

    print(json.dumps({"parent": ray.get(parent.remote())}), flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_are_forked_programs_without_use_wait_and_nothing_is_left_behind():
    process = start("-c", SCRIPT, folder=REPOSITORY, stdin=subprocess.PIPE, stderr=None)
    try:
        parent = json.loads(process.stdout.readline())["parent"]
        assert parent[1:3] == ["-m", "actors.fork_server"]
        assert parent[4] == "os:getpid"
        launched = [words for words in command_lines(process.pid) if "/ray-fed-fork-" in " ".join(words[:3])]
        waiting = {Path(word).name for words in launched for word in words[3:5]} & {"monitor.py", "log_monitor.py"}
        assert waiting == {"monitor.py", "log_monitor.py"}
        started = [number for number, _ in descendants(process.pid)]
        assert len(started) > 4
    finally:
        process.communicate("", timeout=PATIENCE)
    limit = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{number}").exists() for number in started):
        assert time.monotonic() < limit, [Path(f"/proc/{n}/cmdline").read_text() for n in started]
        time.sleep(0.1)


def command_lines(root: int) -> list[list[str]]:
    return [words for _, words in descendants(root)]


def descendants(root: int) -> list[tuple[int, list[str]]]:
    """Return number and command line of every process below one."""
    found = []
    for folder in Path(f"/proc/{root}/task").glob("*"):
        for child in (folder / "children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            found += [(int(child), words), *descendants(int(child))]
    return found
