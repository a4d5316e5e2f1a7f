"""Does a prediction depend on how a crystal is written down, and what does it cost that it does not?

    python benchmarks/structures.py [--shared ../shared] [--rows 900] [--crystals 200] [--settings 20]

Rows of Materials Project (mp_structures in ../shared/datasets), two thirds to train on, the others held out by formula.
The same network with `rich+structure`, 60 epochs, once with cells as given and once with standard ones; then crystals
that were held out, each written in other ways: supercells of up to four copies, other origins, axes, orders of the
sites, orientations. One core; times are of the process.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Element, Structure

from ray_fed.errors import DataError
from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.materials.crystal import Crystal
from ray_fed.materials.features.featurizers import make_featurizer
from ray_fed.materials.finder_words import quiet_finders
from ray_fed.materials.lattices import CELL_COLUMNS, cells_of_vectors, vectors_of_cells
from ray_fed.materials.partitions import hash_split
from ray_fed.materials.standard_cells import standard_cell
from ray_fed.materials.structures import crystal_of_lists, parse_structure
from ray_fed.materials.symmetry import Finder, space_groups

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests`: other packages install one, too
from tests.crystal_settings import rewritten

FEATURES, EPOCHS, BATCH, MAX_SITES = "rich+structure", 60, 200, 40
CONVENTIONS = ("given", "standard")


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    frame = pd.read_parquet(options.shared / "datasets/mp_structures/mp_structures.parquet")
    frame = frame.query(f"n_sites <= {MAX_SITES}").sample(options.rows, random_state=0).reset_index(drop=True)
    names = ("numpy", "spglib", "moyopy", "pymatgen-core", "torch")
    print(", ".join(f"{name} {version(name)}" for name in names), f"Python {platform.python_version()}", sep=", ")
    crystals = _crystals(frame)
    _print_costs(frame, crystals)
    _print_spread(frame, crystals, options.crystals, options.settings)
    return 0


def _crystals(frame: pd.DataFrame) -> list[Crystal]:
    vectors = vectors_of_cells(frame[list(CELL_COLUMNS)].to_numpy(np.float64))
    return [crystal_of_lists(*row) for row in zip(vectors, frame["numbers"], frame["frac_coords"], strict=True)]


# ---- what it costs


def _print_costs(frame: pd.DataFrame, crystals: Sequence[Crystal], count: int = 300) -> None:
    rows = zip(frame["numbers"][:count], frame["frac_coords"][:count], crystals, strict=False)
    texts = [
        Structure(
            one.vectors, [Element.from_Z(int(number)) for number in numbers], np.reshape(coordinates, (-1, 3))
        ).to(fmt="cif")
        for numbers, coordinates, one in rows
    ]
    sites = np.mean([len(one.kinds) for one in crystals[:count]])
    print(f"\n{count} crystals of {sites:.1f} sites on average, milliseconds for each:")
    reading = _milliseconds(lambda: [parse_structure(text) for text in texts], count)
    print(f"  reading its CIF            {reading:6.2f}")
    for finder in ("spglib", "moyopy"):
        found = _milliseconds(lambda of=finder: space_groups(crystals[:count], of, 0.1), count)
        standard = _milliseconds(lambda of=finder: [_standard(one, of) for one in crystals[:count]], count)
        print(f"  space group by {finder:<8}    {found:6.2f}   {found / reading:.2f} of reading")
        print(f"  standard cell by {finder:<8}  {standard:6.2f}   {standard / reading:.2f} of reading")
        ratio = (reading + standard) / (reading + found)
        print(f"  reading and standard cell against reading and group: {ratio:.2f} x")


def _milliseconds(work: Callable[[], object], count: int) -> float:
    """Return the least of three times per crystal; the first of them warms up."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1000 * min(times) / count


def _standard(crystal: Crystal, finder: Finder) -> list[float]:
    """Return cell, space group and number of atoms of the standard cell; NaN where there is none."""
    with quiet_finders():
        try:
            found = standard_cell(crystal, finder, 0.1)
        except DataError:
            return [np.nan] * 9
    return [*found.cell.tolist(), found.space_group, found.num_atoms]


def _given(crystal: Crystal, finder: Finder) -> list[float]:
    number = space_groups([crystal], finder, 0.1)[0][0]
    return [*cells_of_vectors(crystal.vectors[None])[0].tolist(), number, len(crystal.kinds)]


# ---- what it changes


def _print_spread(frame: pd.DataFrame, crystals: list[Crystal], count: int, settings: int) -> None:
    held_out = hash_split(frame["formula"].tolist(), 1 / 3, 0)
    chosen = np.flatnonzero(held_out)[:count]
    count = len(chosen)
    rng = np.random.default_rng(0)
    written = [[rewritten(crystals[row], rng) for _ in range(settings)] for row in chosen.tolist()]
    energies = frame["formation_energy_per_atom"].to_numpy(np.float64)
    print(f"\n{(~held_out).sum()} rows to train on, {held_out.sum()} held out; {settings} writings of {count} crystals")
    for convention in CONVENTIONS:
        of = _given if convention == "given" else _standard
        features = _features(frame["formula"].tolist(), [of(one, "spglib") for one in crystals], convention)
        usable = ~np.isnan(features).any(axis=1)
        train, test = usable & ~held_out, usable & held_out
        others = _features_of_writings(frame, chosen, written, convention)
        errors, spreads = [], []
        for seed in (0, 1):
            predict = _trained(features[train], energies[train], seed)
            errors.append(np.abs(predict(features[test]) - energies[test]).mean())
            spreads.append(np.ptp(predict(others).reshape(count, settings), axis=1))
        spread = np.concatenate(spreads)
        print(f"  cells {convention:<9} MAE held out {np.mean(errors):.4f} eV/atom ({errors[0]:.4f}, {errors[1]:.4f}); "
              f"spread of a crystal's predictions: mean {spread.mean():.2e}, largest {spread.max():.2e} eV/atom; "
              f"beyond 1e-3: {(spread > 1e-3).sum()} of {len(spread)}", flush=True)  # fmt: skip


def _features(formulas: Sequence[str], cells: Sequence[Sequence[float]], convention: str) -> np.ndarray:
    columns = [*CELL_COLUMNS, "spacegroup_number", "num_atoms"]
    table = pd.DataFrame(np.array(cells), columns=pd.Index(columns)).assign(formula=list(formulas))
    return make_featurizer(FEATURES, cell=convention).transform(table)


def _features_of_writings(
    frame: pd.DataFrame, chosen: np.ndarray, written: list[list[Crystal]], convention: str
) -> np.ndarray:
    """Return the features of all writings of the chosen crystals, one crystal after the other."""
    of = _given if convention == "given" else _standard
    cells = [of(one, "spglib") for writings in written for one in writings]
    formulas = [
        str(frame["formula"][row]) for row, writings in zip(chosen.tolist(), written, strict=True) for _ in writings
    ]
    return _features(formulas, cells, convention)


def _trained(features: np.ndarray, energies: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function of a network [rows, d] -> eV/atom [rows], trained by Adam."""
    scaler = Standardizer.from_moments(ColumnMoments.of(features))
    x, y = torch.from_numpy(scaler(features)).float(), torch.from_numpy(energies).float()
    network = seeded_mlp(features.shape[1], (200, 200), seed)
    optimiser, rng = torch.optim.Adam(network.parameters(), 1e-3), np.random.default_rng(seed)
    for _ in range(EPOCHS):
        for batch in torch.from_numpy(rng.permutation(len(x))).split(BATCH):
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(network(x[batch])[:, 0], y[batch]).backward()
            optimiser.step()

    def predict(raw: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(scaler(raw)).float())[:, 0].double().numpy()

    return predict


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--rows", type=int, default=900)
    parser.add_argument("--crystals", type=int, default=200)
    parser.add_argument("--settings", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
