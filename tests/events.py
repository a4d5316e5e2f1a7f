"""What TensorBoard would show of a run directory, read back with its own reader."""

from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from ray_fed.reporting.tensorboard_log import TAG


@dataclass(frozen=True)
class Shown:
    """Of one run of TensorBoard."""

    scalars: frozenset[str]
    pictures: frozenset[str]
    hyperparameters: dict[str, object]
    name: str
    """What the HParams table calls it."""


def shown(folder: Path) -> Shown:
    """Return what a folder of events shows; every tag must be of the one scheme."""
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    wrong = [tag for tag in (*tags["scalars"], *tags["images"]) if not TAG.fullmatch(tag)]
    assert wrong == []
    values, name = hyperparameters(events)
    return Shown(frozenset(tags["scalars"]), frozenset(tags["images"]), values, name)


def hyperparameters(events: EventAccumulator) -> tuple[dict[str, object], str]:
    """Return what the HParams table has of a run that was read, and what it calls it."""
    said = events.summary_metadata.get("_hparams_/session_start_info")
    content = said.plugin_data.content if said else b""
    info = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in info.hparams.items()}
    return values, info.group_name
