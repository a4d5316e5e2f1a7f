"""What each member gains: its personal model against the best it could do alone, on rows that took no part in either.

Asked of the silos, seed by seed; said in one sentence for each member, whichever way it comes out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import mean, stdev
from typing import Literal

import numpy as np

from pipelines.launching import CoordinatorLike
from pipelines.training.setup import Setup
from ray_fed.federation.messages import Metrics, Vector
from ray_fed.materials.member_answers import FEDERATED, GAINED, LOST, MEMBERS, OWN, PERSONAL
from ray_fed.materials.property_silo import OF_MEMBERS
from ray_fed.metrics import Metric, RegressionSums

WHOLE = (PERSONAL, OWN, FEDERATED)
"""What is asked of other tasks than one number."""
SURE = 2.0
"""Standard errors that a gain must have to be told from chance."""
Verdict = Literal["pays", "no difference", "does not pay"]


@dataclass(frozen=True)
class MemberResult:
    """What one silo told of its personal model, of one seed."""

    errors: Mapping[str, Mapping[str, float]]
    """PERSONAL, OWN, FEDERATED -> metrics on rows that took no part in it."""
    num_unseen: int
    standard_error: float = float("nan")
    """Of the difference between own and personal mean absolute error, over the rows; NaN for what is not one number."""

    @classmethod
    def of(cls, told: Mapping[str, Metrics]) -> "MemberResult":
        """Read an answer."""
        errors = {name: dict(told[name].held_out.values()) for name in WHOLE}
        return cls(errors, told[PERSONAL].held_out.num_examples, standard_error(told, (GAINED, LOST)))


def standard_error(told: Mapping[str, Metrics], names: Sequence[str]) -> float:
    """Return the standard error of the mean of what was gained less what was lost, row by row; NaN where that is not
    told. names: under which the two are."""
    parts = [told[name].held_out for name in names if name in told]
    sums = [part for part in parts if isinstance(part, RegressionSums) and part.num_examples > 1]
    if len(sums) != 2:
        return float("nan")
    gained, lost = sums
    rows = gained.num_examples
    mean_square = gained.sum_squared_error / rows + lost.sum_squared_error / lost.num_examples
    mean = gained.sum_absolute_error / rows - lost.sum_absolute_error / lost.num_examples
    return sqrt(max(mean_square - mean**2, 0.0) / rows)


@dataclass(frozen=True)
class MemberAnswers:
    """What all silos told, of one seed."""

    results: Mapping[str, MemberResult] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    """Silo -> why it told nothing."""


def ask_members(
    coordinator: CoordinatorLike, setup: Setup, silos: Sequence[str], seed: int, models: Mapping[str, Vector], size: int
) -> MemberAnswers:
    """Let silos make their personal models from the federation's and, where there is one, from each silo's own network,
    which only that silo is sent. size: numbers of a model, without what travels beside it."""
    config = setup.config
    given = (
        config.personal, seed, config.epochs, config.batch_size, config.learning_rate, config.optimizer,
        np.array(models["federated"][:size]),
    )  # fmt: skip
    own = {silo: (np.array(models[silo][:size]),) for silo in silos if silo in models}
    names = MEMBERS if setup.task.is_one_number else WHOLE
    told, silent = coordinator.ask_metrics(OF_MEMBERS, silos, names, given, own)
    return MemberAnswers({silo: MemberResult.of(answer) for silo, answer in told.items()}, silent)


# ---- what it comes to


@dataclass(frozen=True)
class Gain:
    """What joining comes to for one member, over the seeds."""

    silo: str
    metric: Metric
    personal: float
    alone: float
    """The best it can do alone, by the same rows."""
    learner: str
    """What that is."""
    standard_error: float
    """Of the difference; of several seeds at least their spread."""
    num_unseen: int

    @property
    def gain(self) -> float:
        """By how much the personal model is better, in the metric's unit."""
        difference = self.alone - self.personal
        return -difference if self.metric.higher_is_better else difference

    @property
    def percent(self) -> float:
        """The gain as a share of what the member has alone; of a metric of which 1 is all, of what is missing to it."""
        whole = 1.0 - self.alone if self.metric.higher_is_better else self.alone
        return 100 * self.gain / whole if whole else 0.0

    @property
    def verdict(self) -> Verdict:
        noise = SURE * self.standard_error if self.standard_error == self.standard_error else 0.0
        if abs(self.gain) <= noise or self.gain == 0:
            return "no difference"
        return "pays" if self.gain > 0 else "does not pay"

    def sentence(self) -> str:
        """Say it to the member."""
        metric, unit = self.metric, f" {self.metric.unit}" if self.metric.unit else ""
        shown = f"{metric.label or metric.name} {self.personal:.{metric.digits}f}{unit} with the federation"
        against = f"{self.alone:.{metric.digits}f} alone ({self.learner}), on {self.num_unseen:,} rows unseen by both"
        noise = f" ± {self._noise_percent:.1f}" if self.standard_error == self.standard_error else ""
        amount = f"{abs(self.percent):.1f}{noise} % {'better' if self.gain >= 0 else 'worse'}"
        said = {
            "pays": "joining pays",
            "no difference": "joining makes no difference that these rows can show",
            "does not pay": "joining does not pay; go alone",
        }[self.verdict]
        return f"{self.silo}: {said}: {shown}, {against}: {amount}"

    @property
    def _noise_percent(self) -> float:
        return abs(self.percent * self.standard_error / self.gain) if self.gain else 0.0


def gains(answers: Sequence[MemberAnswers], alone: Mapping[str, tuple[float, str]], metric: Metric) -> list[Gain]:
    """Return what joining comes to for each silo that told it.

    answers: of each seed. alone: silo -> (mean value, learner) of the best single learner that it chose by itself; the
    comparison is with this one or with the silo's own mixture, whichever is better on the same rows.
    """
    found = []
    for silo in dict.fromkeys(silo for one in answers for silo in one.results):
        results = [one.results[silo] for one in answers if silo in one.results]
        own = [result.errors[OWN][metric.name] for result in results]
        personal = [result.errors[PERSONAL][metric.name] for result in results]
        rivals = [(mean(own), "a mixture of its own models")]
        if silo in alone:
            rivals.append(alone[silo])
        best = metric.best(value for value, _ in rivals)
        value, learner = next(rival for rival in rivals if rival[0] == best)
        found.append(Gain(silo, metric, mean(personal), value, learner, _noise(results, own, personal),
                          results[0].num_unseen))  # fmt: skip
    return found


def _noise(results: Sequence[MemberResult], own: Sequence[float], personal: Sequence[float]) -> float:
    """Return the standard error over rows, which all seeds share, or the spread of the differences, if that is more."""
    over_rows = mean(result.standard_error for result in results)
    over_seeds = stdev(a - b for a, b in zip(own, personal, strict=True)) if len(results) > 1 else 0.0
    return max(over_rows, over_seeds) if over_rows == over_rows else over_rows


def summarised(found: Sequence[Gain], answers: Sequence[MemberAnswers]) -> dict[str, object]:
    """Return `member.<silo>.personal_<metric>`, `.alone_<metric>`, `.federated_<metric>`, `.gain_percent`, `.verdict`
    for summary.json."""
    flat: dict[str, object] = {}
    for one in found:
        prefix, name = f"member.{one.silo}", one.metric.name
        results = [each.results[one.silo] for each in answers if one.silo in each.results]
        flat |= {
            f"{prefix}.personal_{name}": one.personal,
            f"{prefix}.alone_{name}": one.alone,
            f"{prefix}.own_mixture_{name}": mean(result.errors[OWN][name] for result in results),
            f"{prefix}.federated_{name}": mean(result.errors[FEDERATED][name] for result in results),
            f"{prefix}.alone": one.learner,
            f"{prefix}.gain_percent": one.percent,
            f"{prefix}.unseen_rows": one.num_unseen,
            f"{prefix}.verdict": one.verdict,
        }
        if one.standard_error == one.standard_error:
            flat[f"{prefix}.gain_standard_error"] = one.standard_error
    return flat


def gains_table(found: Sequence[Gain], summary: Mapping[str, object]) -> list[list[str]]:
    """Return header and a row for each member; empty without any."""
    if not found:
        return []
    metric = found[0].metric
    unit = f" ({metric.unit})" if metric.unit else ""
    header = [
        "member",
        "unseen rows",
        f"best alone{unit}",
        "which",
        f"federated{unit}",
        f"personal{unit}",
        "change",
        "joining",
    ]
    rows = []
    for one in found:
        federated = summary.get(f"member.{one.silo}.federated_{metric.name}")
        shown = f"{federated:.{metric.digits}f}" if isinstance(federated, float) else "-"
        rows.append([
            one.silo, f"{one.num_unseen:,}", f"{one.alone:.{metric.digits}f}", one.learner, shown,
            f"{one.personal:.{metric.digits}f}", f"{-one.percent:+.1f} %", one.verdict,
        ])  # fmt: skip
    return [header, *rows]
