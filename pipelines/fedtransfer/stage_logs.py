"""What TensorBoard shows while a run goes on: a run of its own per method, fold and seed, the same tags in each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.fedtransfer.results import METRICS, epoch_curve, silo_losses
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.metrics import TRAIN_LOSS
from ray_fed.reporting.tensorboard_log import EventLog
from ray_fed.style_transfer.task import SESSION_MARK

GENERATOR_LOSSES = ("generator", "discriminator", "feature_matching", "l1")
PICTURES = "pictures"


class StageLogs:
    """Charts: `loss/validation/SILO` and `loss/training` by round, `test/METRIC/SILO` at the chosen round, and
    `style/LOSS` by epoch in a run per silo. Every method is a curve in the same chart."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, EventLog] = {}

    def on_round_end(self, record: RoundRecord) -> None:
        log = self._log(run_of(record.job))
        for silo, loss in silo_losses(record).items():
            log.scalar(f"loss/validation/{silo}", loss, record.server_round)
        if TRAIN_LOSS in record.metrics:
            log.scalar("loss/training", record.metrics[TRAIN_LOSS], record.server_round)

    def done(self, line: Mapping[str, Any]) -> None:
        """Add what is known at the end of a stage, and close its runs."""
        if line["stage"] == "generators":
            self._generators(line)
        for model, places in line.get("test", {}).items():
            # Of training alone there are several models, and each has a test score at every silo.
            of_one = f"/{model}" if len(line["test"]) > 1 else ""
            log = self._log(run_of(line["stage"]) + of_one)
            for silo, found in places.items():
                for metric in METRICS:
                    log.scalar(f"test/{metric.name}/{silo}", found[metric.name], line["chosen"][model])
        self.close()

    def _generators(self, line: Mapping[str, Any]) -> None:
        for silo, told in line["facts"].items():
            log = self._log(f"generators/fold{line['fold']}-{silo}")
            for loss in GENERATOR_LOSSES:
                for epoch, value in enumerate(epoch_curve(told, loss), 1):
                    log.scalar(f"style/{loss}", value, epoch)

    def pictures(self, figures: Mapping[str, Path], silos: Sequence[str]) -> None:
        """Show the run's figures, in a section per silo those that a silo drew."""
        for name, path in figures.items():
            silo = next((silo for silo in silos if name.startswith(f"{silo}-")), "")
            tag = f"{silo}/{name.removeprefix(f'{silo}-')}" if silo else f"all/{name}"
            self._log(PICTURES).image(tag, path)
        self.close()

    def close(self) -> None:
        for log in self._open.values():
            log.close()
        self._open.clear()

    def _log(self, run: str) -> EventLog:
        """Return the run's log; one that a broken-off process began is begun anew."""
        if run not in self._open:
            for old in (self.folder / run).glob("events.*"):
                old.unlink()
            self._open[run] = EventLog(self.folder / run)
        return self._open[run]


def run_of(stage: str) -> str:
    """Return the name of a stage's TensorBoard run: "fed_avg/fold0-seed0"."""
    return stage.replace(SESSION_MARK, "/")
