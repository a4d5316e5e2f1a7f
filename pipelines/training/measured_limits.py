"""Asks the silos of a finished training how far its models can be trusted, and says it in tables."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from pipelines.launching import CoordinatorLike
from pipelines.training.setup import Setup
from ray_fed.errors import FedError
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.counted_rows import CountedRows
from ray_fed.federation.messages import Vector
from ray_fed.learning.intervals import ALL, Coverage
from ray_fed.materials.boosted_property_task import BoostedPropertyTask
from ray_fed.materials.domain import Domain
from ray_fed.materials.limits import ModelLimits, measured_limits
from ray_fed.materials.row_counts import HELD_OUT, TEST
from ray_fed.materials.targets import Target
from ray_fed.metrics import FEWEST_ROWS

FEDERATED, POOLED = "federated", "pooled"
NOISE = "noise hides single rows in this run, and counts of rows have none; train without it for intervals"
NO_ROWS = "no rows were held out for calibration (calibration_fraction=0)"


def measure(
    coordinator: CoordinatorLike, setup: Setup, agreement: Agreement, models: Mapping[str, Vector]
) -> dict[str, ModelLimits]:
    """Return the limits of each model, with the reason where they are not known."""
    if setup.config.is_private:
        return dict.fromkeys(models, _nothing(NOISE))
    silos = [name for name in setup.training if name in agreement.silos]
    absent = {silo: "it was not there" for silo in setup.training if silo not in agreement.silos}
    threshold = setup.config.threshold(len(setup.training))

    def ask(question: str, given: tuple) -> CountedRows:
        found = coordinator.count(question, given, silos, threshold)
        return CountedRows(found.num_examples, found.counts, {**absent, **found.missing})

    def ask_test(question: str, given: tuple) -> CountedRows:
        return coordinator.count_test(question, given) or CountedRows(0, np.zeros(0, np.int64))

    vectors = {name: np.array(vector[: agreement.layout.size]) for name, vector in models.items()}
    own = [name for name in vectors if name not in (FEDERATED, POOLED)]
    has_places = not isinstance(setup.task, BoostedPropertyTask)  # which scales nothing
    asking = partial(measured_limits, ask, setup.task.targets, vectors, own, FEWEST_ROWS, has_places=has_places)
    try:
        if setup.config.calibration == 0:
            return asking(why_not=NO_ROWS)
        if agreement.test is not None:
            return asking(ask_of_others=ask_test, others=TEST)
        return asking(ask_of_others=ask, others=HELD_OUT)
    except FedError as error:  # the models are trained, and are worth keeping without intervals
        return dict.fromkeys(models, _nothing(" ".join(str(error).split())))


def _nothing(why: str) -> ModelLimits:
    """Return limits of which nothing is known, and why."""
    return ModelLimits(domain=Domain(unknown={"elements": why, "distances": why}), why_none=why)


# ---- what is said of them


def coverage_of(limits: ModelLimits, target: str) -> Mapping[str, Coverage]:
    """Return chemistry -> coverage of one target; nothing where it was not measured."""
    found = limits.intervals.get(target)
    return {} if found is None or limits.why_none else found.coverage


def summarised(limits: Mapping[str, ModelLimits], targets: Sequence[Target]) -> dict[str, object]:
    """Return `federated.coverage_90`, ..., for summary.json: of all rows, and of each chemistry as
    `federated.coverage_90.oxide`; the target's name before, where there are several."""
    flat: dict[str, object] = {}
    for model, one in limits.items():
        prefix = model if model in (FEDERATED, POOLED) else f"silo.{model}"
        if one.why_none:
            flat[f"{prefix}.intervals"] = one.why_none
        for target in targets:
            name = f"{prefix}.{target.key}" if len(targets) > 1 else prefix
            for chemistry, covered in coverage_of(one, target.name).items():
                last = "" if chemistry == ALL else f".{chemistry}"
                flat |= {f"{name}.coverage_{_percent(level)}{last}": share for level, share in covered.shares.items()}
            flat |= _calibration_rows(one, target.name, name)
    return flat


def _calibration_rows(limits: ModelLimits, target: str, name: str) -> dict[str, object]:
    found = limits.intervals.get(target) or limits.sureness.get(target)
    return {} if found is None or limits.why_none else {f"{name}.calibration_rows": found.num_rows}


def coverage_table(limits: ModelLimits, targets: Sequence[Target]) -> list[list[str]]:
    """Return a table with a heading: what the intervals of a model cover, of all rows and of each chemistry."""
    rows = [
        [*([target.words] if len(targets) > 1 else []), name, f"{covered.num_rows:,}",
         *(f"{100 * share:.1f} %" for share in covered.shares.values())]
        for target in targets
        for name, covered in coverage_of(limits, target.name).items()
    ]  # fmt: skip
    if not rows:
        return []
    first = ["target"] if len(targets) > 1 else []
    return [[*first, "chemistry", "rows", "in 50 % intervals", "in 90 % intervals"], *rows]


def _percent(level: str) -> str:
    return f"{100 * float(level):.0f}"
