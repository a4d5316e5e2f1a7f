"""What a source holds, where the user has not said it: structures or formulas alone, numbers or classes.

Asked only of a study, in which one and the same person has the source and cuts silos from it. Nothing of a federation's
data is read before its silos open them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from ray_fed.materials.databases.columns import find_roles, target_column, to_numbers
from ray_fed.materials.databases.database import chosen_positions
from ray_fed.materials.databases.kinds import open_source
from ray_fed.materials.databases.source import Source
from ray_fed.materials.targets import MOST_CLASSES, TRUTH, TWO_CLASSES, label_texts

MOST_INTEGERS = 10
"""Different whole numbers that are classes, if there are no more."""
ROWS_PER_CLASS = 5
"""A column with fewer rows for each text holds names, not classes."""


@dataclass(frozen=True)
class Inferred:
    """What a source holds."""

    has_structures: bool
    classes: Mapping[str, tuple[str, ...]]
    """Target -> its labels, if it looks as if they were classes; none of numbers."""
    labels: Mapping[str, tuple[str, ...]]
    """Target -> its labels, if there are few enough for classes."""


def inferred(source: Source) -> Inferred:
    """Read the columns of a source's targets, in the rows that it chooses. DataError where one is missing."""
    table, names = open_source(source), source.targets
    rows = chosen_positions(table, source)
    columns = {name: table.read(target_column(table.columns, name, table.source)).iloc[rows] for name in names}
    labels = {name: _labels(column) for name, column in columns.items()}
    classes = {name: labels[name] if _are_classes(column) else () for name, column in columns.items()}
    return Inferred(bool({"a", "structure"} & find_roles(table.columns).keys()), classes, labels)


def _labels(column: pd.Series) -> tuple[str, ...]:
    """Return the different labels of a column, sorted as numbers where they are; none where there are too many."""
    texts = [text for text in label_texts(column) if text]
    found = set(texts)
    if found and {text.casefold() for text in found} <= TRUTH.keys() - {"0", "1"}:
        return TWO_CLASSES
    is_few = 2 <= len(found) <= min(MOST_CLASSES, len(texts) // ROWS_PER_CLASS)
    return tuple(sorted(found, key=_place)) if is_few else ()


def _place(label: str) -> tuple[bool, float, str]:
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label


def _are_classes(column: pd.Series) -> bool:
    """Whether a column holds true and false, text, or few different whole numbers."""
    if column.dtype.kind == "b":
        return True
    values, unreadable = to_numbers(column, "target")
    known = values[~pd.isna(values)]
    if len(unreadable) > len(known):
        return True
    is_whole = len(known) > 0 and bool((known == known.round()).all())
    return is_whole and not unreadable and len(set(known.tolist())) <= MOST_INTEGERS
