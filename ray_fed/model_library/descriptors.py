"""Descriptors of a library by name, for formulas, structures and molecules.

    name              from         columns
    guo65, guo73      composition  65; and the cell: 73                   (ray_fed.materials.features)
    rich              composition  240
    xenon290          composition  58 x 5, from the CSV of element properties you name (XenonPy's elements_completed)
    rdf               structure    201, to 20 Å, on XenonPy's grid
    morgan, features, atom_pairs, torsions, paths, maccs      SMILES      2,048 bits (maccs 167); need RDKit (an extra)

The compositional ones also read molecules: RDKit gives the formula of a SMILES text. The radial distribution function:

g(r) = N(r, r + dr) / (4 pi r² dr rho)      N: mean number of neighbours of an atom between r and r + dr
                                            rho: atoms per Å³
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.config import unknown_name
from ray_fed.errors import ConfigError, DataError
from ray_fed.materials.features.featurizers import CrystalFeaturizer, make_featurizer
from ray_fed.materials.lattices import images_within, vectors_of_cells

CUTOFF, STEP = 20.0, 0.1
GRID = np.round(np.arange(0.0, CUTOFF + STEP / 2, STEP), 10)
"""Left edges of 201 shells, Å."""
MAX_SITES = 200
"""Larger cells have a reason instead of a descriptor: N² distances to 20 Å."""


def radial_distributions(frame: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Return g(r), float64 [rows, 201], and a reason per row.

    The table has a, b, c [Å], alpha, beta, gamma [degrees], `numbers` and flat `frac_coords` per row.
    """
    cells = frame[["a", "b", "c", "alpha", "beta", "gamma"]].to_numpy(float)
    vectors = vectors_of_cells(cells)
    values = np.full((len(frame), len(GRID)), np.nan)
    reasons = [""] * len(frame)
    for row, coordinates in enumerate(frame["frac_coords"]):
        fractional = np.asarray(coordinates, float).reshape(-1, 3)
        if not 0 < len(fractional) <= MAX_SITES:
            reasons[row] = f"{len(fractional)} atoms in the cell; the rdf takes 1 to {MAX_SITES}"
        else:
            values[row] = radial_distribution(vectors[row], fractional)
    return values, reasons


def radial_distribution(vectors: np.ndarray, fractional: np.ndarray) -> np.ndarray:
    """Return g(r) [201] of one crystal: lattice vectors [3, 3] in Å as rows, sites [atoms, 3]."""
    edges = np.append(GRID, GRID[-1] + STEP)
    counts = np.zeros(len(GRID))
    images = images_within(vectors, edges[-1]) @ vectors
    for site in fractional:
        apart = (fractional - site) @ vectors
        distances = np.linalg.norm(apart[:, None, :] + images[None, :, :], axis=2)
        counts += np.histogram(distances[distances > 1e-8], edges)[0]
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    density = len(fractional) / abs(np.linalg.det(vectors))
    return counts / len(fractional) / (shells * density)


NUM_BITS = 2048
FINGERPRINTS = ("morgan", "features", "atom_pairs", "torsions", "paths", "maccs")
COMPOSITIONAL = ("guo65", "guo73", "rich", "rich+structure", "xenon290")
NAMES = (*COMPOSITIONAL, "rdf", *FINGERPRINTS)


class Descriptor(ABC):
    """Turns a table of materials into numbers; equal `fingerprint`s give equal numbers."""

    name: str

    @abstractmethod
    def transform(self, frame: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
        """Return float64 [rows, features] and a reason per row, "" where it was read."""

    @abstractmethod
    def feature_names(self) -> tuple[str, ...]:
        """Return the names of the columns."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return sha256 over everything the numbers depend on."""

    @property
    @abstractmethod
    def column(self) -> str:
        """Return the column it reads: "formula", "smiles" or "numbers" (structures)."""

    def reads(self, frame: pd.DataFrame) -> bool:
        """Whether the table has what this descriptor needs."""
        return self.column in frame

    def on_card(self) -> dict[str, Any]:
        """Return the facts about the descriptor for a model card."""
        return {"name": self.name, "table_hash": self.fingerprint(), "options": {}}


@dataclass(frozen=True)
class Compositional(Descriptor):
    """Statistics of element properties."""

    name: str
    featurizer: CrystalFeaturizer

    @property
    def column(self) -> str:
        return "a" if self.featurizer.needs_structure else "formula"

    def reads(self, frame: pd.DataFrame) -> bool:
        return self.column in frame or (self.column == "formula" and "smiles" in frame)

    def transform(self, frame: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
        if "formula" not in frame and "smiles" in frame:
            frame = frame.assign(formula=formulas_of_smiles(frame["smiles"].tolist()))
        return self.featurizer.transform_with_reasons(frame)

    def feature_names(self) -> tuple[str, ...]:
        return tuple(map(str, self.featurizer.get_feature_names_out()))

    def fingerprint(self) -> str:
        return self.featurizer.fingerprint()

    def on_card(self) -> dict[str, Any]:
        options = {key: value for key, value in self.featurizer.get_params().items() if key != "table"}
        return {**super().on_card(), "options": options}


@dataclass(frozen=True)
class RadialDistribution(Descriptor):
    """Radial distribution function of a crystal (XenonPy's grid: 201 points to 20 Å)."""

    name: str = "rdf"
    column = "numbers"  # pyright: ignore[reportAssignmentType]

    def transform(self, frame: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
        return radial_distributions(frame)

    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"rdf {radius:.1f}" for radius in GRID)

    def fingerprint(self) -> str:
        return hashlib.sha256(b"rdf 1" + GRID.tobytes()).hexdigest()


@dataclass(frozen=True)
class Fingerprint(Descriptor):
    """Bits of a molecule, from RDKit."""

    name: str
    column = "smiles"  # pyright: ignore[reportAssignmentType]

    def transform(self, frame: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
        generate = _bit_generator(self.name)
        bits = np.full((len(frame), self._width), np.nan)
        reasons = [""] * len(frame)
        for row, smiles in enumerate(frame["smiles"]):
            molecule = _molecule(smiles)
            if molecule is None:
                reasons[row] = f"cannot read SMILES {str(smiles)!r}"
            else:
                bits[row] = generate(molecule)
        return bits, reasons

    @property
    def _width(self) -> int:
        return 167 if self.name == "maccs" else NUM_BITS

    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name} {bit}" for bit in range(self._width))

    def fingerprint(self) -> str:
        # Bits may change between releases of RDKit: models of another one must not be fed.
        return hashlib.sha256(f"{self.name} {self._width} rdkit {_rdkit().__version__}".encode()).hexdigest()


def make_descriptor(name: str, element_table: str | Path | None = None) -> Descriptor:
    """Return a descriptor by name; ConfigError for an unknown one, or one whose extra or table is missing."""
    if name in FINGERPRINTS:
        _rdkit()
        return Fingerprint(name)
    if name == "rdf":
        return RadialDistribution()
    if name == "xenon290":
        if element_table is None:
            raise ConfigError("descriptor 'xenon290' needs a table of element properties: give --element-table FILE")
        return Compositional(name, make_featurizer("rich", table=str(element_table)))
    if name not in COMPOSITIONAL:
        raise unknown_name("descriptor", name, NAMES)
    return Compositional(name, make_featurizer(name))


def check_fingerprint(descriptor: Descriptor, card_descriptor: Mapping[str, Any], model: str) -> None:
    """Raise DataError when a model was trained on other features than this descriptor gives."""
    expected = str(card_descriptor.get("table_hash"))
    if descriptor.fingerprint() != expected:
        raise DataError(
            f"model {model[:12]}: descriptor table hash is {descriptor.fingerprint()[:12]} here, "
            f"{expected[:12]} on its card; use the ray-fed version and element table it was trained with"
        )


def formulas_of_smiles(smiles: Sequence[str]) -> list[str | None]:
    """Return the formula of each SMILES text, None where RDKit cannot read it; open ends (*) are no atoms."""
    _rdkit()
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula  # pyright: ignore[reportMissingImports]

    molecules = [_molecule(text) for text in smiles]
    # CalcMolFormula writes dummy atoms as "*" or "*2" and a charge at the end.
    return [
        None if molecule is None else re.sub(r"\*\d*|[+-]\d*$", "", CalcMolFormula(molecule)) for molecule in molecules
    ]


def _molecule(smiles: object) -> Any:
    from rdkit import Chem, RDLogger  # pyright: ignore[reportMissingImports]

    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    return Chem.MolFromSmiles(smiles) if isinstance(smiles, str) and smiles.strip() else None


def _bit_generator(name: str) -> Callable[[Any], np.ndarray]:
    from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors  # pyright: ignore[reportMissingImports]

    if name == "maccs":
        return lambda molecule: (
            np.frombuffer(rdMolDescriptors.GetMACCSKeysFingerprint(molecule).ToBitString().encode(), "u1") - 48
        )
    makers = {
        "morgan": lambda: rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=NUM_BITS),
        "features": lambda: rdFingerprintGenerator.GetMorganGenerator(
            radius=2, fpSize=NUM_BITS, atomInvariantsGenerator=rdFingerprintGenerator.GetMorganFeatureAtomInvGen()
        ),
        "atom_pairs": lambda: rdFingerprintGenerator.GetAtomPairGenerator(fpSize=NUM_BITS),
        "torsions": lambda: rdFingerprintGenerator.GetTopologicalTorsionGenerator(fpSize=NUM_BITS),
        "paths": lambda: rdFingerprintGenerator.GetRDKitFPGenerator(fpSize=NUM_BITS),
    }
    return makers[name]().GetFingerprintAsNumPy


def _rdkit() -> Any:
    try:
        import rdkit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("descriptors of molecules need RDKit: pip install 'ray-fed[molecules]'") from error
    return rdkit
