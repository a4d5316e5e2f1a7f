"""What trained models tell an attacker with candidate records: who was trained on, and means over a silo's rows."""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipelines.leakage.audited_federation import AuditedFederation, model_of
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import Samples
from ray_fed.leakage.evaluation_answers import scores
from ray_fed.leakage.membership import ANSWERS, LOSS, SHADOWS, Membership, exposure_bits, membership, row_losses
from ray_fed.leakage.property_inference import Property, PropertyRead, read_properties
from ray_fed.leakage.replay import RecordedUpdate, Replayed
from ray_fed.leakage.shadow_models import Shadows, halves, shadow_trainer, train_shadows
from ray_fed.learning.layout import load_vector
from ray_fed.learning.trainer import LocalTrainer
from ray_fed.materials.trained_model import raw_outputs
from ray_fed.metrics import Scores, merged
from ray_fed.metrics.scores import MEAN_ABSOLUTE_ERROR

CANDIDATES = 400
"""Members, over all silos, and as many others, of whom shadow models are trained."""
FEWEST_PUBLIC = 100
"""Records of the attacker's own below which shadow silos say nothing."""
ALL = "all silos"


@dataclass(frozen=True)
class AskedModel:
    """A model, asked who was trained on."""

    of: str
    outputs: Callable[[Samples], torch.Tensor]
    silo: str = ""
    """Whose answer it is; empty: a model that all get, asked for each silo."""
    with_shadows: bool = False
    tests: int = 1
    """Models of its kind that are asked."""


Exposure = tuple[str, str, str, str, float]
"""Silo, the owner's name of a record, model, attack, bits (`exposure_bits`)."""


def memberships(
    target: str, audited: AuditedFederation, replayed: Replayed, shadows: int
) -> tuple[list[Membership], list[Exposure]]:
    """Return what each silo's updates of the attacked rounds, and the model of the whole run, tell of who was trained
    on; of the last of both also with shadow models, if there are any. Silos without others to compare are left out.
    Then how exposed single records are in the last of both: for their owners alone."""
    pool = Pool.of(audited, shadows) if shadows else None
    found, exposed = [], []
    with torch.no_grad():
        for model in _models(target, audited, replayed):
            silos = [silo for silo in audited.silos if model.silo in ("", silo.spec.name)]
            asked = [one for silo in silos for one in _by_loss(audited, silo, model)]
            if pool and model.with_shadows:
                asked += pool.asked(audited, model)
            found += [one.membership for one in asked]
            exposed += [line for one in asked if model.with_shadows for line in one.exposures]
    return found, exposed


@dataclass(frozen=True)
class AskedRecords:
    """What one attack on one model says, together and of each record."""

    membership: Membership
    names: Sequence[tuple[str, str]]
    """Silo and the owner's name of each member."""
    of_members: np.ndarray
    of_others: np.ndarray

    @property
    def exposures(self) -> list[Exposure]:
        bits = exposure_bits(self.of_members, self.of_others).tolist()
        of, attack = self.membership.of, self.membership.attack
        return [(*name, of, attack, bit) for name, bit in zip(self.names, bits, strict=True)]


def write_exposures(path: Path, exposed: Sequence[Exposure]) -> None:
    """Write a line per record, the most exposed first, into a file that none but its owner may read."""
    with open(path, "w", newline="", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
        lines = csv.writer(file)
        lines.writerow(["silo", "record", "model", "attack", "exposure_bits"])
        lines.writerows((*line, f"{bits:.2f}") for *line, bits in sorted(exposed, key=lambda one: -one[-1]))


def _names(silo: Silo, positions: np.ndarray) -> list[tuple[str, str]]:
    names = silo.rows.names
    return [(silo.spec.name, str(names[at]) if len(names) else f"row {at + 1}") for at in positions.tolist()]


def _models(target: str, audited: AuditedFederation, replayed: Replayed) -> Iterator[AskedModel]:
    last = max(one.update.server_round for one in replayed.updates)
    rounds = len({one.update.server_round for one in replayed.updates})
    for one in replayed.updates:
        vector = one.update.vector[: audited.coordinator.layout.size]
        yield AskedModel(
            f"update of round {one.update.server_round}", _network(audited, vector), one.update.silo,
            one.update.server_round == last, rounds,
        )  # fmt: skip
    trained = model_of(target) if Path(target).is_dir() else None
    if trained is not None:
        yield AskedModel(
            "model of the whole run", lambda of: torch.from_numpy(raw_outputs(of.rows.features, *trained)),
            with_shadows=True,
        )  # fmt: skip


def _network(audited: AuditedFederation, vector: np.ndarray) -> Callable[[Samples], torch.Tensor]:
    network = load_vector(audited.coordinator.task.model(0), vector).eval()
    return lambda samples: network(samples.features.cpu())


def _losses(audited: AuditedFederation, model: AskedModel, samples: Samples) -> np.ndarray:
    return row_losses(audited.coordinator.task, model.outputs(samples), samples.targets.cpu())


def _by_loss(audited: AuditedFederation, silo: Silo, model: AskedModel) -> Iterator[AskedRecords]:
    inside, outside = (_losses(audited, model, samples) for samples in (silo.samples, audited.untrained(silo)))
    if len(inside) and len(outside):
        told = membership(silo.spec.name, model.of, inside, outside, LOSS, model.tests, bool(model.silo))
        yield AskedRecords(told, _names(silo, np.arange(len(inside))), inside, outside)


@dataclass(frozen=True)
class Pool:
    """Candidates of all silos and others, and shadow models of halves of them."""

    members: Mapping[str, np.ndarray]
    """Silo -> positions of the candidates among its records."""
    others: np.ndarray
    shadows: Shadows
    """The candidates of all silos one after another, then the others."""

    @classmethod
    def of(cls, audited: AuditedFederation, shadows: int) -> "Pool | None":
        """Return the candidates with trained shadows; None where there are no others."""
        first = audited.silos[0]
        outside = audited.untrained(first)
        share = min(CANDIDATES, len(outside.features)) // len(audited.silos)
        chosen = {silo.spec.name: halves(len(silo.samples.features), share, share, 0)[0] for silo in audited.silos}
        others = halves(sum(map(len, chosen.values())), len(outside.features), CANDIDATES, 1)[1]
        if not len(others):
            return None
        parts = [(silo.samples, chosen[silo.spec.name]) for silo in audited.silos] + [(outside, others)]
        features, targets = (
            torch.cat([getattr(samples, what).cpu()[positions] for samples, positions in parts])
            for what in ("features", "targets")
        )
        return cls(chosen, others, train_shadows(first, features, targets, audited.local_plan, shadows, 0))

    def asked(self, audited: AuditedFederation, model: AskedModel) -> Iterator[AskedRecords]:
        """Yield what a model tells with the shadows: of the silo whose answer it is, or of all together."""
        parts = [(silo.samples, self.members[silo.spec.name]) for silo in audited.silos]
        parts.append((audited.untrained(audited.silos[0]), self.others))
        losses = [_losses(audited, model, samples)[positions] for samples, positions in parts]
        scores = -self.shadows.scores(np.concatenate(losses))
        *of_silos, of_others = np.split(scores, np.cumsum([len(part) for part in losses])[:-1])
        names = [silo.spec.name for silo in audited.silos]
        mine = of_silos[names.index(model.silo)] if model.silo else np.concatenate(of_silos)
        told = membership(model.silo or ALL, model.of, mine, of_others, SHADOWS, 1, bool(model.silo))
        chosen = [silo for silo in audited.silos if model.silo in ("", silo.spec.name)]
        members = [name for silo in chosen for name in _names(silo, self.members[silo.spec.name])]
        yield AskedRecords(told, members, mine, of_others)


def answers(audited: AuditedFederation, replayed: Replayed) -> Iterator[Membership]:
    """Yield what evaluations of the attacked rounds' models tell of who was trained on: they are the answers that a
    silo gives, with their few digits; under masks their sum over all silos. Silos with noise tell none, nor do tasks
    without a mean absolute error."""
    task, size = audited.coordinator.task, audited.coordinator.layout.size
    is_told = MEAN_ABSOLUTE_ERROR in {one.name for one in task.metrics}
    if audited.job.any_plan.private or not is_told:
        return
    vectors = [vector[:size] for vector in replayed.after.values()]
    is_summed, of = bool(audited.job.secure_threshold), f"marks of {len(vectors)} models"
    silos = [silo for silo in audited.silos if len(audited.untrained(silo).features)]
    for together in [silos] if is_summed and silos else [[silo] for silo in silos]:
        told = [merged(marks) for marks in zip(*(_marks(audited, silo, vectors) for silo in together), strict=True)]
        outside = audited.untrained(together[0])
        of_silos = [silo.samples for silo in together]
        known = [np.array([_errors(audited, one, samples) for one in vectors]) for samples in (*of_silos, outside)]
        count = sum(len(samples.features) for samples in of_silos)
        marks = np.array([one.values()[MEAN_ABSOLUTE_ERROR] for one in told])
        inside, others = np.split(-scores(marks, np.concatenate(known, 1), count), [count])
        name = ALL if is_summed else together[0].spec.name
        yield membership(name, f"{of}, summed" if is_summed else of, inside, others, ANSWERS, 1, not is_summed)


def _marks(audited: AuditedFederation, silo: Silo, vectors: Sequence[np.ndarray]) -> list[Scores]:
    """Return what a silo tells of each model on the rows that it trains on."""
    trainer, task = _trainer_of(audited, silo), audited.coordinator.task
    return [silo.scoring.scores(task, trainer, silo.samples, _whole(trainer, one))[0] for one in vectors]


def _trainer_of(audited: AuditedFederation, silo: Silo) -> LocalTrainer:
    return shadow_trainer(silo, silo.samples.features, silo.samples.targets, audited.local_plan)


def _whole(trainer: LocalTrainer, vector: np.ndarray) -> np.ndarray:
    """Return a vector as it travels, with these parameters."""
    whole = trainer.vector()
    whole[: len(vector)] = vector
    return whole


def _errors(audited: AuditedFederation, vector: np.ndarray, samples: Samples) -> np.ndarray:
    """Return the absolute error of each row, in the target's unit."""
    with torch.no_grad():
        outputs = _network(audited, vector)(samples).numpy()
    said, true = samples.said(outputs), samples.said(samples.targets.cpu().numpy())
    return np.abs(said - true).reshape(len(said), -1).mean(1)


def properties(audited: AuditedFederation, recorded: Sequence[RecordedUpdate]) -> list[PropertyRead]:
    """Return what each silo's first update tells of the mean of its targets, and of its leading feature."""
    found = []
    for one in recorded:
        silo = audited.cohort.silos[one.update.silo]
        public = audited.untrained(silo)
        if len(public.features) >= FEWEST_PUBLIC:
            asked = _asked(audited, silo, public)
            found += read_properties(
                silo, public.features.cpu(), public.targets.cpu(), asked, audited.local_plan, one.sent,
                one.update.vector, one.update.server_round,
            )  # fmt: skip
    return found


def _asked(audited: AuditedFederation, silo: Silo, public: Samples) -> list[Property]:
    """Return the mean target, in its unit where one number is learned, and the mean of the feature that goes most with
    the first principal component of the attacker's records."""
    targets = [samples.said(samples.targets.cpu().numpy()) for samples in (public, silo.samples)]
    of_public, own = (np.asarray(part, np.float64).reshape(len(part), -1)[:, 0] for part in targets)
    rows = public.features.cpu().numpy()
    first = np.linalg.eigh(np.cov(rows.T))[1][:, -1]
    column = int(np.nan_to_num(np.abs(first)).argmax())
    name, unit = list(audited.units.items())[column]
    scale = audited.scale[column]
    mine = silo.samples.features.cpu().numpy()[:, column]
    return [
        Property("mean target", audited.target_unit, of_public, float(own.mean())),
        Property(f"mean of {name} (less that of all)", unit, rows[:, column] * scale, float(mine.mean() * scale)),
    ]
