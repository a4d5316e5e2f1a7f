"""TensorBoard events of a run, written with tensorboard's own writer: torch's costs two seconds to import."""

# Protocol buffer classes are made at import; a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false

import io
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ray_fed.metrics import TRAIN_LOSS, Metric, reported

GLOBAL = "global"

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
    return f"silo/{silo}/{quantity}"


class EventLog:
    """One TensorBoard run. Use as a context manager, or call `close`; events reach the disk every few seconds."""

    def __init__(self, folder: Path | str, flush_seconds: int = 5):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder = Path(folder)
        self._writer = EventFileWriter(str(folder), flush_secs=flush_seconds)
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
        self, silos: Iterable[str], titles: Mapping[str, str], of_silos: Sequence[str] | None = None
    ) -> None:
        """Group the curves in the Custom Scalars tab: the federation's, then one chart per quantity over all silos,
        for those in `of_silos` (default: all that a silo has). titles: quantity -> title of its chart."""
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata

        names = list(silos)
        each = of_silos or [name for name in titles if name not in ("participants", "failures")]
        layout = layout_pb2.Layout(
            category=[
                _category("Federation", {titles[name]: [global_tag(name)] for name in titles}),
                _category("Silos", {titles[name]: [silo_tag(silo, name) for silo in names] for name in each}),
            ]
        )
        self._add(
            0,
            tag=metadata.CONFIG_SUMMARY_TAG,
            metadata=metadata.create_summary_metadata(),
            tensor=_string_tensor(layout.SerializeToString()),
        )

    def hyperparameters(self, values: Mapping[str, object], name: str) -> None:
        """Say which values this run has, for the HParams table and parallel coordinates."""
        from tensorboard.plugins.hparams import summary_v2

        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
        self._add_all(summary_v2.hparams_pb(plain, trial_id=name))

    def experiment(self, fields: Mapping[str, Sequence[object]], metrics: Mapping[str, str]) -> None:
        """Say, once for a sweep, which fields are varied over which values and which tags are its metrics."""
        from tensorboard.plugins.hparams import summary_v2

        hparams = [summary_v2.HParam(field, _domain(summary_v2, values)) for field, values in fields.items()]
        shown = [summary_v2.Metric(tag, display_name=title) for tag, title in metrics.items()]
        self._add_all(summary_v2.hparams_config_pb(hparams, shown))

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


def _domain(summary_v2, values: Sequence[object]):
    """Return the discrete domain of a field; a field with numbers and words has words."""
    one_kind = len({type(value) for value in values}) == 1 and isinstance(values[0], bool | int | float | str)
    return summary_v2.Discrete(list(values) if one_kind else [str(value) for value in values])


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
