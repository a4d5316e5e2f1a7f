"""What TensorBoard shows while a run goes on: one run, a model in it per method, fold and seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.fedtransfer.results import METRICS, epoch_curve, silo_losses
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.metrics import TRAIN_LOSS
from ray_fed.reporting.tensorboard_log import EventLog, model_tag, silo_tag
from ray_fed.style_transfer.task import SESSION_MARK

GENERATOR_LOSSES = ("generator", "discriminator", "feature_matching", "l1")
ABOUT, OUTCOME = "about", "outcome"
"""Parts of the run beside its stages."""


class StageLogs:
    """Curves of each stage: `train_loss` and `validation_loss/SILO` by round, `METRIC/SILO` on the test set at the
    chosen round, and of a silo's generator `style/LOSS/FOLD` by epoch. What belongs into one chart is grouped."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, EventLog] = {}

    def begin(self, config: Mapping[str, object], name: str, stages: Sequence[str], silos: Sequence[str]) -> None:
        """Say what the run is, and which curves are of one kind."""
        models = [model_of(stage) for stage in stages]
        kinds = {
            "Training loss": TRAIN_LOSS,
            **{f"Validation loss, {silo}": f"validation_loss/{silo}" for silo in silos},
        }
        with EventLog(self.folder, part=ABOUT) as log:
            log.hyperparameters(config, name)
            log.layout({"Methods": {title: [model_tag(one, kind) for one in models] for title, kind in kinds.items()}})

    def on_round_end(self, record: RoundRecord) -> None:
        log, model = self._log(record.job), model_of(record.job)
        for silo, loss in silo_losses(record).items():
            log.scalar(model_tag(model, f"validation_loss/{silo}"), loss, record.server_round)
        if TRAIN_LOSS in record.metrics:
            log.scalar(model_tag(model, TRAIN_LOSS), record.metrics[TRAIN_LOSS], record.server_round)

    def done(self, line: Mapping[str, Any]) -> None:
        """Add what is known at the end of a stage, and close its part."""
        if line["stage"] == "generators":
            self._generators(line)
        for model, places in line.get("test", {}).items():
            # Of training alone there are several models, and each has a test score at every silo.
            of_one = f" {model}" if len(line["test"]) > 1 else ""
            log = self._log(line["stage"])
            for silo, found in places.items():
                for metric in METRICS:
                    tag = model_tag(model_of(line["stage"]) + of_one, f"{metric.name}/{silo}")
                    log.scalar(tag, found[metric.name], line["chosen"][model])
        self.close()

    def _generators(self, line: Mapping[str, Any]) -> None:
        log = self._log(f"generators{SESSION_MARK}fold{line['fold']}")
        for silo, told in line["facts"].items():
            for loss in GENERATOR_LOSSES:
                for epoch, value in enumerate(epoch_curve(told, loss), 1):
                    log.scalar(silo_tag(silo, f"style/{loss}/fold{line['fold']}"), value, epoch)

    def outcome(self, finals: Mapping[str, object], figures: Sequence[Path]) -> None:
        """Show what the run, finished or not, came to."""
        with EventLog(self.folder, part=OUTCOME) as log:
            log.outcome(finals, figures)

    def close(self) -> None:
        for log in self._open.values():
            log.close()
        self._open.clear()

    def _log(self, stage: str) -> EventLog:
        """Return the log of a stage; one that a broken-off process began is begun anew."""
        if stage not in self._open:
            self._open[stage] = EventLog(self.folder, part=model_of(stage))
        return self._open[stage]


def model_of(stage: str) -> str:
    """Return what tags call the model of a stage: "fed_avg-fold0-seed0"."""
    return stage.replace(SESSION_MARK, "-").replace("/", "-")
