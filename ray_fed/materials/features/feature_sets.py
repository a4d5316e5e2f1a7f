"""Feature sets: from formulas and cells to numbers. What silos use; featurizers.py makes scikit-learn classes of them.

    name             columns   what
    guo73            65 + 8    Guo et al. 2022: 13 element properties x 5 statistics, and the cell
    guo65            65        the same without the cell: formulas are enough
    guo73_variance   65 + 8    guo73 with the paper's variance in the place of the standard deviation
    guo73_youngs     65 + 8    guo73 with the paper's Young's modulus in the place of the bulk modulus
    guo73_literal    65 + 8    the paper to the letter: both, and s, p, d, f counted 1 to 4
    rich             240       48 of XenonPy's 58 element properties x its 5 statistics
    rich+structure   240 + 8   the same and the cell

    >>> X, reasons = make_feature_set("guo65").transform_with_reasons(["Fe2O3", "Xx2O3"])
    >>> X.shape, reasons[1]
    ((2, 65), "unknown element 'Xx' in 'Xx2O3'")

They hold no state: equal options give equal numbers at every silo (`fingerprint`). Importing scikit-learn takes half a
second, and a federation starts a process per silo: that is why there are two modules.
"""

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import numpy as np
import pandas as pd

from ray_fed.errors import ConfigError, DataError
from ray_fed.materials.features.cells import cell_feature_units, cell_features, cells_of_structures
from ray_fed.materials.features.composition import CompositionRows, read_compositions
from ray_fed.materials.features.element_columns import StatisticColumns, guo_columns, rich_columns
from ray_fed.materials.features.elements import SYMBOLS
from ray_fed.materials.symmetry import Cell

FEATURES_VERSION = 1
"""Goes up when the same options and tables give other numbers; part of every fingerprint."""

STRUCTURE_FORMS = ("as_given", "normalised", "none")

CITATIONS = {
    "guo2022": "@article{guo2022, author={Guo, Jialong and Chen, Ziyi and Liu, Zhiwei and Li, Xianwei and "
    "Xie, Zhiyuan and Wang, Zongguo and Wang, Yangang}, title={Neural network training method for materials science "
    "based on multi-source databases}, journal={Scientific Reports}, volume={12}, year={2022}, "
    "doi={10.1038/s41598-022-19426-8}}",
    "ward2018": "@article{ward2018, author={Ward, Logan and others}, title={Matminer: An open source toolkit for "
    "materials data mining}, journal={Computational Materials Science}, volume={152}, pages={60--69}, year={2018}, "
    "doi={10.1016/j.commatsci.2018.05.018}}",
    "ong2013": "@article{ong2013, author={Ong, Shyue Ping and others}, title={Python Materials Genomics (pymatgen): "
    "A robust, open-source python library for materials analysis}, journal={Computational Materials Science}, "
    "volume={68}, pages={314--319}, year={2013}, doi={10.1016/j.commatsci.2012.10.028}}",
    "mendeleev": "@software{mendeleev, author={Mentel, Lukasz}, title={mendeleev: A Python package with properties of "
    "chemical elements, ions, isotopes and methods to manipulate and visualize periodic table}, "
    "url={https://github.com/lmmentel/mendeleev}}",
    "yamada2019": "@article{yamada2019, author={Yamada, Hironao and others}, title={Predicting Materials Properties "
    "with Little Data Using Shotgun Transfer Learning}, journal={ACS Central Science}, volume={5}, "
    "pages={1717--1730}, year={2019}, doi={10.1021/acscentsci.9b00804}}",
}
"""BibTeX of what a feature set rests on."""

Kind = TypeVar("Kind", bound="FeatureSet")


class FeatureSet(ABC):
    """What all feature sets share; a subclass gives its columns (`_element_columns`) and its citations."""

    structure: str
    cell: str
    missing_count: bool
    _citation_keys: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def _element_columns(self) -> StatisticColumns:
        """Return the columns of the element statistics."""

    def options(self) -> dict[str, Any]:
        """Return option -> value, sorted by name: the parameters of the constructor."""
        names = sorted(name for name in inspect.signature(type(self).__init__).parameters if name != "self")
        return {name: getattr(self, name) for name in names}

    def check_options(self) -> None:
        """Raise ConfigError naming the first option with a value that does not exist."""
        for name, value in self.options().items():
            if not isinstance(value, str | bool | Path | None):
                raise ConfigError(f"{name}={value!r} must be text, true or false")
        if self.structure not in STRUCTURE_FORMS:
            raise ConfigError(f"structure={self.structure!r} is not known; choose one of {', '.join(STRUCTURE_FORMS)}")
        if self.cell not in get_args(Cell):
            raise ConfigError(f"cell={self.cell!r} is not known; choose one of {', '.join(get_args(Cell))}")
        if not isinstance(self.missing_count, bool):
            raise ConfigError(f"missing_count={self.missing_count!r} must be true or false")
        self._element_columns()

    @property
    def needs_structure(self) -> bool:
        """Whether rows need a cell besides a formula."""
        return self.structure != "none"

    def transform_with_reasons(self, items: Any) -> tuple[np.ndarray, list[str]]:
        """Return (features float64 [num_rows, num_features], one reason per row, "" where the row was read).

        items  a table with a column `formula` (and the cell columns where `needs_structure`), or formulas, {symbol:
               amount} dicts, pymatgen Compositions or Structures in any mixture. Rows that cannot be read are NaN.
        """
        items = _as_table_or_list(items)
        formulas = items["formula"].tolist() if isinstance(items, pd.DataFrame) else items
        return self._features(formulas, items)

    def num_imputed(self, formulas: list) -> np.ndarray:
        """Return for how many element properties some element of each formula has no value of its own, int64 [rows]."""
        return self._element_columns().num_missing(read_compositions(formulas)[0])[:, 0].astype(np.int64)

    def _features(self, formulas: list, cells: pd.DataFrame | list) -> tuple[np.ndarray, list[str]]:
        """Return features and reasons of formulas with the cells of a table or of Structures."""
        self.check_options()
        columns = self._element_columns()
        rows, reasons = read_compositions(formulas)
        if self.cell == "standard":
            rows = rows.reduced()
        _note_uncovered(rows, columns.covered, reasons)
        blocks = [columns.features(rows)]
        if self.needs_structure:
            frame, cell_reasons = (
                (cells, reasons) if isinstance(cells, pd.DataFrame) else cells_of_structures(cells, self.cell)
            )
            block, faults = cell_features(frame, self.structure)
            blocks.append(block)
            reasons = [own or cell or fault for own, cell, fault in zip(reasons, cell_reasons, faults, strict=True)]
        if self.missing_count:
            blocks.append(columns.num_missing(rows))
        features = np.hstack(blocks) if len(blocks) > 1 else blocks[0]
        features[[row for row, reason in enumerate(reasons) if reason]] = np.nan
        return features, reasons

    def feature_units(self) -> dict[str, str]:
        """Return name -> unit of every column, in order; "1" for numbers without unit."""
        self.check_options()
        units = self._element_columns().units()
        units |= cell_feature_units(self.structure) if self.needs_structure else {}
        return units | ({"num_missing": "1"} if self.missing_count else {})

    def properties(self) -> dict[str, list[int]]:
        """Return property -> its columns: all statistics of an element's property, or one number of the cell."""
        found: dict[str, list[int]] = {}
        for at, label in enumerate(self.feature_units()):
            name = label.partition(":")[2] or label.partition(" ")[2] or label
            found.setdefault(name, []).append(at)
        return found

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:  # noqa: ARG002
        """Return the names of the columns, object array [num_features]."""
        return np.array(list(self.feature_units()), dtype=object)

    def feature_labels(self) -> list[str]:
        """Return the names of the columns (matminer's word for them)."""
        return list(self.feature_units())

    def citations(self) -> list[str]:
        """Return BibTeX entries to cite when results rest on these features."""
        return [CITATIONS[key] for key in self._citation_keys]

    def fingerprint(self) -> str:
        """Return sha256 over the element table, the options, names and units: equal prints, equal features."""
        # A path of a table says nothing: its digest does. Cells as given are what there was before there was a choice.
        options = {name: value for name, value in self.options().items() if name != "table"}
        if self.cell == "given":
            del options["cell"]
        facts = [FEATURES_VERSION, self._element_columns().table_digest, options, self.feature_units()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(eq=False, repr=False)
class GuoFeatures(FeatureSet):
    """The 73 features of Guo et al. 2022; with impute="matminer" the first 65 equal matminer's preset "matminer".

    impute         median (log10 where values span decades, then the median over the elements) | matminer (their mean,
                   raw values) | none (NaN stays)
    spread         std | variance, the paper's word
    modulus        bulk, matminer's | youngs, the paper's word
    block          matminer (s 1, p 2, d and f 3) | ordinal (1 to 4)
    structure      as_given (8 columns) | normalised (13 columns; needs `num_atoms`) | none
    cell           given | standard: of the standardised primitive cell, see `standard_cells`; the reader of a table
                   sees to it. Formulas are then reduced, too: Na4Cl4 is NaCl
    missing_count  add a column: for how many of the 13 properties a value had to be imputed
    """

    _citation_keys: ClassVar = ("guo2022", "ward2018", "ong2013")

    impute: str = "median"
    spread: str = "std"
    modulus: str = "bulk"
    block: str = "matminer"
    structure: str = "as_given"
    cell: str = "given"
    missing_count: bool = False

    def _element_columns(self) -> StatisticColumns:
        return guo_columns(self.impute, self.spread, self.modulus, self.block)


@dataclass(eq=False, repr=False)
class RichFeatures(FeatureSet):
    """Every property of a table of elements: the shipped one (48 of XenonPy's 58), or your own.

    statistics     xenonpy (ave, sum, var, max, min) | guo (minimum, maximum, range, mean, std_dev)
    impute         median | matminer (the mean) | none
    structure      none | as_given | normalised
    cell           given | standard, as for GuoFeatures
    missing_count  add a column: for how many properties a value had to be imputed
    table          path of a CSV file, first column the symbol; None: the shipped table
    """

    _citation_keys: ClassVar = ("yamada2019", "mendeleev", "ong2013")

    statistics: str = "xenonpy"
    impute: str = "median"
    structure: str = "none"
    cell: str = "given"
    missing_count: bool = False
    table: str | Path | None = None

    def _element_columns(self) -> StatisticColumns:
        return rich_columns(self.statistics, self.impute, self.table)


FEATURE_SETS: Mapping[str, tuple[type[FeatureSet], Mapping[str, object]]] = {
    "guo73": (GuoFeatures, {}),
    "guo65": (GuoFeatures, {"structure": "none"}),
    "guo73_variance": (GuoFeatures, {"spread": "variance"}),
    "guo73_youngs": (GuoFeatures, {"modulus": "youngs"}),
    "guo73_literal": (GuoFeatures, {"spread": "variance", "modulus": "youngs", "block": "ordinal"}),
    "rich": (RichFeatures, {}),
    "rich+structure": (RichFeatures, {"structure": "as_given"}),
}
"""Feature sets by name, with the options that the name implies."""


def make_feature_set(name: str, **options: Any) -> FeatureSet:
    """Return the feature set `name`; ConfigError when the name, an option or its value does not exist."""
    return checked(FEATURE_SETS, name, options)


def checked(
    kinds: Mapping[str, tuple[type[Kind], Mapping[str, object]]], name: str, options: Mapping[str, Any]
) -> Kind:
    """Return an instance of the class that `kinds` lists under `name`, with its options checked."""
    if name not in kinds:
        raise ConfigError(f"feature set {name!r} is not known; choose one of {', '.join(kinds)}")
    kind, implied = kinds[name]
    known = list(inspect.signature(kind).parameters)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ConfigError(f"feature set {name!r} has no option {unknown[0]!r}; it has {', '.join(known)}")
    instance = kind(**{**implied, **options})
    instance.check_options()
    return instance


def _as_table_or_list(items: Any) -> pd.DataFrame | list:
    """Return a table with a column `formula`, or a list of single materials."""
    if isinstance(items, pd.DataFrame):
        if "formula" in items:
            return items
        if items.shape[1] == 1:  # what a ColumnTransformer hands over
            return items.iloc[:, 0].tolist()
        raise DataError(f"the table has no column 'formula'; it has: {', '.join(map(str, items.columns))}")
    if isinstance(items, np.ndarray):
        return items.ravel().tolist() if items.shape[1:] in ((), (1,)) else items.tolist()
    if isinstance(items, str | Mapping) or (hasattr(items, "composition") and not isinstance(items, pd.Series)):
        raise DataError(f"{type(items).__name__} is one material; pass a list of materials, or a table")
    return list(items)


def _note_uncovered(rows: CompositionRows, covered: np.ndarray, reasons: list[str]) -> None:
    """Give a reason to rows with an element that the table has no row for."""
    if covered[1:].all():
        return
    entries = np.flatnonzero(~covered[rows.atomic_numbers])
    owners = np.searchsorted(rows.indptr, entries, side="right") - 1
    for entry, row in zip(entries.tolist(), owners.tolist(), strict=True):
        symbol = SYMBOLS[rows.atomic_numbers[entry] - 1]
        reasons[row] = reasons[row] or f"element '{symbol}' is not in the element table"
