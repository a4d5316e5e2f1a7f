"""Where a model may be trusted: what the silos' training rows were like, told in counts, and what is unlike them.

A flag is a reason in words, for one row to predict: an element that no silo has, element properties that had to be
imputed, atoms too close, a feature far from its mean, a place far from all training rows, the silos' own models apart.
No flag is no promise: it says that none of these reasons was found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ray_fed.learning.counted_quantiles import histogram, quantile
from ray_fed.learning.standardisation import Standardizer
from ray_fed.materials.features.composition import CompositionRows, read_compositions
from ray_fed.materials.features.elements import SYMBOLS

NUM_ELEMENTS = len(SYMBOLS)
MOST_IMPUTED = 256
"""Numbers of imputed properties that are told apart."""
LEAST_VOLUME_PER_ATOM = 3.0
"""Å³. Diamond, the densest packing of atoms at normal pressure, has 5.7 Å³. Atoms nearer to each other than any bond
are refused when a structure is read (structures.py); of a cell without sites this is all there is to see."""
MOST_DEVIATIONS = 10.0
"""Standard deviations from the mean beyond which a feature is out of range; of 2,000 crystals of the Materials Project
one was (benchmarks/uncertainty.md)."""
LARGEST_PART = 20.0
"""Deviations that one feature adds to a distance at most: one odd column is a reason of its own."""
USUAL = 0.99
"""Share of the silos' rows that is usual: what is beyond it gets a flag."""
SHOWN_FEATURES = 3


@dataclass(frozen=True)
class Domain:
    """What the silos' rows were like, as it stands in a model's card. None: not known, and why is in `unknown`."""

    elements: tuple[str, ...] | None = None
    """Symbols of the elements that enough training rows of some silo have."""
    fewest_rows: int = 0
    """So many rows of one silo are enough."""
    most_imputed: int | None = None
    """Most imputed element properties that are usual."""
    farthest: float | None = None
    """Largest distance from the mean of all features that is usual, in standard deviations."""
    largest_spread: Mapping[str, float] = field(default_factory=dict)
    """Target -> how far apart the silos' own models usually are at most, in the space of the network's outputs."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """What is not known -> why: a silo whose owner forbids it, too few rows."""


# ---- what a silo counts


def distances(standardised: np.ndarray) -> np.ndarray:
    """Return each row's distance [rows] from the mean of all silos' rows; `standardised` [rows, features]."""
    sizes = np.minimum(np.abs(np.asarray(standardised, np.float64)), LARGEST_PART)
    return np.sqrt((sizes**2).mean(axis=1))


def counted_elements(formulas: Sequence[str], fewest: int) -> np.ndarray:
    """Return for each element `fewest` where so many rows have it, else 0, int64 [118]: whether it is there, not how
    often."""
    rows, _ = read_compositions(list(formulas))
    return np.where(np.bincount(rows.atomic_numbers - 1, minlength=NUM_ELEMENTS) >= fewest, fewest, 0)


def counted_places(standardised: np.ndarray, imputed: np.ndarray, fewest: int) -> np.ndarray:
    """Return counts of the rows' distances and of their numbers of imputed properties, int64 [2, n]."""
    return np.stack([histogram(distances(standardised), fewest), histogram(imputed, fewest)])


# ---- what is made of the sum of all silos' counts


def elements_of(counts: np.ndarray) -> tuple[str, ...]:
    return tuple(symbol for symbol, count in zip(SYMBOLS, counts, strict=True) if count)


def usual(counts: np.ndarray) -> float:
    """Return the bound that all but one in a hundred rows keep; infinity where there are too few to know."""
    return quantile(counts, USUAL)


# ---- what is unlike it


def flags(frame: pd.DataFrame, features: np.ndarray, names: Sequence[str], domain: Domain, scaler: Standardizer | None,
          imputed: np.ndarray) -> list[list[str]]:  # fmt: skip
    """Return the reasons of each row of a crystal frame, none for one like the silos' rows.

    features   float64 [rows, num_features] as the model takes them, before standardisation; NaN rows have no reasons
    names      of the features
    scaler     None where the model has none: how far a row is from others is then not known
    imputed    int [rows], element properties that had to be imputed
    """
    usable = np.asarray(np.isfinite(features).all(axis=1))
    rows, _ = read_compositions(frame["formula"].tolist())
    found: list[list[str]] = [[] for _ in range(len(frame))]
    told = [_unseen_elements(rows, domain), _imputed(imputed, domain), _too_close(frame)]
    if scaler is not None:
        standardised = np.where(usable[:, None], (features - scaler.mean) / scaler.scale, 0.0)
        told += [_out_of_range(standardised, features, names, scaler), _far(distances(standardised), domain)]
    for reasons in told:
        for row, reason in reasons.items():
            if usable[row]:
                found[row].append(reason)
    return found


def spread_flags(spread: np.ndarray, largest: float, size: float, unit: str) -> dict[int, str]:
    """Return row -> reason where the silos' own models are farther apart than on all but one in a hundred rows.

    spread [rows], and the largest usual one, in the space of the network's outputs, of which one is `size` `unit`.
    """
    usual_most = f"{USUAL:.0%} of the calibration rows: at most {largest * size:.2g}"
    return {
        row: f"the silos' own models differ by {spread[row] * size:.2g} {unit}".strip() + f" ({usual_most})"
        for row in np.flatnonzero(spread > largest).tolist()
    }


def _unseen_elements(rows: CompositionRows, domain: Domain) -> dict[int, str]:
    if domain.elements is None:
        return {}
    seen, reasons = set(domain.elements), {}
    for row in range(len(rows)):
        numbers = rows.atomic_numbers[rows.indptr[row] : rows.indptr[row + 1]]
        unseen = [SYMBOLS[number - 1] for number in numbers.tolist() if SYMBOLS[number - 1] not in seen]
        if unseen:
            reasons[row] = (
                f"rare or unseen element {', '.join(unseen)}: no silo has {domain.fewest_rows} training rows with it"
            )
    return reasons


def _imputed(imputed: np.ndarray, domain: Domain) -> dict[int, str]:
    if domain.most_imputed is None:
        return {}
    usual_most = f"{USUAL:.0%} of the training rows: at most {domain.most_imputed}"
    return {
        int(row): f"{imputed[row]:.0f} element properties are imputed ({usual_most})"
        for row in np.flatnonzero(imputed > domain.most_imputed)
    }


def _too_close(frame: pd.DataFrame) -> dict[int, str]:
    with np.errstate(divide="ignore", invalid="ignore"):
        per_atom = frame["volume"].to_numpy(np.float64) / frame["num_atoms"].to_numpy(np.float64)
    return {
        row: f"atoms too close: {per_atom[row]:.2g} Å³ per atom, and below {LEAST_VOLUME_PER_ATOM:g} Å³ they overlap"
        for row in np.flatnonzero(per_atom < LEAST_VOLUME_PER_ATOM).tolist()
    }


def _out_of_range(
    standardised: np.ndarray, features: np.ndarray, names: Sequence[str], scaler: Standardizer
) -> dict[int, str]:
    reasons = {}
    beyond = np.abs(standardised) > MOST_DEVIATIONS
    for row in np.flatnonzero(beyond.any(axis=1)).tolist():
        columns = np.argsort(-np.abs(standardised[row]))[: min(SHOWN_FEATURES, int(beyond[row].sum()))]
        said = [f"{names[at]} = {features[row, at]:.4g} (training: {scaler.mean[at]:.3g} ± {scaler.scale[at]:.3g})"
                for at in columns]  # fmt: skip
        more = int(beyond[row].sum()) - len(said)
        reasons[row] = f"beyond {MOST_DEVIATIONS:g} deviations: {', '.join(said)}" + (f" and {more} more" * (more > 0))
    return reasons


def _far(distance: np.ndarray, domain: Domain) -> dict[int, str]:
    if domain.farthest is None:
        return {}
    usual_most = f"{USUAL:.0%} of the training rows: at most {domain.farthest:.2f}"
    return {
        int(row): f"far from every silo: {distance[row]:.2f} deviations from the mean ({usual_most})"
        for row in np.flatnonzero(distance > domain.farthest)
    }
