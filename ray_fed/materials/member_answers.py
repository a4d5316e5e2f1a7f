"""What a silo tells of its personal model, and to whom: sums of errors through the gate, exact numbers and the model
itself to its owner."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ray_fed.errors import SiloFailed, Trouble
from ray_fed.federation.task import LocalRows, Samples, SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.chemical_groups import composition_keys
from ray_fed.materials.domain import Domain
from ray_fed.materials.limits import ModelLimits, told
from ray_fed.materials.personal import FEWEST_ROWS, Personal, Rows, Workshop
from ray_fed.materials.personal_file import keep_personal
from ray_fed.materials.row_counts import CALIBRATION, HELD_OUT, TEST
from ray_fed.metrics import RegressionSums, Scores

PERSONAL, OWN, FEDERATED, GAINED, LOST = MEMBERS = ("personal", "own", "federated", "gained", "lost")
"""The personal model, the same without the federation, the federation's model as it is; and of one number, row by row:
by how much the error of the first is below that of the second where it is, and above it where it is."""
NOT_MEASURED = "of a silo's personal model these are not measured"
LIMITS = ModelLimits(
    domain=Domain(unknown={"elements": NOT_MEASURED, "distances": NOT_MEASURED}), why_none=NOT_MEASURED
)
Both = Sequence[Scores]
"""On the rows by which a mixture was chosen, and on rows that took no part."""


class SiloLike(Protocol):
    """What is read of a silo."""

    spec: SiloSpec
    task: Any
    device: str

    @property
    def rows(self) -> LocalRows: ...
    @property
    def samples(self) -> Samples: ...


def workshop_of(silo: SiloLike, plan: TrainingPlan) -> Workshop:
    """Return what personal models are made from. SiloFailed with too few calibration rows."""
    rows: Any = silo.rows
    training = Rows(rows.features, rows.targets, rows.formulas[TEST], rows.groups)
    formulas = rows.formulas[CALIBRATION]
    calibration = Rows(rows.calibration_features, rows.calibration_targets, formulas, composition_keys(formulas))
    if len(calibration) < FEWEST_ROWS:
        reason = f"fewer than {FEWEST_ROWS} of its rows are held out for calibration, too few to choose weights by"
        raise SiloFailed(silo.spec.name, "making its personal model", reason, failure=Trouble.TOO_FEW_ROWS)
    return Workshop(silo.task, silo.samples, training, calibration, plan, silo.spec.name)


def unseen_rows(silo: SiloLike) -> Rows:
    """Return rows that the silo does not learn from: the published test set of a study, else those held out."""
    published: Any = silo.task.published_test(silo.spec)
    if published is not None:
        return Rows(published.features, published.targets, published.formulas[TEST], published.groups)
    rows: Any = silo.rows
    return Rows(rows.held_out_features, rows.held_out_targets, rows.formulas[HELD_OUT], rows.held_out_groups)


def member_scores(task: Any, found: Personal, judged: Rows, unseen: Rows) -> dict[str, Both]:
    """Return name of MEMBERS -> scores; without the last two for what is not one number."""
    said = {
        PERSONAL: (found.chosen.judged, _values(found.chosen, unseen)),
        OWN: (found.own.judged, _values(found.own, unseen)),
        FEDERATED: (_values(found.federated, judged), _values(found.federated, unseen)),
    }
    parts = (judged, unseen)
    scores: dict[str, Both] = {
        name: [task.score(part.targets, each) for part, each in zip(parts, both, strict=True)]
        for name, both in said.items()
    }
    if not task.is_one_number:
        return scores
    better = [_better(part, said[OWN][at], said[PERSONAL][at]) for at, part in enumerate(parts)]
    return {**scores, GAINED: [_mean_of(each) for each in better], LOST: [_mean_of(-each) for each in better]}


def _values(model: Any, rows: Rows) -> np.ndarray:
    return model.values(rows.features, rows.formulas)


def _better(rows: Rows, own: np.ndarray, personal: np.ndarray) -> np.ndarray:
    """Return by how much the error of the personal model is below that of the own one, [rows]."""
    return np.abs(rows.targets - own[:, 0]) - np.abs(rows.targets - personal[:, 0])


def _mean_of(better: np.ndarray) -> RegressionSums:
    """Return the mean of what is above 0, and of its square, as sums of errors have them."""
    return RegressionSums.of(np.zeros(len(better)), np.maximum(better, 0.0))


def kept(spec: SiloSpec, task: Any, found: Personal, plan: TrainingPlan, scores: Mapping[str, Both]) -> list[str]:
    """Keep the personal model where its owner can get it; return what its owner is told, exactly."""
    metrics = {name: scores[name][1].values() for name in (PERSONAL, OWN, FEDERATED)}
    metric = task.metrics[0]
    shown = {name: values.get(metric.name, np.nan) for name, values in metrics.items()}
    errors = ", ".join(f"{name} {value:.{metric.digits}f}" for name, value in shown.items())
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in found.chosen.weights.items())
    said = [f"personal model: {weights}; {metric.name} on rows not used for it: {errors}"]
    if not spec.personal_folder:
        return [*said, "the personal model is not kept: no folder was given for it"]
    about = {
        "hyperparameters": {"epochs": plan.epochs, "learning_rate": plan.learning_rate},
        "seed": plan.seed,
        "data": ({"name": spec.name},),
        "split": {"unseen": scores[PERSONAL][1].num_examples},
        "metrics": metrics,
        "limits": told(LIMITS),
    }
    return [
        *said,
        f"the personal model is kept as {keep_personal(spec.personal_folder, spec.name, task, found, about)}",
    ]
