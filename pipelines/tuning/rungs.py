"""Where trials report: a grid of local steps, so that what is compared has had the same work.

A trial has a model only after an exchange. It reports a rung after its first exchange at or past the rung's steps, and
says in `local_steps` how many its model really had; where the exchanges of all trials fall onto the rungs, both agree.
"""

from collections.abc import Mapping, Sequence
from math import ceil

from ray_fed.config import require
from ray_fed.federation.rounds.job import Job

Rungs = int | Sequence[int]
"""How many in equal parts of a trial's own local steps, or the steps themselves; the end is always one."""
ROUNDING = 1
"""Steps that an exchange may come before its rung: rounds are cut to whole steps."""


def steps_after(job: Job, server_round: int) -> int:
    """Return the local steps of a silo in rounds 1 to `server_round`; of answers of sums, which take none, the
    rounds."""
    plan = job.any_plan
    return server_round if plan.sums else plan.steps_of_round(server_round).stop if server_round else 0


def rung_steps(total: int, rungs: Rungs) -> list[int]:
    """Return the local steps of each rung of a trial with so many in all. ConfigError for rungs that do not rise."""
    if isinstance(rungs, int):
        require(rungs > 0, f"rungs={rungs} must be positive")
        return sorted({ceil(total * rung / rungs) for rung in range(1, rungs + 1)})
    given = [int(steps) for steps in rungs]
    rising = all(a < b for a, b in zip([0, *given], given, strict=False))
    require(bool(given) and rising, f"rungs={given} must be local steps above 0 that rise")
    return [*(steps for steps in given if steps < total), total]


def rounds_of_rungs(job: Job, rungs: Rungs) -> Mapping[int, tuple[int, int]]:
    """Return round -> (number of the last rung that it reaches, from 1, and that rung's local steps)."""
    steps = [steps_after(job, server_round) for server_round in range(job.num_rounds + 1)]
    wanted = rung_steps(steps[-1], rungs)
    found, server_round = {}, 1
    for number, rung in enumerate(wanted, start=1):
        while not _reaches(steps, server_round, rung) and server_round < job.num_rounds:
            server_round += 1
        found[server_round] = (number, rung)
    return found


def common_rungs(jobs: Sequence[Job], most: int) -> list[int]:
    """Return local steps after which every job has an exchange, rising, about `most` of them evenly spread: what
    a scheduler compares there has had the same work. None where jobs have no such steps."""
    reached = [{steps_after(job, each) for each in range(1, job.num_rounds + 1)} for job in jobs]
    common = sorted(set.intersection(*reached)) if reached else []
    if len(common) <= most:
        return common
    wanted = [common[-1] * number / most for number in range(1, most + 1)]
    return sorted({min(common, key=lambda steps, near=near: abs(steps - near)) for near in wanted})


def rounds_at(job: Job, rungs: Sequence[int]) -> tuple[int, ...]:
    """Return the rounds after which a job has had exactly these local steps."""
    wanted = set(rungs)
    return tuple(each for each in range(1, job.num_rounds + 1) if steps_after(job, each) in wanted)


def _reaches(steps: Sequence[int], server_round: int, rung: int) -> bool:
    """Tell whether an exchange is at or past a rung, or as near before it as whole steps allow."""
    now, following = steps[server_round], steps[min(server_round + 1, len(steps) - 1)]
    return now >= rung or (now >= rung - ROUNDING and following > rung)
