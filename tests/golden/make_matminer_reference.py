"""Write the reference values of `test_features.py`: `python tests/golden/make_matminer_reference.py FORMULAS.parquet`.

Needs matminer (`pip install ray-fed[reference]`). FORMULAS.parquet is any table with columns `source` and `formula`; 50
rows of each source are taken at even steps, and the oddities below are added. Without it the stored formulas are kept.

    matminer_formulas.csv     one formula a line
    matminer_reference.npz    imputed, raw: float64 [num_formulas, 65], impute_nan=True and False; versions
"""

import csv
import sys
import warnings
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

FOLDER = Path(__file__).parent
FORMULAS_OF_A_SOURCE = 50

ODDITIES = (
    # single elements: noble gases, the edges of the periodic table, elements with most values missing
    "H", "He", "Ne", "Ar", "Fe", "Po", "At", "Fr", "Ac", "Lr", "Og",
    # all values equal or imputed alike; the spread must be exactly zero
    "Xe6O", "OF2", "N2O", "SeO3", "HF",
    # La and Lu stand on both sides of the f block; S has the resistivity that ruins matminer's mean
    "LaLuO3", "SO2", "Na2S2O3", "CuS",
    # brackets, repeated elements, decimals, dopants, long formulas, sodium nitride that looks like a missing value
    "Ca3(PO4)2", "KAl(SO4)2", "Mg3(Si2O5)2(OH)2", "[NH4]2SO4", "CH3CH2OH", "La0.7Sr0.3MnO3", "Fe0.0001Si0.9999",
    "Li6.75La3Zr1.75Nb0.25O12", "AlCoCrCuFeNiTiVMnMo", "Y1Ba2Cu3O6.93", "NaN", "Fe2 O3", "O3Fe2", "Fe4O6",
    "UO2", "PuGa", "AmO2", "CfCl3", "C60", "H2O",
)  # fmt: skip


def main() -> None:
    from matminer.featurizers.composition import ElementProperty  # pyright: ignore[reportMissingImports]
    from pymatgen.core import Composition

    formulas = _chosen(Path(sys.argv[1])) if len(sys.argv) > 1 else _stored()
    compositions = [Composition(formula) for formula in formulas]
    values = {}
    for name, impute in (("imputed", True), ("raw", False)):
        featurizer = ElementProperty.from_preset("matminer", impute_nan=impute)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pymatgen's word for a missing value
            values[name] = np.array([featurizer.featurize(composition) for composition in compositions], np.float64)
    versions = [f"{package} {version(package)}" for package in ("matminer", "pymatgen", "pymatgen-core", "numpy")]
    np.savez_compressed(FOLDER / "matminer_reference.npz", versions=np.array(versions), **values)
    with (FOLDER / "matminer_formulas.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["formula"], *([formula] for formula in formulas)])


def _chosen(path: Path) -> list[str]:
    table = pd.read_parquet(path)
    samples = [
        group["formula"].iloc[:: max(1, len(group) // FORMULAS_OF_A_SOURCE)].head(FORMULAS_OF_A_SOURCE).tolist()
        for _, group in table.groupby("source", observed=True)
    ]
    return [*dict.fromkeys([*chain.from_iterable(samples), *ODDITIES])]


def _stored() -> list[str]:
    with (FOLDER / "matminer_formulas.csv").open(newline="", encoding="utf-8") as file:
        return [row["formula"] for row in csv.DictReader(file)]


if __name__ == "__main__":
    main()
