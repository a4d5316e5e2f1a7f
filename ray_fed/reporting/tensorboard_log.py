"""TensorBoard events of a run, written with tensorboard's own writer: torch's costs two seconds to import.

Tags are WHO/QUANTITY in every pipeline, and TensorBoard shows them in this order:

    global       the federation's model and its costs, by round
    model/NAME   another model: a baseline, a method of a study, an attack
    picture      the figures of the report
    result       what the run came to: one point, a column of the HParams table
    silo/NAME    a silo's part: the model on its rows, its costs

A run directory is one run of TensorBoard, with more only for further seeds and for the trials of a sweep: of more than
40 runs it shows none until they are ticked one by one, and a chart compares one tag over runs. What else belongs into
one chart (a silo beside the others, a baseline beside the federation) is grouped in the Custom Scalars tab.
"""

# Protocol buffer classes are made at import; a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false

import io
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ray_fed.metrics import TRAIN_LOSS, Metric, reported

GLOBAL, SILO, MODEL, RESULT, PICTURE = "global", "silo", "model", "result", "picture"
TAG = re.compile(r"(global|result|picture|(silo|model)/[^/]+)/.+")
"""Tags of scalars and images."""
NO_HYPERPARAMETERS = ("command", "set", "out", "address", "run_directory")
"""Parts of a configuration by which no two runs can be compared."""
LONGEST_VALUE = 120

COSTS = {
    "participants": "Silos that took part",
    "failures": "Silos that failed",
    "bytes_sent": "Bytes sent",
    "seconds_compute": "Seconds computing",
    "seconds_communicate": "Seconds communicating",
}
"""Last part of a curve's tag -> title of its chart."""


def chart_titles(metrics: Iterable[Metric]) -> dict[str, str]:
    """Return the last part of each curve's tag -> title of its chart, of a task with these metrics."""
    return {TRAIN_LOSS: "Training loss", **{metric.name: metric.title for metric in reported(metrics)}, **COSTS}


def global_tag(quantity: str) -> str:
    """Return the tag of a curve of the whole federation: "global/train_loss"."""
    return f"{GLOBAL}/{quantity}"


def silo_tag(silo: str, quantity: str) -> str:
    """Return the tag of a silo's curve: "silo/mit/train_loss"."""
    return f"{SILO}/{silo}/{quantity}"


def model_tag(model: str, quantity: str) -> str:
    """Return the tag of a curve of another model than the federation's: "model/pooled/accuracy"."""
    return f"{MODEL}/{model.replace('/', '-')}/{quantity}"


def result_tag(quantity: str) -> str:
    """Return the tag of what a run came to: "result/accuracy"."""
    return f"{RESULT}/{quantity}"


def picture_tag(name: str) -> str:
    """Return the tag of a picture: "picture/parity"."""
    return f"{PICTURE}/{name}"


def hyperparameters_of(config: Mapping[str, object], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return the fields of a configuration as HParams has them: plain values, lists as text, parts of parts with dots;
    without what is not set, and what no two runs have in common."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= hyperparameters_of(value, f"{name}.")
        elif isinstance(value, bool | int | float):
            found[name] = value
        elif value not in (None, "", (), []) and name not in NO_HYPERPARAMETERS:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            found[name] = text[:LONGEST_VALUE]
    return found


class EventLog:
    """Events of a TensorBoard run. Use as a context manager, or call `close`; events reach the disk every few seconds.

    part: of a run that is written in parts, what the events are of; those written of it before are deleted.
    """

    def __init__(self, folder: Path | str, flush_seconds: int = 5, part: str = ""):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder, suffix = Path(folder), f".{part}" if part else ""
        for old in self.folder.glob("events.*") if part else ():
            if old.name.endswith(suffix):
                old.unlink()
        self._writer = EventFileWriter(str(folder), flush_secs=flush_seconds, filename_suffix=suffix)
        self._closed = False

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to a curve; NaN is kept and drawn as a gap."""
        self._add(step, tag=tag, simple_value=float(value))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of several curves (tag -> value)."""
        for tag, value in values.items():
            self.scalar(tag, value, step)

    def image(self, tag: str, image: Path | str | bytes | np.ndarray, step: int = 0) -> None:
        """Add a picture: a PNG file, its bytes, or uint8 [height, width, 3 or 4]."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        png, (width, height) = _as_png(image)
        picture = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._add(step, tag=tag, image=picture)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Add a text, shown as Markdown."""
        from tensorboard.plugins.text import metadata

        about = metadata.create_summary_metadata(display_name=tag, description="")
        self._add(step, tag=tag, metadata=about, tensor=_string_tensor(markdown.encode()))

    def custom_layout(
        self,
        silos: Iterable[str],
        titles: Mapping[str, str],
        of_silos: Sequence[str] | None = None,
        models: Sequence[str] = (),
    ) -> None:
        """Group the curves in the Custom Scalars tab: the federation's beside those of other models, then one chart per
        quantity over all silos, for those in `of_silos` (default: all that a silo has).

        titles: quantity -> title of its chart. models: names in tags of other models.
        """
        names = list(silos)
        each = of_silos or [name for name in titles if name not in ("participants", "failures")]
        self.layout(
            {
                "Federation": {
                    titles[name]: [global_tag(name), *(model_tag(model, name) for model in models)] for name in titles
                },
                "Silos": {titles[name]: [silo_tag(silo, name) for silo in names] for name in each},
            }
        )

    def layout(self, categories: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Group curves in the Custom Scalars tab: category -> title of a chart -> tags of its curves."""
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata

        layout = layout_pb2.Layout(category=[_category(title, charts) for title, charts in categories.items()])
        self._add(
            0,
            tag=metadata.CONFIG_SUMMARY_TAG,
            metadata=metadata.create_summary_metadata(),
            tensor=_string_tensor(layout.SerializeToString()),
        )

    def hyperparameters(self, config: Mapping[str, object], name: str) -> None:
        """Say which values this run has, for the HParams table and parallel coordinates.

        name: what the table calls it. No run says which values all runs have: TensorBoard would take the first one's
        word for every run below the folder it shows, of other pipelines, too.
        """
        from tensorboard.plugins.hparams import summary_v2

        self._add_all(summary_v2.hparams_pb(hyperparameters_of(config), trial_id=name))

    def outcome(self, finals: Mapping[str, object], figures: Iterable[Path] = (), step: int = 0) -> None:
        """Add what the run came to (quantity -> number; what is none is left out), and its pictures by their names."""
        numbers = {name: value for name, value in finals.items() if isinstance(value, int | float)}
        self.scalars({result_tag(name): value for name, value in numbers.items()}, step)
        for path in figures:
            self.image(picture_tag(path.stem), path, step)

    def _add_all(self, summary: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        own = Summary.FromString(summary.SerializeToString())  # type: ignore[attr-defined]
        self._writer.add_event(Event(wall_time=time.time(), step=0, summary=own))

    def close(self) -> None:
        """Write what is left; a second call does nothing."""
        if not self._closed:
            self._writer.close()
        self._closed = True

    def _add(self, step: int, **value: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        assert not self._closed, "this EventLog is closed"
        summary = Summary(value=[Summary.Value(**value)])  # type: ignore[arg-type]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _category(title: str, charts: Mapping[str, Sequence[str]]):
    """Return a group of charts, title -> tags; tags are matched literally whatever a silo is called."""
    from tensorboard.plugins.custom_scalar import layout_pb2

    return layout_pb2.Category(
        title=title,
        chart=[
            layout_pb2.Chart(
                title=f"{title}: {chart}",
                multiline=layout_pb2.MultilineChartContent(tag=[f"^{re.escape(tag)}$" for tag in tags]),
            )
            for chart, tags in charts.items()
        ],
    )


def _string_tensor(content: bytes):
    from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

    return tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, string_val=[content], tensor_shape=tensor_shape_pb2.TensorShapeProto()
    )


def _as_png(image: Path | str | bytes | np.ndarray) -> tuple[bytes, tuple[int, int]]:
    """Return (PNG bytes, (width, height) in pixels)."""
    from PIL import Image

    if isinstance(image, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        image = buffer.getvalue()
    png = image if isinstance(image, bytes) else Path(image).read_bytes()
    with Image.open(io.BytesIO(png)) as picture:
        return png, picture.size
