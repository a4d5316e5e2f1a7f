"""FedTransfer as a task of the runtime, and its silo: segmentation by silos that can also exchange styles."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy import ndimage

from ray_fed.config import require
from ray_fed.errors import SiloFailed
from ray_fed.federation.messages import Artifact, SessionSpec, SiloDescription, Update, Vector
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import LocalTrainer
from ray_fed.micrographs.line_widths import line_width
from ray_fed.micrographs.micrograph_set import MicrographSet, joined
from ray_fed.micrographs.polycrystals import StyleName
from ray_fed.micrographs.segmentation_task import SegmentationTask, TileRows, TileTrainer
from ray_fed.micrographs.tiles import SetSource, SiloTiles
from ray_fed.randomness import derived_seed
from ray_fed.reporting.writing import write_atomically
from ray_fed.style_transfer.amplitude import bank_bytes, bank_of
from ray_fed.style_transfer.artifact import CODECS, DEFAULT_LIMIT
from ray_fed.style_transfer.methods import METHODS, Method, method_named
from ray_fed.style_transfer.pictures import prediction_sheet, style_sheet
from ray_fed.style_transfer.sources import MicrographSource, Parts, require_parts
from ray_fed.style_transfer.style_models import StyleModels
from ray_fed.style_transfer.style_trial import StyleTrialPlan
from ray_fed.style_transfer.training import PRESETS, StylePlan

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
    trial_steps: int = 64
    """Steps of the trainings by which a received style is tried before it is used."""
    least_help: float = 0.0
    """Share of what a silo's own real images teach that a style must teach to be used there; 0: all are used."""
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
        require(self.trial_steps > 0, f"trial_steps={self.trial_steps} must be positive")
        require(0 <= self.least_help <= 1, f"least_help={self.least_help} must be a share")
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
        return dataclasses.replace(rows, fingerprint={**rows.fingerprint, "tile": [height, width]})

    def silo(self, spec: SiloSpec, device: str = "cpu") -> "StyleSilo":
        return StyleSilo(spec, self, device)


def session_name(method: Method, fold: int, seed: int) -> str:
    return f"{method.name}{SESSION_MARK}fold{fold}-seed{seed}"


NOTHING = np.zeros(0, np.uint8)


class StyleSilo(Silo):
    """See `Silo` and `StyleModels`. Discriminator, images and labels never leave."""

    def __init__(self, spec: SiloSpec, task: FedTransferTask, device: str = "cpu"):
        super().__init__(spec, task, device)
        self.fed_transfer = task
        self._description: SiloDescription | None = None
        self._finished: tuple[str, TileTrainer] | None = None
        self._own_states: dict[tuple[str, int], dict[str, torch.Tensor]] = {}

    def open(self) -> SiloDescription:
        """Every method's coordinator asks; the micrographs are read once."""
        if self._description is None:
            parts = self.fed_transfer.parts(self.spec)
            self._description = super().open()
            folder = str(Path(self.spec.state_folder) / "style") if self.spec.state_folder else ""
            self.test_set = parts.test
            self.style_models = StyleModels(self.spec.name, parts.train, parts.validation, self.device, folder)
            self.style_models.least_help = self.fed_transfer.least_help
            self.style_models.recall_received()
            self._write_notes(parts)
        return self._description

    def queries(self) -> Mapping[str, Callable[..., Artifact]]:
        return {
            "learn_style": self.learn_style, "style": self.style, "take_style": self.take_style,
            "amplitudes": self.amplitudes, "take_amplitudes": self.take_amplitudes, "paint_styles": self.paint_styles,
            "try_styles": self.try_styles, "describe_data": self.describe_data,
            "test": self.test, "test_apart": self.test_apart,
        }  # fmt: skip

    # ---- styles

    def learn_style(self) -> Artifact:
        """Train the generator and say what came out: losses per epoch, the memorisation probe, the codecs' costs."""
        report = self.style_models.learn(self.fed_transfer.style, self.fed_transfer.style_seed)
        finding = dataclasses.asdict(report.finding) | {"passed": int(report.finding.passed)}
        facts = {f"memorisation.{name}": value for name, value in finding.items()}
        for epoch, losses in enumerate(report.losses, 1):
            facts |= {f"epoch.{epoch}.{name}": value for name, value in losses.items()}
        for codec, cost in report.codecs.items():
            facts[f"codec.{codec}.bytes"] = cost.num_bytes
            if cost.psnr_db is not None:
                facts[f"codec.{codec}.psnr_db"] = cost.psnr_db
        return self._answer("learn_style", facts)

    def style(self, codec: str) -> Artifact:
        """Return the generator as a message, unless it repeats training images."""
        message = self.style_models.release(codec, self.fed_transfer.memorisation == "refuse")
        return self._answer("style", {"bits": CODECS[codec]}, message)

    def take_style(self, codec: str, message: Artifact) -> Artifact:
        """Keep another silo's generator, which came here without passing the driver or the coordinator."""
        size = self.style_models.receive(message.silo, codec, message.data, self.fed_transfer.artifact_limit)
        return self._answer("take_style", {"bytes": size})

    def amplitudes(self) -> Artifact:
        bank = self.style_models.amplitudes()
        facts = {"spectra": len(bank.amplitudes), "height": bank.image_size[0], "width": bank.image_size[1]}
        return self._answer("amplitudes", facts, bank_bytes(bank))

    def take_amplitudes(self, message: Artifact) -> Artifact:
        bank = bank_of(message.silo, message.data, message.facts)
        return self._answer("take_amplitudes", {"bytes": self.style_models.receive_amplitudes(message.silo, bank)})

    def paint_styles(self, codec: str) -> Artifact:
        """Draw labels, real and synthetic images (the paper's Fig. 5) into the silo's own folder."""
        index = np.arange(min(4, len(self.style_models.validation)))
        painted = self.style_models.held_out_pictures(codec, index, self.fed_transfer.style_seed)
        self._draw("styles.png", style_sheet(self.spec.name, self.style_models.validation.subset(index), painted))
        return self._answer("paint_styles", {"images": len(index)})

    def try_styles(self, codec: str, learning_rate: float) -> Artifact:
        """Say what each received style teaches here; one that teaches too little is left out from here on."""
        task = self.fed_transfer
        plan = StyleTrialPlan(
            task.design, task.trial_steps, task.batch_size, learning_rate, task.boundary_weight, task.erasing
        )
        facts: dict[str, float] = {}
        for sender, trial in self.style_models.try_styles(codec, plan, task.style_seed).items():
            facts |= {f"{sender}.painted.{name}": value for name, value in trial.painted.items()}
            facts |= {f"{sender}.real.{name}": value for name, value in trial.real.items()}
            facts[f"{sender}.help"] = trial.help_share
            facts[f"{sender}.used"] = int(self.style_models.is_used(sender, codec))
        return self._answer("try_styles", facts)

    # ---- data

    def describe_data(self) -> Artifact:
        """Say how many micrographs and tiles there are and what is in them: counts and means, no name."""
        parts = self._parts_described
        facts: dict[str, float] = {}
        for name, part in parts.items():
            facts |= {f"{name}.tiles": len(part), f"{name}.micrographs": len(set(part.sources))}
        train = parts["train"]
        grains = [int(ndimage.label(mask == 0)[1]) for mask in train.masks]  # type: ignore[index]
        facts |= {
            "boundary_share": float(train.masks.mean()),
            "line_width_px": line_width(train.masks),
            "grains_per_tile": float(np.median(grains)),
            "notes": len(train.notes),
        }
        if train.pixel_size_um:
            facts["pixel_size_um"] = train.pixel_size_um
        return self._answer("describe_data", facts)

    def _write_notes(self, parts: Parts) -> None:
        """Keep what was done to the files, and a contact sheet, in the silo's own folder: they name and show data."""
        self._parts_described = parts._asdict()
        if self.spec.state_folder:
            text = "\n".join(parts.train.notes or ("all files were used as they are",)) + "\n"
            write_atomically(Path(self.spec.state_folder) / "data.txt", text.encode())

    # ---- segmentation

    def make_trainer(self, spec: SessionSpec) -> TileTrainer:
        """Make network and pool of the session's method."""
        task, samples = self.fed_transfer.for_session(spec.session), self.samples
        rows = self._rows_for(task.method, spec.plan.seed)
        if rows is not samples.rows:
            features, targets = (torch.from_numpy(part).to(self.device) for part in (rows.features, rows.targets))
            samples = dataclasses.replace(samples, rows=rows, features=features, targets=targets)
        return task.trainer(samples, spec, self.spec)

    def fit(self, session: str, server_round: int, vector: Vector) -> Update:
        """Also keep what of the model stays here (FedBN) as it is after the round, which may be the chosen one."""
        update = super().fit(session, server_round, vector)
        own = self._session(session).own_state()
        self._own_states[session, server_round] = {name: tensor.clone() for name, tensor in own.items()}
        return update

    def close_session(self, session: str) -> None:
        """The trainer of the last session stays for the test."""
        if session in self.sessions:
            self._finished = (session, self._session(session))
        super().close_session(session)
        self._own_states = {key: state for key, state in self._own_states.items() if key[0] == session}

    def test(self, session: str, models: dict[str, tuple[int, Vector]], sheet: str = "") -> Artifact:
        """Score models on the silo's test set: model -> (round it is of, vector). Facts: `<model>.<metric>`.

        sheet: name of a file in the silo's folder to draw some predictions of the first model into.
        """
        facts = self._scores_of(session, models, self.test_set, sheet)
        return Artifact(self.spec.name, "test", len(self.test_set), facts, NOTHING)

    def test_apart(self, session: str, models: dict[str, tuple[int, Vector]]) -> Artifact:
        """Score models on each member's test set, in a silo that holds those of several: `<silo>.<model>.<metric>`."""
        facts, owners = {}, np.array([source.split("/")[0] for source in self.test_set.sources])
        for owner in dict.fromkeys(owners.tolist()):
            found = self._scores_of(session, models, self.test_set.subset(np.flatnonzero(owners == owner)))
            facts |= {f"{owner}.{name}": value for name, value in found.items()}
        return Artifact(self.spec.name, "test_apart", len(self.test_set), facts, NOTHING)

    def _scores_of(
        self, session: str, models: dict[str, tuple[int, Vector]], tiles: MicrographSet, sheet: str = ""
    ) -> dict[str, float]:
        trainer, facts = self._trainer(session), {}
        images = torch.from_numpy(tiles.images).to(self.device)
        for name, (server_round, vector) in models.items():
            logits = self._predicted(trainer, session, server_round, images, vector)
            scores = self.task.score(tiles.masks, logits)
            facts |= {f"{name}.{metric}": value for metric, value in scores.values().items()}
            if sheet and name == next(iter(models)):
                self._draw(sheet, prediction_sheet(tiles.subset(range(min(3, len(images)))), logits[:3]))
        return facts

    def _predicted(
        self, trainer: LocalTrainer, session: str, server_round: int, images: torch.Tensor, vector: Vector
    ) -> np.ndarray:
        kept = self._own_states.get((session, server_round))
        now = trainer.own_state()
        if kept is None and now and server_round and trainer.plan.buffers != "average":
            reason = f"what it kept of round {server_round} is gone: it was started again; run the method once more"
            raise SiloFailed(self.spec.name, "testing", reason)
        for name, tensor in (kept or {}).items():
            now[name].copy_(tensor)
        return trainer.predict(images, vector).cpu().numpy()

    def _trainer(self, session: str) -> TileTrainer:
        if self._finished and self._finished[0] == session:
            return self._finished[1]
        return self._session(session)

    def _session(self, session: str) -> TileTrainer:
        return cast(TileTrainer, super()._session(session))

    def _rows_for(self, method: Method, seed: int) -> TileRows:
        """Return the silo's own tiles and, by the method, synthetic ones on its own labels."""
        own = cast(TileRows, self.rows)
        if method.pool == "own" or method.cooperation == "pooled":
            return own

        def synthesis(epoch: int) -> MicrographSet:
            return self._synthetic(method, seed, epoch)

        first = synthesis(0)
        if len(first) == 0:
            return own
        return dataclasses.replace(
            own,
            features=np.concatenate([own.features, first.images]),
            targets=np.concatenate([own.targets, first.masks]),
            synthesis=synthesis if self.fed_transfer.fresh_noise else None,
        )

    def _synthetic(self, method: Method, seed: int, epoch: int) -> MicrographSet:
        """Return one synthetic image per own label and other silo."""
        train, task = self.style_models.train, self.fed_transfer
        index, own_seed = np.arange(len(train)), derived_seed(seed, "pool", method.pool, epoch)
        if method.pool == "transfer":
            painted = self.style_models.transferred(method.codec, index, own_seed)
        elif method.pool == "amplitude":
            painted = self.style_models.amplitude_painted(index, own_seed)
        else:
            others: dict[str, StyleName] = {name: style for name, style in task.styles if name != self.spec.name}
            painted = self.style_models.rendered(others, task.gap, index, own_seed)
        sets = [dataclasses.replace(train, images=images, name=sender) for sender, images in painted.items()]
        if not sets:
            return train.subset([])
        return joined(self.spec.name, sets)

    def _answer(self, what: str, facts: Mapping[str, float], data: np.ndarray = NOTHING) -> Artifact:
        return Artifact(self.spec.name, what, len(self.style_models.train), facts, data)

    def _draw(self, name: str, png: bytes) -> None:
        """Pictures show the silo's data, so they stay in the silo's own folder."""
        if self.spec.state_folder:
            write_atomically(Path(self.spec.state_folder) / "pictures" / name, png)
