"""A pretrained universal potential as the start: CHGNet (Deng et al., Nat. Mach. Intell. 5 (2023) 1031).

`pip install 'ray-fed[chgnet]'`; the package holds the weights (412,525 parameters, modified BSD licence). They were
trained on energies, forces, stresses and moments of relaxations in the Materials Project (GGA, GGA+U), so crystals of
that database are no fair test of it.

    y = gain * mean over atoms of head(state of the atom) + bias + sum over elements of share * reference

The states after the last convolution never change where the trunk is frozen: they are made once for each crystal and
kept by content, and only head, gain, bias and references are trained and travel.
"""

import contextlib
import copy
import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ray_fed.config import from_mapping, require
from ray_fed.errors import ConfigError, DataError
from ray_fed.materials.crystal import CrystalSites
from ray_fed.materials.graphs.graph_rows import GraphRows, mean_of_crystals, picked
from ray_fed.materials.graphs.neighbours import MOST_SITES, require_whole_atoms

WEIGHTS = "0.3.0"
STATE = 64
"""Numbers of an atom's state."""
LARGEST_ELEMENT = 94
NUM_REFERENCES = 119
"""By atomic number."""


@dataclass(frozen=True)
class ChgnetSettings:
    """What of the potential is trained. ConfigError names what is wrong."""

    train: Literal["head", "all"] = "head"
    """head: its last layers; the states of atoms are made once. all: every layer."""
    references: Literal["shared", "own", "none"] = "shared"
    """Energies of elements, by which databases of different functionals differ, begin from a fit in each silo. shared:
    they travel, and are averaged, with the rest; own: they stay in the silo; none: there are none."""


def chgnet_settings(options: Sequence[str]) -> ChgnetSettings:
    """Return the settings that options NAME=VALUE make."""
    pairs = {name: value for name, _, value in (text.partition("=") for text in options)}
    return from_mapping(ChgnetSettings, pairs, "model_options")


@lru_cache(maxsize=1)
def pretrained() -> Any:
    """Return the potential without its own energies of elements; it must not be changed. ConfigError says how to
    install it."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of its package for GPUs, which is an old one
            from chgnet.model.model import CHGNet  # pyright: ignore[reportMissingImports]

            found = CHGNet.load(model_name=WEIGHTS, use_device="cpu", verbose=False)
    except ImportError as error:
        remedy = "run `pip install 'ray-fed[chgnet]'`, or use --model crystal_graph"
        raise ConfigError(f"model=chgnet: the package chgnet is not installed ({error}); {remedy}") from error
    found.composition_model = None
    return found.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def weights_digest() -> str:
    """Return a hash of the pretrained weights, 16 digits: silos with others make other states."""
    state = pretrained().state_dict()
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    return digest.hexdigest()[:16]


class ChgnetHead(nn.Module):
    """The last layers, on states: GraphRows of n crystals to [n, outputs]."""

    def __init__(self, num_outputs: int, has_references: bool):
        super().__init__()
        potential = pretrained()
        self.norm, self.layers = copy.deepcopy(potential.readout_norm), copy.deepcopy(potential.mlp.layers)
        if num_outputs != 1:
            self.layers[-1] = nn.Linear(STATE, num_outputs)
        self.requires_grad_(True)
        _add_line(self, num_outputs, has_references)

    def forward(self, rows: GraphRows) -> torch.Tensor:
        assert rows.states is not None
        return _on_line(self, mean_of_crystals(self.layers(self.norm(rows.states)), rows), rows)


class WholeChgnet(nn.Module):
    """The whole potential, on its own graphs."""

    def __init__(self, num_outputs: int, has_references: bool):
        super().__init__()
        require(num_outputs == 1, "model_options: train=all learns one number; use train=head")
        self.potential = copy.deepcopy(pretrained()).requires_grad_(True)
        _add_line(self, num_outputs, has_references)

    def forward(self, rows: GraphRows) -> torch.Tensor:
        if not len(rows):
            return torch.zeros(0, 1)
        return _on_line(self, self.potential(list(rows.crystals), task="e")["e"][:, None], rows)


def _add_line(module: nn.Module, num_outputs: int, has_references: bool) -> None:
    module.gain, module.bias = nn.Parameter(torch.ones(num_outputs)), nn.Parameter(torch.zeros(num_outputs))
    if has_references:
        module.reference = nn.Parameter(torch.zeros(NUM_REFERENCES, num_outputs))


def _on_line(module: Any, energies: torch.Tensor, rows: GraphRows) -> torch.Tensor:
    found = module.gain * energies + module.bias
    if not hasattr(module, "reference"):
        return found
    return found + mean_of_crystals(picked(module.reference, rows.numbers), rows)


def chgnet_network(settings: ChgnetSettings, num_outputs: int) -> nn.Module:
    """Return the network that is trained, with pretrained weights."""
    kind = ChgnetHead if settings.train == "head" else WholeChgnet
    return kind(num_outputs, settings.references != "none")


# ---- crystals as it takes them


def crystal_graph_of(sites: CrystalSites) -> Any:
    """Return the potential's own graph of a crystal. DataError where it makes none."""
    require_whole_atoms(sites, MOST_SITES)
    if sites.numbers.max() > LARGEST_ELEMENT:
        raise DataError(f"chgnet knows the elements up to '{LARGEST_ELEMENT}'; there is '{sites.numbers.max()}'")
    structure = _structure_class()(sites.vectors, sites.numbers.tolist(), sites.positions % 1.0)
    try:
        graph = pretrained().graph_converter(structure)
    except ValueError as error:
        raise DataError("an atom has no other within 6 Å, and chgnet makes no graph of it") from error
    except RuntimeError as error:
        raise DataError("chgnet makes no graph of it") from error
    graph.atom_frac_coord.requires_grad_(False)
    graph.lattice.requires_grad_(False)
    return graph


@lru_cache(maxsize=1)
def _structure_class() -> Any:
    from pymatgen.core import Structure

    class Unwritten(Structure):
        """Where the converter fails, it writes the crystal into the current folder; a row must not end there."""

        def to(self, *_: Any, **__: Any) -> str:
            return ""

    return Unwritten


def states_of(graph: Any) -> np.ndarray:
    """Return the states of a crystal's atoms after the last convolution, float32 [atoms, STATE]; of one crystal at a
    time, so that they do not depend on others."""
    kept: list[torch.Tensor] = []
    potential = pretrained()
    hook = potential.atom_conv_layers[-1].register_forward_hook(lambda _module, _given, found: kept.append(found))
    try:
        with torch.no_grad():
            potential([graph], task="e")
    finally:
        hook.remove()
    return kept[0].numpy()
