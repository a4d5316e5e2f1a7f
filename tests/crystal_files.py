"""Small tables of crystals for tests, written as files."""

from pathlib import Path

import pandas as pd

TARGET = "formation_energy_per_atom"

ROCKSALT = {
    "material_id": "mp-1", "formula": "NaCl", "a": 5.6, "b": 5.6, "c": 5.6, "alpha": 90.0, "beta": 90.0,
    "gamma": 90.0, "volume": 175.616, "spacegroup_number": 225, TARGET: -2.1,
}  # fmt: skip
WURTZITE = {
    "material_id": "mp-2", "formula": "GaN", "a": 3.0, "b": 3.0, "c": 5.0, "alpha": 90.0, "beta": 90.0,
    "gamma": 120.0, "volume": 38.97114317029974, "spacegroup_number": 186, TARGET: -0.6,
}  # fmt: skip


def table(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(list(rows or (ROCKSALT, WURTZITE)))


def csv_file(folder: Path, *rows: dict, name: str = "data.csv") -> str:
    path = folder / name
    table(*rows).to_csv(path, index=False)
    return str(path)


def text_file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)
