"""What the noise of all trials of a sweep comes to together: who sees the choice among them has seen every trial."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ray_fed.federation.rounds.job import Job
from ray_fed.privacy.accounting import composed_epsilon
from ray_fed.reporting.writing import write_atomically

FILE = "privacy.json"


@dataclass(frozen=True)
class SweepPrivacy:
    """The promise of a whole sweep."""

    level: str
    """example | silo: what one of is hidden."""
    epsilon: float
    delta: float
    trials: int
    """Trials with noise."""
    trials_without: int
    """Trials without, which no epsilon bounds."""

    @property
    def words(self) -> str:
        unit = "training row" if self.level == "example" else "silo"
        said = f"epsilon {self.epsilon:.3g} at delta {self.delta:g} for all {self.trials} trials with noise together"
        without = f"; {self.trials_without} trials have no noise, and no epsilon bounds what they tell"
        again = "a trial that is run again costs again"
        return f"Differential privacy of one {unit}: {said}{without if self.trials_without else ''}. ({again}.)"

    def summary(self) -> dict[str, object]:
        return {"privacy.level": self.level, "privacy.epsilon_all_trials": self.epsilon, "privacy.delta": self.delta}


def privacy_of(jobs: Sequence[Job]) -> list[SweepPrivacy]:
    """Return what jobs on the same rows promise together, one entry for each level; empty where none has noise."""
    found = []
    for level in ("example", "silo"):
        ours = [job for job in jobs if job.account and job.account.level == level]
        steps: Counter[tuple[float, float]] = Counter()
        for job in ours:
            assert job.account
            mechanism = job.account.noise_multiplier, job.account.sampling_probability
            steps[mechanism] += job.noised_steps(job.num_rounds)
        if ours:
            delta = min(job.account.delta for job in ours if job.account)  # holds at the larger ones, too
            epsilon = composed_epsilon(steps, delta)
            found.append(SweepPrivacy(level, epsilon, delta, len(ours), len(jobs) - len(ours)))
    return found


def write_privacy(folder: Path, found: Sequence[SweepPrivacy]) -> None:
    """Keep it for who concludes the sweep, perhaps in another process."""
    if found:
        write_atomically(folder / FILE, json.dumps([asdict(one) for one in found]).encode())


def read_privacy(folder: Path) -> list[SweepPrivacy]:
    path = folder / FILE
    content: list[Mapping[str, object]] = json.loads(path.read_bytes()) if path.is_file() else []
    return [SweepPrivacy(**one) for one in content]  # type: ignore[arg-type]
