"""Structure files that ASE reads: extended XYZ and the input and output files of some programs.

One file may hold many structures, each with numbers of its own (`key=value` of extended XYZ, energies of a
calculation): they are columns of a table then.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ray_fed.errors import DataError, Trouble
from ray_fed.materials.crystal import MAX_REASON
from ray_fed.materials.databases.packages import required_package
from ray_fed.materials.databases.raw_table import RawTable, table_of_columns
from ray_fed.reading import open_regular

ASE_FORMATS: Mapping[str, str] = {
    ".xyz": "extxyz", ".extxyz": "extxyz", ".xsf": "xsf", ".cell": "castep-cell", ".gen": "gen", ".res": "res",
    ".traj": "traj", ".cfg": "cfg", ".pwi": "espresso-in", ".pwo": "espresso-out",
}  # fmt: skip
"""File ending -> ASE's name of the format. Only formats that name the elements and hold no code."""
MAX_BYTES = 1 << 29
RESULTS = ("energy", "free_energy")
"""What a calculation left with a structure, eV of the whole cell."""


def is_ase_file(path: Path) -> bool:
    return path.suffix.lower() in ASE_FORMATS and not path.name.startswith(".") and path.is_file()


def frames(path: Path) -> list[dict[str, Any]]:
    """Return the structures of a file, each a mapping of its numbers and words, and of `structure` as `parse_structure`
    takes it. DataError, without the folder's name, where the file cannot be read or ASE is missing."""
    required_package("ase", "ase", path.name)
    from ase.io import iread

    try:
        with open_regular(path) as file:
            if file.seek(0, 2) > MAX_BYTES:
                raise ValueError(f"it is longer than {MAX_BYTES:,} bytes")
        found = [_frame(atoms) for atoms in iread(str(path), index=":", format=ASE_FORMATS[path.suffix.lower()])]
    except Exception as error:
        # ASE's readers, like pymatgen's, fail on broken files with any exception there is.
        words = " ".join(f"{type(error).__name__}: {error}".replace(str(path), path.name).split()).replace("'", '"')
        raise DataError(f"unreadable structure '{words[:MAX_REASON]}'", failure=Trouble.FILE_DAMAGED) from error
    if not found:
        raise DataError("structure is empty", failure=Trouble.FILE_EMPTY)
    return found


def _frame(atoms: Any) -> dict[str, Any]:
    results = getattr(atoms.calc, "results", {})
    numbers = {name: float(results[name]) for name in RESULTS if results.get(name) is not None}
    info = {str(name): value.item() if hasattr(value, "item") else value for name, value in atoms.info.items()
            if np.size(value) == 1}  # fmt: skip
    words = {name: value for name, value in info.items() if isinstance(value, str | int | float | bool)}
    structure: dict[str, Any] = {"sites": []}  # no lattice: a molecule
    if atoms.cell.rank == 3:
        structure = {
            "lattice_mat": atoms.cell.tolist(), "coords": atoms.get_scaled_positions(wrap=False).tolist(),
            "elements": atoms.get_chemical_symbols(), "cartesian": False,
        }  # fmt: skip
    return {**numbers, **words, "structure": structure}


def open_ase_file(path: Path, structures: str) -> RawTable:
    """Return the table of a file's structures, all or the one chosen; ids are those given, or its name and place."""
    found = list(enumerate(frames(path), start=1))
    chosen = [found[at] for at in chosen_numbers(len(found), structures)]
    names = list(dict.fromkeys(name for _, frame in chosen for name in frame))
    columns: dict[str, list[Any]] = {name: [frame.get(name) for _, frame in chosen] for name in names}
    if "id" not in columns:
        columns["id"] = [part_name(path.name, number, len(found)) for number, _ in chosen]
    return table_of_columns(str(path), columns, len(chosen))


def part_name(name: str, number: int, count: int) -> str:
    """Return what one of several structures in a file is called, counted from 1."""
    return name if count == 1 else f"{name}#{number}"


def chosen_numbers(count: int, structures: str) -> range:
    """Return which of a file's structures are wanted, from 0; DataError where there are fewer."""
    if structures == "all":
        return range(count)
    number = 1 if structures == "first" else int(structures)
    if number > count:
        raise DataError(f"file has '{count}' structures, number '{number}' is asked for", failure=Trouble.DATA_UNUSABLE)
    return range(number - 1, number)
