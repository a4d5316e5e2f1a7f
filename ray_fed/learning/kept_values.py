"""What a silo keeps between rounds in a form that only its trainer knows: an optimiser's state, a loop's memory.

One file per round beside the ring of `silo_state.py`, written whole and then named: a kill at any instant leaves whole
files only. Values are tensors and plain Python; nothing is pickled.

    safetensors file: tensors "0", "1", ...; its metadata say where each stands among the plain values
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load, save

from ray_fed.errors import DataError, SiloFailed, Trouble

PLAIN = (bool, int, float, str, type(None))


@runtime_checkable
class KeepsValues(Protocol):
    """A trainer with something to keep besides `local_state`."""

    def kept(self) -> dict[str, Any]:
        """Return what stays with the silo between rounds; {} where there is nothing."""
        ...

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` returned."""
        ...


class KeptValues:
    """The values of one session after each of its last rounds; `folder=""` keeps nothing."""

    def __init__(self, folder: str, silo: str, session: str, num_kept: int):
        self.folder = Path(folder) / silo / f"{session}.kept" if folder else None
        self.silo, self.num_kept = silo, num_kept

    def remember(self, server_round: int, values: Mapping[str, Any]) -> None:
        """Keep the values after a round; the oldest make room. DataError where the disk has none."""
        if self.folder is None or not values:
            return
        content = encoded(values, self.silo)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self.folder / f".{server_round}.{os.getpid()}.part"
        try:
            draft.write_bytes(content)
        except OSError as error:
            draft.unlink(missing_ok=True)
            said = f"silo '{self.silo}': {draft.parent}: {error.strerror}; make room there"
            raise DataError(said, failure=Trouble.NO_ROOM) from error
        draft.replace(self.folder / str(server_round))
        rounds = sorted(self._rounds())
        # Later rounds are of a run that had come further, or of another one with the same name.
        for other in (*rounds[: -self.num_kept], *(one for one in rounds if one > server_round)):
            (self.folder / str(other)).unlink(missing_ok=True)

    def recall(self, server_round: int) -> dict[str, Any] | None:
        """Return what was kept last before `server_round`; None when nothing was. DataError where it is damaged."""
        earlier = [one for one in self._rounds() if one < server_round]
        if self.folder is None or not earlier:
            return None
        path = self.folder / str(max(earlier))
        try:
            return decoded(path.read_bytes())
        except (ValueError, KeyError, OSError) as error:
            raise DataError(f"silo '{self.silo}': {path} is damaged; start a new run") from error

    def _rounds(self) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        return [int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()]


def encoded(values: Mapping[str, Any], silo: str) -> bytes:
    """Return tensors, arrays and plain values, in tuples, lists and dictionaries, as bytes. SiloFailed names what is
    none of these."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _packed(dict(values), "", tensors, silo)
    return save(tensors, {"values": json.dumps(tree)})


def decoded(content: bytes) -> dict[str, Any]:
    """Return what `encoded` was given. ValueError or KeyError for other bytes."""
    try:
        tensors = load(content)
    except Exception as error:  # safetensors has an error class of its own, which is no ValueError
        raise ValueError(str(error)) from error
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return _unpacked(json.loads(header["__metadata__"]["values"]), tensors)


def _packed(value: Any, place: str, tensors: dict[str, torch.Tensor], silo: str) -> Any:
    """Return a JSON value; tensors are put aside."""

    def inside(one: Any, name: object) -> Any:
        return _packed(one, f"{place}[{name!r}]", tensors, silo)

    if isinstance(value, torch.Tensor):
        return ["tensor", _put(value.detach().cpu(), tensors)]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return ["array", _put(torch.from_numpy(np.array(value)), tensors), isinstance(value, np.generic)]
    if isinstance(value, Mapping):
        keys = [inside(key, "a key") for key in value]
        return ["dict", keys, [inside(one, key) for key, one in value.items()]]
    if isinstance(value, tuple | list):
        return [type(value).__name__, [inside(one, at) for at, one in enumerate(value)]]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if type(value) in PLAIN:
        return ["float", value.hex()] if type(value) is float else ["value", value]
    kinds = "keep tensors, arrays, numbers, texts, and lists, tuples and dictionaries of them"
    raise SiloFailed(silo, "keeping its state", f"state{place} is a {type(value).__name__}; {kinds}")


def _put(tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> str:
    tensors[str(len(tensors))] = tensor.clone(memory_format=torch.contiguous_format)
    return str(len(tensors) - 1)


def _unpacked(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    kind, what, *more = tree
    if kind == "tensor":
        return tensors[what]
    if kind == "array":
        array = tensors[what].numpy()
        return array[()] if more[0] else array
    if kind == "dict":
        values = (_unpacked(one, tensors) for one in more[0])
        return dict(zip((_unpacked(key, tensors) for key in what), values, strict=True))
    return _SIMPLE[kind](what) if kind in _SIMPLE else _SEQUENCES[kind](_unpacked(one, tensors) for one in what)


_SIMPLE: Mapping[str, Callable[[Any], Any]] = {"value": lambda v: v, "float": float.fromhex, "bytes": bytes.fromhex}
_SEQUENCES: Mapping[str, Callable[[Any], Any]] = {"tuple": tuple, "list": list}
