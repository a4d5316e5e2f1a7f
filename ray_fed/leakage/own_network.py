"""A user's own torch network under attack: built from MODULE:CLASS, with the weights of a checkpoint."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ray_fed.config import own_class, require
from ray_fed.errors import ConfigError, DataError
from ray_fed.randomness import derived_seed
from ray_fed.reading import open_regular

CONTAINERS = ("state_dict", "model_state_dict", "model", "network")
"""Entries of a checkpoint that hold the weights, where these are not all of it."""


@dataclass(frozen=True)
class OwnNetwork:
    """What makes a network of the user's; a plain value."""

    name: str
    """MODULE:CLASS"""
    checkpoint: str = ""
    """File of weights; empty: those that the class begins with, drawn anew for each message."""
    options: tuple[str, ...] = ()
    """NAME=VALUE of arguments of the class."""
    mode: Literal["eval", "train"] = "eval"
    """Whether BatchNorm takes its stored statistics or those of the batch."""

    def build(self, shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Return the network. ConfigError for a class that is none or wants arguments nobody gives; DataError for a
        checkpoint that does not fit."""
        cls = own_class("model", self.name)
        require(inspect.isclass(cls) and issubclass(cls, nn.Module), f"model={self.name} is no class of torch modules")
        require(not getattr(cls, "graphs", False), f"model={self.name} takes crystals as graphs (GraphRows: atoms and "
                "bonds): these attacks look for one tensor per sample and cannot move atoms from place to place. What "
                "such a network's messages name from a list of suspects: `ray-fed audit RUN`")  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "weights of a target"))
            network = self._made(cls, shape, num_classes)
        if self.checkpoint:
            load_weights(network, Path(self.checkpoint))
        return network.train(self.mode == "train")

    def _made(self, cls: type, shape: tuple[int, ...], num_classes: int) -> nn.Module:
        given = {
            "input_shape": shape, "num_classes": num_classes, "num_outputs": num_classes, "channels": shape[0],
            "in_channels": shape[0], "num_features": int(torch.Size(shape).numel()),
        }  # fmt: skip
        wanted = inspect.signature(cls).parameters
        arguments: dict[str, Any] = {name: value for name, value in given.items() if name in wanted}
        for text in self.options:
            name, equals, value = text.partition("=")
            require(bool(equals), f"model_options={text!r} must be NAME=VALUE")
            require(name in wanted, f"model_options={text!r}: {self.name} takes {', '.join(wanted) or 'no arguments'}")
            arguments[name] = _value(value)
        try:
            return cls(**arguments)
        except Exception as error:  # a user's class raises what it likes
            said = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"model={self.name} cannot be made with {arguments or 'no arguments'}: {said}; give what is missing as "
                "--model-options NAME=VALUE"
            ) from error


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def load_weights(network: nn.Module, path: Path) -> None:
    """Put a checkpoint's weights into a network: .safetensors, or what torch.save wrote, read without pickled code.
    DataError names what does not fit."""
    state = _read(path)
    state = {name.removeprefix("module."): value for name, value in state.items()}  # DataParallel's prefix
    own = network.state_dict()
    missing, more = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or more:
        said = [
            f"{what} {', '.join(names[:3])}" for what, names in (("lacks", missing), ("has besides", more)) if names
        ]
        raise DataError(f"checkpoint={path} does not fit the network: it {'; it '.join(said)}")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise DataError(
                f"checkpoint={path}: {name} is {tuple(value.shape)}, the network's {tuple(own[name].shape)}; were the "
                "network's options others? --model-options NAME=VALUE"
            )
    if any(value.dtype == torch.float64 for value in state.values()):
        network.double()
    network.load_state_dict(dict(state))


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        with open_regular(path) as file:
            if path.suffix == ".safetensors":
                from safetensors.torch import load

                return load(file.read())
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zipfile raise many kinds
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"checkpoint={path} cannot be read as weights: {said}; save network.state_dict() with torch.save, or as "
            ".safetensors"
        ) from error
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise DataError(f"checkpoint={path} holds no weights by name; save network.state_dict()")
    return content
