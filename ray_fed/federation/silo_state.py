"""A silo's optimiser state on its own disk: what makes a round that is done twice come out the same.

One file per round and session, the last few kept; safetensors, written to a temporary name and moved into place, so a
kill at any instant leaves whole files only. The state never leaves the silo's machine.
"""

import os
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save

KEPT_ROUNDS = 5
"""The coordinator runs at most two rounds ahead of the checkpoint (actors/coordinator.py); the rest is for safety."""


class SiloState:
    """The files of one session; `folder=""` keeps nothing."""

    def __init__(self, folder: str, silo: str, session: str):
        self.folder = Path(folder) / silo / session if folder else None

    def remember(self, server_round: int, state: dict[str, torch.Tensor]) -> None:
        """Keep the state after a round; forget the oldest ones."""
        if self.folder is None or not state:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(server_round)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(save({name: np.atleast_1d(tensor.cpu().numpy()) for name, tensor in state.items()}))
        temporary.replace(path)
        numbers = self._rounds()
        up_to_now = [number for number in numbers if number <= server_round]
        # Later files are of a run that had come further, or of another one with the same name.
        for number in set(numbers) - set(up_to_now[-KEPT_ROUNDS:]):
            self._path(number).unlink(missing_ok=True)

    def recall(self, server_round: int, state: dict[str, torch.Tensor]) -> bool:
        """Fill `state` with what was kept before `server_round`; False when nothing was."""
        earlier = [number for number in self._rounds() if number < server_round]
        if not earlier or not state:
            return False
        kept = load_file(self._path(earlier[-1]))
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(kept[name]).reshape(tensor.shape))
        return True

    def _path(self, server_round: int) -> Path:
        assert self.folder is not None
        return self.folder / f"round-{server_round}.safetensors"

    def _rounds(self) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        found = (re.fullmatch(r"round-(\d+)\.safetensors", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)
