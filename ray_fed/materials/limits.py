"""How far a model's predictions can be trusted: intervals, chances and the domain, measured by questions to the silos.

    measured_limits(ask, ...) -> model -> ModelLimits     asks; needs no more than an `ask`, which a coordinator has
    told(limits) / limits_of(entry)                       as a model's card has it

A question goes to all silos; each answers with counts of rows that it held out for this (row_counts.py). Where one does
not, there are no intervals: what was calibrated without its rows would promise nothing about rows like them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ray_fed.federation.counted_rows import CountedRows
from ray_fed.federation.messages import Vector
from ray_fed.learning.confidence import Sureness, sureness_of
from ray_fed.learning.counted_quantiles import NUM_BINS, median
from ray_fed.learning.intervals import (
    ALL,
    FLOOR,
    LEVELS,
    Coverage,
    Intervals,
    IntervalScale,
    coverage_of,
    intervals_of,
    scale_of,
)
from ray_fed.materials.domain import Domain, elements_of, usual
from ray_fed.materials.row_counts import (
    CALIBRATION,
    CHEMISTRIES,
    CONFIDENCES,
    ELEMENTS,
    ERRORS,
    HELD_OUT,
    PARTS,
    PLACES,
    SPREADS,
)
from ray_fed.materials.targets import Target

Ask = Callable[[str, tuple], CountedRows]
"""(question, what is given with it) -> the counts of all silos together."""
PROMISE = (
    "Intervals cover their share of rows that come from where the calibration rows came from, all silos together, and "
    "of each chemistry that has quantiles of its own ('own'). Of chemistries with fewer calibration rows they cover "
    "about as much, and of those that the silos do not have they promise nothing."
)
UNASKED = "not asked for"


@dataclass(frozen=True)
class ModelLimits:
    """Of one model."""

    own_models: tuple[str, ...] = ()
    """The silos' own models, whose spread is part of an interval; they stand beside the model."""
    intervals: Mapping[str, Intervals] = field(default_factory=dict)
    """Regression target -> its intervals."""
    sureness: Mapping[str, Sureness] = field(default_factory=dict)
    """Target of classes -> how sure its chances are."""
    domain: Domain = field(default_factory=Domain)
    why_none: str = UNASKED
    """Why there are no intervals; "" where there are."""


@dataclass(frozen=True)
class AskedModels:
    """The models that are asked about."""

    targets: tuple[Target, ...]
    models: Mapping[str, Vector]
    own: tuple[str, ...]
    """Which of them are one silo's own."""

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the regression targets."""
        return tuple(target.name for target in self.targets if not target.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(target.name for target in self.targets if target.classes)

    def given(self, part: str, *more: np.ndarray) -> tuple:
        """Return what goes with a question about a part of the rows."""
        own = np.array([name in self.own for name in self.models], np.int64)
        return (np.array([PARTS.index(part)], np.int64), own, *more, *self.models.values())

    def shaped(self, counts: CountedRows, *shape: int) -> np.ndarray:
        """Return counts as an array [M, *shape]; zeros where nobody told any."""
        shape = (len(self.models), *shape)
        return counts.counts.reshape(shape) if len(counts.counts) else np.zeros(shape, np.int64)


def measured_limits(
    ask: Ask, targets: tuple[Target, ...], models: Mapping[str, Vector], own: Sequence[str], fewest: int,
    ask_of_others: Ask | None = None, others: str = HELD_OUT, why_not: str = "",
    has_places: bool = True,
) -> dict[str, ModelLimits]:  # fmt: skip
    """Return the limits of each model.

    own: which of the models are one silo's own. fewest: rows that an element must have in a silo to be told.
    ask_of_others: asks about rows that were used neither for training nor for calibration, for the coverage; `others`
    names that part of them. why_not: why no intervals are asked for, where they are not.
    has_places: whether rows are standardised, so that they are near or far from each other.
    """
    question = AskedModels(targets, models, tuple(own))
    missing: dict[str, str] = {}

    def noting(what: str, given: tuple) -> CountedRows:
        found = ask(what, given)
        missing.update(found.missing)
        return found

    domain = _domain(ask, fewest, has_places)
    if why_not:
        return {name: ModelLimits(domain=domain, why_none=why_not) for name in models}
    intervals, spreads = _intervals(noting, question) if question.numbers else ({name: {} for name in models}, {})
    sureness = _sureness(noting, question) if question.classes else {name: {} for name in models}
    if missing:
        why = "; ".join(f"silo '{silo}': {reason}" for silo, reason in sorted(missing.items()))
        return {name: ModelLimits(domain=domain, why_none=why) for name in models}
    if ask_of_others and question.numbers:
        intervals = _covering(ask_of_others, question, intervals, others)
    return {
        name: ModelLimits(
            question.own, intervals[name], sureness[name], replace(domain, largest_spread=spreads.get(name, {})),
            _why_none(intervals[name], sureness[name]),
        )
        for name in models
    }  # fmt: skip


def _why_none(intervals: Mapping[str, Intervals], sureness: Mapping[str, Sureness]) -> str:
    num_rows = sum(one.num_rows for one in (*intervals.values(), *sureness.values()))
    return "" if num_rows else "no silo has enough rows held out for calibration"


def _domain(ask: Ask, fewest: int, has_places: bool) -> Domain:
    elements = ask(ELEMENTS, ())
    places = ask(PLACES, ()) if has_places else CountedRows(0, np.zeros(2 * NUM_BINS, np.int64))
    unknown = {}
    for what, found in (("elements", elements), ("distances", places)):
        if found.missing or not len(found.counts):
            why = "; ".join(f"silo '{silo}': {why}" for silo, why in sorted(found.missing.items()))
            unknown[what] = why or "no silo told them"
    distances, imputed = places.counts.reshape(2, -1) if len(places.counts) else np.zeros((2, NUM_BINS), np.int64)
    farthest, most_imputed = usual(distances), usual(imputed)
    return Domain(
        None if "elements" in unknown else elements_of(elements.counts),
        fewest,
        round(most_imputed) if math.isfinite(most_imputed) and "distances" not in unknown else None,
        farthest if math.isfinite(farthest) and "distances" not in unknown else None,
        unknown=unknown,
    )


def _intervals(ask: Ask, question: AskedModels) -> tuple[dict[str, dict[str, Intervals]], dict[str, dict[str, float]]]:
    """Return model -> target -> intervals, and model -> target -> largest usual spread, from the calibration rows."""
    num_targets, num_groups = len(question.numbers), len(CHEMISTRIES)
    shape = num_targets, 2, 1 + num_groups, NUM_BINS
    spreads = np.zeros((len(question.models), num_targets, NUM_BINS), np.int64)
    if question.own:
        spreads = question.shaped(ask(SPREADS, question.given(CALIBRATION)), num_targets, NUM_BINS)
    medians = np.array([[median(one) for one in row] for row in spreads])
    floors = np.where(np.isfinite(medians) & (medians > 0), FLOOR * medians, 1.0)
    scales = np.concatenate([floors[..., None], np.ones((*floors.shape, 1 + num_groups))], axis=2)
    found = question.shaped(ask(ERRORS, question.given(CALIBRATION, scales)), *shape)
    sizes = [
        [scale_of(counts, CHEMISTRIES, floor) for counts, floor in zip(*each, strict=True)]
        for each in zip(found, floors.tolist(), strict=True)
    ]
    asked = np.array([[one.numbers(CHEMISTRIES) for one in row] for row in sizes])
    scaled = question.shaped(ask(ERRORS, question.given(CALIBRATION, asked)), *shape)
    largest = {
        name: {target: bound for target, counts in zip(question.numbers, row, strict=True)
               if math.isfinite(bound := usual(counts))}
        for name, row in zip(question.models, spreads, strict=True)
    }  # fmt: skip
    return {
        name: {
            target: intervals_of(plain, counts, CHEMISTRIES, size)
            for target, plain, counts, size in zip(question.numbers, *each, strict=True)
        }
        for name, *each in zip(question.models, found, scaled, sizes, strict=True)
    }, largest


def _covering(
    ask: Ask, question: AskedModels, intervals: Mapping[str, Mapping[str, Intervals]], part: str
) -> dict[str, dict[str, Intervals]]:
    """Return the intervals with what they cover of other rows."""
    shape = len(question.numbers), 2, 1 + len(CHEMISTRIES), NUM_BINS
    found = {}
    for level in map(str, LEVELS):
        rows = [[one.halves[level].numbers(CHEMISTRIES) for one in each.values()] for each in intervals.values()]
        found[level] = question.shaped(ask(ERRORS, question.given(part, np.array(rows))), *shape)
    return {
        name: {
            target: replace(one, coverage=coverage_of({level: found[level][m, r] for level in found}, CHEMISTRIES))
            for r, (target, one) in enumerate(by_target.items())
        }
        for m, (name, by_target) in enumerate(intervals.items())
    }


def _sureness(ask: Ask, question: AskedModels) -> dict[str, dict[str, Sureness]]:
    found = question.shaped(ask(CONFIDENCES, question.given(CALIBRATION)), len(question.classes), 2, NUM_BINS)
    return {
        name: {target: sureness_of(counts) for target, counts in zip(question.classes, row, strict=True)}
        for name, row in zip(question.models, found, strict=True)
    }


# ---- in a model's card


def told(limits: ModelLimits) -> dict[str, Any]:
    """Return limits as plain data; infinite bounds are None."""
    return {
        "own_models": list(limits.own_models),
        "intervals": {target: _without_infinity(asdict(one)) for target, one in limits.intervals.items()},
        "sureness": {target: _without_infinity(asdict(one)) for target, one in limits.sureness.items()},
        "domain": _without_infinity(asdict(limits.domain)),
        "why_none": limits.why_none,
        "promise": PROMISE,
    }


def limits_of(entry: Mapping[str, Any]) -> ModelLimits:
    """Return the limits of a card's entry; of a card without any, that none were asked for."""
    if not entry:
        return ModelLimits()
    return ModelLimits(
        tuple(entry["own_models"]),
        {target: _intervals_of_entry(one) for target, one in entry["intervals"].items()},
        {target: Sureness(**_with_nan(one)) for target, one in entry["sureness"].items()},
        _domain_of_entry(entry["domain"]),
        entry["why_none"],
    )


def _intervals_of_entry(entry: Mapping[str, Any]) -> Intervals:
    coverage = {
        name: Coverage(one["num_rows"], _with_nan(one["shares"]), _with_infinity(one["widths"]))
        for name, one in entry["coverage"].items()
    }
    if "halves" in entry:
        halves = {
            level: IntervalScale(half["floor"], _with_infinity(half["by_group"]))
            for level, half in entry["halves"].items()
        }
        return Intervals(halves, entry["num_rows"], coverage, tuple(entry["own"]))
    # A model of before chemistries had quantiles of their own: one, in units of what is usual in each.
    floor, usual_errors = entry["scale"]["floor"], {ALL: 1.0, **entry["scale"]["by_group"]}
    return Intervals(
        {
            level: IntervalScale(floor, {name: q * size for name, size in usual_errors.items()})
            for level, q in _with_infinity(entry["quantiles"]).items()
        },
        entry["num_rows"], coverage,
    )  # fmt: skip


def _with_infinity(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.inf if value is None else value for key, value in entry.items()}


def _domain_of_entry(entry: Mapping[str, Any]) -> Domain:
    elements = entry["elements"]
    return Domain(**{**entry, "elements": None if elements is None else tuple(elements)})


def _with_nan(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in entry.items()}


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(part) for key, part in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return list(value) if isinstance(value, tuple) else value
