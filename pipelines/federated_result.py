"""What comes out of `federate`: a network, what happened in each round, and the way to a folder and back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipelines.fingerprints import fingerprints
from pipelines.round_notes import missed
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.recorder import history_line, timing_line
from ray_fed.errors import DataError
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.messages import SiloDescription
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.federation.task import Task, feature_tensor
from ray_fed.learning.layout import Layout, initial_vector, load_vector
from ray_fed.learning.open_trainer import predicted
from ray_fed.learning.sample_rows import column_rows
from ray_fed.learning.standardisation import Standardizer
from ray_fed.reading import parse_json, readable
from ray_fed.reporting.model_files import read_model_file, serialised, tensors_of
from ray_fed.reporting.run_directory import RunDirectory

if TYPE_CHECKING:
    import pandas as pd

MODEL, FACTS = "models/federated.safetensors", "federated.json"
SCALER = ("scaler.mean", "scaler.scale")


@dataclass(frozen=True)
class Federated:
    """The trained network and what happened in each round."""

    module: nn.Module
    """The network with the global parameters, on the CPU, in evaluation mode; what of it stays with the silos
    (`TorchTask.exchange`) is as the task's network makes it."""
    records: tuple[RoundRecord, ...]
    """One per round; the first is the evaluation of the initial parameters, round 0."""
    agreement: Agreement
    """What the silos said about themselves before training."""
    task: Task = field(repr=False)
    """What was trained: `predict` and `save` ask it."""
    seed: int = 0
    """Of the initial weights."""
    best_round: int | None = None
    """Round whose model `module` is, where it was chosen by a metric; None: the last one's."""
    stopped: str = ""
    """Why the run ended before its last round; empty where it did not."""

    def __repr__(self) -> str:
        last = self.records[-1]
        size = sum(parameter.numel() for parameter in self.module.parameters())
        stopped = f", {self.stopped}" if self.stopped else ""
        what = f"{len(self.agreement.silos)} silos, {last.server_round} rounds{stopped}, {size:,} parameters"
        return f"Federated({what}: {self._chosen.main_metrics})"

    @property
    def _chosen(self) -> RoundRecord:
        by_round = {record.server_round: record for record in self.records}
        return self.records[-1] if self.best_round is None else by_round[self.best_round]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the round that `module` is of: `federated.<name>`, `silo.<silo>.<name>` and, of the function
        on the coordinator, `central.<name>`."""
        return dict(self._chosen.metrics)

    def history(self) -> "pd.DataFrame":
        """Return one row per round, indexed by its number: metrics, participants, failures, over which silos metrics
        are pooled where not over all, bytes sent."""
        import pandas as pd

        rows = [
            {
                "round": record.server_round,
                "num_participants": len(record.participants),
                "failures": "; ".join(f"{silo}: {reason}" for silo, reason in record.failures),
                "pooled_over": ", ".join(record.pooled_over),
                "bytes_sent": record.bytes_sent,
                **record.metrics,
            }
            for record in self.records
        ]
        return pd.DataFrame(rows).set_index("round")

    @torch.no_grad()
    def predict(self, inputs: Any) -> Any:
        """Return what the network says, in the task's terms, [rows, ...], of inputs [rows, ...] as they are in the
        silos: columns are standardised where the silos' were. Of a network of several inputs a tuple or dictionary of
        arrays; where it says several things, so is what comes back."""
        if isinstance(inputs, Mapping | tuple):
            return predicted(self.module, column_rows(inputs, ()))
        values = inputs.detach().cpu().numpy() if isinstance(inputs, torch.Tensor) else np.asarray(inputs)
        found = predicted(self.module, feature_tensor(values, self.agreement.standardizer, "cpu"))
        return self.task.predicted(found, self.agreement.standardizer) if isinstance(found, np.ndarray) else found

    # ---- on disk

    def save(self, folder: Path | str) -> Path:
        """Write the model, the history and what the silos said into a new folder; return it. ConfigError where it holds
        something already."""
        directory = RunDirectory.create(Path(folder), "federate")
        for record in self.records:
            directory.append_history(history_line(record, self.seed))
            directory.append_timing(timing_line(record))
        self.write(directory)
        return directory.path

    @classmethod
    def load(cls, folder: Path | str, task: Task) -> "Federated":
        """Read what `save`, or `federate(out=...)`, left in a folder; the task makes the network. DataError where the
        folder holds nothing that is whole, or a model of another network."""
        directory = RunDirectory(folder)
        path = directory.path / FACTS
        facts: Any = parse_json(readable(path, "a folder of federate(out=...) or Federated.save has it"), path)
        try:
            return _read(cls, directory, facts, task)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); get the folder again") from error

    def write(self, directory: RunDirectory, status: str = "completed", reason: str = "") -> None:
        """Write all but the history, which is there, into the folder of a run."""
        agreement = self.agreement
        directory.write_metrics(self.task.metrics)
        directory.write_data(fingerprints(agreement))
        arrays = Layout.of(self.module).unflatten(initial_vector(self.module))
        if agreement.standardizer is not None:
            arrays |= dict(zip(SCALER, (agreement.standardizer.mean, agreement.standardizer.scale), strict=True))
        directory.write_bytes(MODEL, serialised(arrays))
        directory.write_json(FACTS, self._facts())
        directory.write_summary(summary_of(self.records, self._chosen, status, reason or self.stopped))

    def _facts(self) -> dict[str, object]:
        agreement = self.agreement
        return {
            "layout": Layout.of(self.module).digest,
            "seed": self.seed,
            "best_round": self.best_round,
            "stopped": self.stopped,
            "silos": {name: asdict(silo) for name, silo in agreement.silos.items()},
            "test": agreement.test,
            "joined": dict(agreement.joined),
            "outside_scaler": dict(agreement.outside_scaler),
        }


def _read(cls: type[Federated], directory: RunDirectory, facts: Mapping[str, Any], task: Task) -> Federated:
    module = task.model(facts["seed"])
    layout, path = Layout.of(module), directory.path / MODEL
    if layout.digest != facts["layout"]:
        raise DataError(f"{path} is of another network than this task's; load it with the task it was trained with")
    arrays = tensors_of(read_model_file(path), path)
    scaler = Standardizer(*(arrays[name] for name in SCALER)) if SCALER[0] in arrays else None
    silos = {
        name: SiloDescription(**{**said, "metrics": tuple(said["metrics"])}) for name, said in facts["silos"].items()
    }
    agreement = Agreement(silos, scaler, task.layout(module), facts["test"], facts["joined"], facts["outside_scaler"])
    records = tuple(record for _, record in Checkpoint(directory).records())
    module = load_vector(module, layout.flatten(arrays)).eval()
    return cls(module, records, agreement, task, facts["seed"], facts["best_round"], facts["stopped"])


def summary_of(records: Sequence[RoundRecord], chosen: RoundRecord, status: str, reason: str) -> dict[str, Any]:
    """Return the flat results of a run: metrics of the chosen round, costs of all rounds, who was missing."""
    rounds = [record for record in records if record.server_round]
    return {
        **chosen.metrics,
        **missed(records),
        "round": chosen.server_round,
        "rounds": records[-1].server_round,
        "bytes_sent": sum(record.bytes_sent for record in rounds),
        "seconds.total": sum(record.seconds.get("total", 0.0) for record in rounds),
        "status": status,
        **({"reason": reason} if reason else {}),
    }


def without_bulk(record: RoundRecord) -> RoundRecord:
    """Return a record without what is large and kept elsewhere, as it comes back from disk."""
    return replace(
        record, metrics=dict(sorted(record.metrics.items())), state=None, notes=(), scores={}, models=None
    )  # fmt: skip
