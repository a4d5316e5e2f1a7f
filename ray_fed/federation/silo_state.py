"""A silo's optimiser state on its own disk: what makes a round that is done twice come out the same.

One file per session, a ring of slots; a slot holds the state after one round. Writing is a copy into mapped memory, so
keeping a state costs what copying it costs, a thousand times a second if need be. The file outlives the process: a
slot's round number is erased before the slot is written and set after it, so a kill at any instant leaves whole slots
only. (A power cut may not: the kernel writes pages in an order of its own.) The state never leaves the silo's machine.

    magic, length of header    16 bytes
    header                     JSON: names, shapes, dtypes, number of slots
    numbers                    int64 [num_slots], 0 for an empty slot
    slots                      [num_slots, slot_bytes]
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ray_fed.errors import DataError, Trouble

MAX_ROUNDS_APART = 12
KEPT_BYTES = 1 << 27

MAGIC = b"rayfedS1"
ALIGN = 64


def rounds_apart(state_bytes: int) -> int:
    """Return how many rounds may lie between two checkpoints of a run, by the size of a silo's state.

    Rounds that take a second each are checkpointed each; short ones together, at most this many.
    """
    return max(1, min(MAX_ROUNDS_APART, KEPT_BYTES // (4 * max(1, state_bytes))))


def num_slots_for(apart: int) -> int:
    """Return how many states a silo keeps so that it still has the one of the checkpoint when a run is resumed.

    The driver may be one checkpoint and a half behind what it has received (2 apart), one batch of records waits for it
    and one is being made (actors/coordinator.py); one more slot is being written, and one is spare.
    """
    return 4 * apart + 2


class SiloState:
    """The states of one session; `folder=""` keeps nothing."""

    def __init__(self, folder: str, silo: str, session: str, num_slots: int):
        self.path = Path(folder) / silo / f"{session}.states" if folder else None
        self.num_slots = num_slots
        self._numbers: np.ndarray | None = None
        self._slots: list[dict[str, np.ndarray]] = []
        self._places: list[tuple[int, int]] = []
        self._reserved: set[int] = set()

    def remember(self, server_round: int, state: Mapping[str, torch.Tensor]) -> None:
        """Keep the state after a round; the oldest one makes room."""
        if self.path is None or not state:
            return
        if self._numbers is None:
            self._open(state)
        assert self._numbers is not None
        # Later rounds are of a run that had come further, or of another one with the same name.
        self._numbers[self._numbers > server_round] = 0
        same = np.flatnonzero(self._numbers == server_round)
        slot = int(same[0]) if len(same) else int(self._numbers.argmin())
        self._numbers[slot] = 0
        self._reserve(slot)
        for name, tensor in state.items():
            np.copyto(self._slots[slot][name], tensor.detach().cpu().numpy())
        self._numbers[slot] = server_round

    def recall(self, server_round: int, state: Mapping[str, torch.Tensor]) -> bool:
        """Fill `state` with what was kept before `server_round`; False when nothing was."""
        if self.path is None or not state or not self.path.exists():
            return False
        if self._numbers is None:
            self._open(state, is_needed=server_round > 1)
        assert self._numbers is not None
        earlier = np.where(self._numbers < server_round, self._numbers, 0)
        slot = int(earlier.argmax())
        if earlier[slot] == 0:
            return False
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(self._slots[slot][name].copy()))
        return True

    def _reserve(self, slot: int) -> None:
        """Ask the disk for the slot's room: a mapped page without room ends the process by a signal. DataError."""
        assert self.path is not None
        if slot in self._reserved or not hasattr(os, "posix_fallocate"):  # macOS has none
            return
        try:
            with self.path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), *self._places[slot])
        except OSError as error:
            silo = self.path.parent.name
            raise DataError(
                f"silo '{silo}': {self.path}: {error.strerror}; make room there", failure=Trouble.NO_ROOM
            ) from error
        self._reserved.add(slot)

    def _open(self, state: Mapping[str, torch.Tensor], is_needed: bool = False) -> None:
        """Map the file; make it, or make it anew where it holds states of another shape. DataError instead where what
        it holds is needed."""
        assert self.path is not None
        arrays = {
            name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in state.items()
        }
        header = json.dumps({"arrays": arrays, "num_slots": self.num_slots}).encode()
        sizes = {name: _aligned(tensor.numel() * tensor.element_size()) for name, tensor in state.items()}
        start = _aligned(16 + len(header))
        first = start + _aligned(8 * self.num_slots)
        size = first + self.num_slots * sum(sizes.values())
        if not self._fits(header, size):
            if is_needed:
                raise DataError(
                    f"silo '{self.path.parent.name}': {self.path} is damaged or of another network; start a new run"
                )
            _make(self.path, header, size)
        memory = np.memmap(self.path, np.uint8, "r+")
        self._numbers = memory[start : start + 8 * self.num_slots].view(np.int64)
        self._slots, self._places, self._reserved = [], [], set()
        for _ in range(self.num_slots):
            self._places.append((first, sum(sizes.values())))
            views = {}
            for name, (shape, dtype) in arrays.items():
                count = int(np.prod(shape)) * np.dtype(dtype).itemsize
                views[name] = memory[first : first + count].view(dtype).reshape(shape)
                first += sizes[name]
            self._slots.append(views)

    def _fits(self, header: bytes, size: int) -> bool:
        assert self.path is not None
        if not self.path.exists() or self.path.stat().st_size != size:
            return False
        with self.path.open("rb") as file:
            return file.read(16 + len(header)) == _opening(header) + header


def _opening(header: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(8, "little")


def _make(path: Path, header: bytes, size: int) -> None:
    """Make the file under another name and move it into place: a file of this name is always a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    with draft.open("wb") as file:
        file.write(_opening(header) + header)
        file.truncate(size)
    draft.chmod(0o600)
    draft.replace(path)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
