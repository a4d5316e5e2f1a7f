"""Where something of a silo's records could have gone: the wire, other hosts' disks, Ray's object store and logs."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.lab.hosts import Host, Lab

OWN_PLACES = {"north": ("/srv/", "/root/.cache/"), "south": ("/srv/", "/root/.cache/")}
"""What belongs to a site itself: its data, its silo's states and own log, its cache of features."""


@contextmanager
def captured(lab: Lab, path: Path) -> Iterator[None]:
    """Take every frame between the hosts for the duration of the block; AssertionError when one was lost."""
    inside = ["nsenter", "--target", str(lab.desk.init), "--net"]
    command = [*inside, sys.executable, str(Path(__file__).with_name("capture.py")), str(path), *lab.ports.values()]
    taking = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert taking.stdout is not None
    assert taking.stdout.readline() == "listening\n"
    try:
        yield
    finally:
        said, _ = taking.communicate("", timeout=60)
    num_frames, num_lost = map(int, said.split())
    assert num_frames > 0
    assert num_lost == 0, f"{num_lost} of {num_frames} frames were not taken"


def object_store(host: Host) -> bytes:
    """Return the shared memory of the host's raylet: everything that lies in its object store, freed objects too."""
    content = b""
    for number in host.processes("raylet/raylet"):
        for link in host.path(f"/proc/{number}/fd").iterdir():
            if re.match(r"/dev/shm/", str(_target(link))):
                content += link.read_bytes()
    return content


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed meanwhile
        return ""


def disk(host: Host) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of all files a host keeps itself: Ray's sessions and logs, home, runs, shared memory."""
    for top in ("/tmp", "/root", "/srv", "/home", "/dev/shm"):
        device = host.path(top).stat().st_dev
        for folder, below, names in os.walk(host.path(top)):
            # Other devices are those of our code, which hosts share.
            below[:] = [name for name in below if (Path(folder) / name).stat().st_dev == device]
            for path in (Path(folder) / name for name in names):
                with contextlib.suppress(FileNotFoundError):  # Ray's passing files
                    if path.is_file() and not path.is_symlink():
                        yield f"/{path.relative_to(host.path('/'))}", path.read_bytes()


def places_outside(lab: Lab, site: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of all places on the hosts where nothing of a site's records may be found."""
    for host in lab.hosts.values():
        yield f"object store of {host.name}", object_store(host)
        for path, content in disk(host):
            if host.name != site or not path.startswith(OWN_PLACES[site]):
                yield f"{host.name}:{path}", content


def windows(model: Path, length: int = 64) -> list[bytes]:
    """Return some runs of bytes of a model's largest tensor, to look for where parameters must have gone."""
    largest = max(load_file(model).values(), key=lambda tensor: tensor.size)
    content = np.ascontiguousarray(largest).tobytes()
    return [content[start : start + length] for start in range(0, len(content) - length, len(content) // 10)]
