"""Ray Tune around trials that share long-lived silos. Every call of Tune is here.

A trial is a light process with a coordinator of its own; the silos stand already and keep one session per trial.
"""

import contextlib
import io
import logging
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from ray import tune
from ray.tune import schedulers

from actors.user_code import travelling
from ray_fed.federation.cohort import said_by

CONTROL_CPUS = 0.01
FAILED = "failed_because"
OBJECTIVE = "objective"
"""Key of a report's value that schedulers compare."""


class TrialListener(Protocol):
    """Told what happens to trials, in the driver's process."""

    def on_trial_start(self, number: int) -> None: ...

    def on_trial_report(self, number: int, report: Mapping[str, Any]) -> None: ...

    def on_trial_end(self, number: int, reason: str) -> None:
        """A trial is over; `reason` is empty unless it failed."""
        ...


Work = Callable[[Mapping[str, Any], Any], Generator[Mapping[str, Any], None, None]]
"""(config, shared) -> reports as they come. Runs in the trial's process."""


def run_trials(
    work: Work,
    configs: Sequence[Mapping[str, Any]],
    shared: object,
    listener: TrialListener,
    *,
    folder: Path,
    scheduler: str = "fifo",
    concurrent: int = 1,
    longest: int = 100,
    mode: Literal["max", "min"] = "max",
) -> None:
    """Run one trial per config, each with a key `number`; Tune's own files go to `folder`.

    longest: largest value of a report's `epochs`, for schedulers. mode: whether more or less of OBJECTIVE is better.
    A trial that fails ends with its reason; the others go on.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours ends the sweep in order

    def trainable(config: Mapping[str, Any], shared: tuple[Work, object]) -> None:
        work, given = shared
        try:
            with contextlib.closing(work(config["trial"], given)) as reports:  # also when a scheduler stops it
                for report in reports:
                    tune.report(dict(report))
        except Exception as error:  # Tune tells its callbacks that a trial failed, but not why
            worst = -math.inf if mode == "max" else math.inf
            tune.report({FAILED: said_by(error), "epochs": 0, OBJECTIVE: worst})

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, shared=travelling((work, shared))), {"cpu": CONTROL_CPUS}),
        param_space={"trial": tune.grid_search([dict(config) for config in configs])},
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode=mode,
            scheduler=_scheduler(scheduler, longest),
            max_concurrent_trials=concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials", storage_path=str(folder.resolve()), verbose=0, callbacks=[Telling(listener)]
        ),
    )
    with _quiet():
        tuner.fit()


def _scheduler(name: str, longest: int) -> Any:
    if name == "asha":
        return schedulers.ASHAScheduler(time_attr="epochs", max_t=longest, grace_period=max(1, longest // 10))
    if name == "median":
        return schedulers.MedianStoppingRule(time_attr="epochs", grace_period=max(1, longest // 10))
    return None


class TrialBase(tune.Trainable):
    """A trial of one's own that goes from report to report; `make(config, name, shared)` makes it in Tune's process."""

    make: Callable[..., Any]

    def setup(self, config: dict[str, Any], shared: Any = None) -> None:
        name = f"trial-{self.trial_id}"
        self.trial = type(self).make(config, name, shared)

    def step(self) -> dict[str, Any]:
        return {"should_checkpoint": True, **self.trial.next_rung()}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.trial.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]
        self.trial.go_on_from(Path(checkpoint))

    def cleanup(self) -> None:
        if trial := getattr(self, "trial", None):
            trial.end()


def shared_trainable(trainable: type[TrialBase], shared: object) -> type[TrialBase]:
    """Return a trainable for `tune.Tuner` whose trials take next to no CPU and share a value, with its code."""
    with_shared = tune.with_parameters(trainable, shared=travelling(shared))
    return tune.with_resources(with_shared, {"cpu": CONTROL_CPUS})  # type: ignore[return-value]


class Telling(tune.Callback):
    """Tune's side of a listener."""

    def __init__(self, listener: TrialListener):
        self.listener = listener
        self.reasons: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down to restore them; a sweep is resumed from its own results instead."""
        return {}

    def on_trial_start(self, iteration, trials, trial, **info):  # noqa: ARG002
        self.listener.on_trial_start(_number(trial))

    def on_trial_result(self, iteration, trials, trial, result, **info):  # noqa: ARG002
        if FAILED in result:
            self.reasons[_number(trial)] = result[FAILED]
        else:
            self.listener.on_trial_report(_number(trial), result)

    def on_trial_complete(self, iteration, trials, trial, **info):  # noqa: ARG002
        self.listener.on_trial_end(_number(trial), self.reasons.get(_number(trial), ""))

    def on_trial_error(self, iteration, trials, trial, **info):  # noqa: ARG002
        self.listener.on_trial_end(_number(trial), "its process died (killed, out of memory or crashed)")


def _number(trial: Any) -> int:
    return trial.config["trial"]["number"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune's tables and hints off the terminal; warnings of ours still come through stderr."""
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
