"""FedTransfer as a task of the runtime: segmentation of micrographs by silos that can also exchange styles."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from ray_fed.config import require
from ray_fed.federation.task import SiloSpec
from ray_fed.micrographs.polycrystals import StyleName
from ray_fed.micrographs.segmentation_task import SegmentationTask
from ray_fed.micrographs.tile_trainer import TileRows
from ray_fed.micrographs.tiles import SetSource, SiloTiles
from ray_fed.style_transfer.artifact import DEFAULT_LIMIT
from ray_fed.style_transfer.methods import METHODS, Method, method_named
from ray_fed.style_transfer.sources import MicrographSource, Parts, require_parts
from ray_fed.style_transfer.training import PRESETS, StylePlan

if TYPE_CHECKING:
    from ray_fed.style_transfer.silo import StyleSilo

SESSION_MARK = "@"


@dataclass(frozen=True)
class FedTransferTask(SegmentationTask):
    """`SiloSpec.source` is a `MicrographSource`. One task serves all methods: a session's name says which."""

    style: StylePlan = field(default_factory=lambda: PRESETS["hybrid"])
    style_seed: int = 0
    fresh_noise: bool = True
    """Paint the synthetic images anew for every epoch, with other grains and noise."""
    memorisation: str = "refuse"
    """refuse: a generator that repeats training images stays in its silo; warn: it leaves, the run says so."""
    artifact_limit: int = DEFAULT_LIMIT
    """Bytes of a generator that a silo accepts."""
    styles: tuple[tuple[str, StyleName], ...] = ()
    """(silo, embedded style), for the oracle; empty for real micrographs."""
    gap: float = 1.0
    """How far apart the embedded styles are, for the oracle."""
    method: Method = METHODS["fed_avg"]
    """The method that a coordinator with this task runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("refuse", "warn")
        require(self.memorisation in known, f"memorisation={self.memorisation!r} must be refuse or warn")
        require(self.artifact_limit > 0, f"artifact_limit={self.artifact_limit} must be positive bytes")

    def of(self, method: Method) -> "FedTransferTask":
        """Return the task as a method runs it."""
        design = dataclasses.replace(self.design, norm=method.norm, greys=method.greys)
        return dataclasses.replace(self, method=method, design=design)

    def for_session(self, session: str) -> "FedTransferTask":
        """Return the task of the method that a session's name begins with."""
        return self.of(method_named(session.split(SESSION_MARK)[0]))

    def agreement(self) -> Mapping[str, str]:
        """How values are normalised belongs to a method, not to the federation."""
        common = dataclasses.replace(self.design, norm="batch", greys="fixed")
        return {"task": "grain boundaries", "network": repr(common)}

    def parts(self, spec: SiloSpec) -> Parts:
        return require_parts(spec.name, cast(MicrographSource, spec.source).parts(spec.name))

    def load(self, spec: SiloSpec) -> TileRows:
        """Return the silo's own tiles."""
        parts = self.parts(spec)
        own = SetSource(SiloTiles(parts.train, parts.validation))
        rows = super().load(dataclasses.replace(spec, source=own))
        height, width = parts.train.size
        return dataclasses.replace(rows, fingerprint={**rows.fingerprint, "columns": f"{height} x {width}"})

    def silo(self, spec: SiloSpec, device: str = "cpu") -> "StyleSilo":
        from ray_fed.style_transfer.silo import StyleSilo

        return StyleSilo(spec, self, device)


def session_name(method: Method, fold: int, seed: int) -> str:
    return f"{method.name}{SESSION_MARK}fold{fold}-seed{seed}"
