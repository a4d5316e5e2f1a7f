"""A silo's style models: its own generator, trained and sent as an artifact, and those it received from others."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ray_fed.errors import DataError
from ray_fed.micrographs.line_widths import line_width, pixels_to_widen, widened
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.polycrystals import StyleName, render
from ray_fed.randomness import derived_seed, generator
from ray_fed.reading import read_json
from ray_fed.reporting.writing import write_atomically
from ray_fed.style_transfer.amplitude import AmplitudeBank, amplitude_bank, checked_bank, painted_with
from ray_fed.style_transfer.artifact import (
    CODEC_OF_BITS,
    CODECS,
    DEFAULT_LIMIT,
    StyleArtifact,
    kept,
    make_artifact,
    packed,
    psnr,
    unpacked,
)
from ray_fed.style_transfer.conditioning import GrainMaps
from ray_fed.style_transfer.image_features import GrainStatistics, noise_level
from ray_fed.style_transfer.networks import GeneratorSpec
from ray_fed.style_transfer.style_trial import StyleTrial, StyleTrialPlan, trained_score
from ray_fed.style_transfer.synthesis import MemorisationFinding, probe_memorisation, synthesise
from ray_fed.style_transfer.training import GeneratorTraining, Pairs, StylePlan

Images = np.ndarray
"""uint8 [n, h, w]."""


@dataclass(frozen=True)
class CodecCost:
    """What a codec costs and spoils, measured with the silo's own generator."""

    num_bytes: int
    psnr_db: float | None
    """Of images painted with the coded weights against those painted with the exact ones, held-out labels; None where
    they are the same."""


@dataclass(frozen=True)
class StyleReport:
    """What a silo says about its trained generator: means over images, none of a single one."""

    silo: str
    num_images: int
    losses: tuple[Mapping[str, float], ...]
    """Mean losses of each epoch."""
    finding: MemorisationFinding
    codecs: Mapping[str, CodecCost]


class StyleModels:
    """Style models of one silo. All that is kept is on the silo's own device and in its own `folder`."""

    def __init__(self, silo: str, train: MicrographSet, validation: MicrographSet, device: str, folder: str = ""):
        self.silo, self.device = silo, device
        self.train, self.validation = train, validation
        self.folder = Path(folder) if folder else None
        self.report: StyleReport | None = None
        self._generator: nn.Module | None = None
        self._spec: GeneratorSpec | None = None
        self._statistics = GrainStatistics()
        self._received: dict[tuple[str, str], StyleArtifact] = {}
        self._networks: dict[tuple[str, str], nn.Module] = {}
        self._banks: dict[str, AmplitudeBank] = {}
        self._own_pairs: Pairs | None = None
        self._grain_maps: dict[tuple[bool, int], GrainMaps] = {}
        self._own_width = line_width(train.masks)
        self.trials: dict[tuple[str, str], StyleTrial] = {}
        self._real_score: dict[str, float] = {}
        self.least_help = 0.0
        """Styles that teach a smaller share of what the silo's real images teach are left out."""

    # ---- the silo's own generator

    def learn(self, plan: StylePlan, seed: int) -> StyleReport:
        """Train the generator (Algorithm 1, line 9), or recall it if it was trained here before a restart."""
        digest = f"{derived_seed(seed, 'style of', self.silo, repr(plan), self._fingerprint()):016x}"
        if not self._recall(digest, plan):
            training = GeneratorTraining(self._pairs, plan, derived_seed(seed, "style training", self.silo))
            self._generator, losses = training.run()
            self._spec = plan.generator
            self._statistics = self._with_noise(seed)
            self.report = self._examined(losses, seed)
            self._keep(digest)
        assert self.report is not None
        return self.report

    def release(self, codec: str, checks: bool = True) -> np.ndarray:
        """Return the generator as a message (Algorithm 1, line 10); DataError when it repeats training images."""
        if self.report is None or self._generator is None or self._spec is None:
            raise DataError(f"silo '{self.silo}' has no generator yet; let it learn one first")
        if checks and not self.report.finding.passed:
            raise DataError(
                f"silo '{self.silo}' keeps its generator: {self.report.finding}; train it for fewer epochs or on more "
                "images, or allow it with --memorisation warn"
            )
        return packed(self._artifact(codec))

    # ---- the others' styles

    def receive(self, sender: str, codec: str, message: object, limit: int = DEFAULT_LIMIT) -> int:
        """Keep another silo's generator, checked; returns its bytes."""
        artifact = unpacked(message, sender, limit)
        artifact.header.generator.check_size(*self.train.size)
        self._received[sender, codec] = artifact
        self._networks.pop((sender, codec), None)
        if self.folder:
            write_atomically(self._artifact_path(sender, codec), packed(artifact).tobytes())
        return artifact.num_bytes

    def try_styles(self, codec: str, plan: StyleTrialPlan, seed: int) -> dict[str, StyleTrial]:
        """Return sender -> what its style teaches here, measured once and kept over restarts."""
        for sender in self._senders(codec, also_left_out=True):
            if (sender, codec) not in self.trials:
                trial = self._tried(sender, codec, plan, seed)
                self.trials[sender, codec] = trial
                if self.folder:
                    text = json.dumps({"sender": sender, "codec": codec, **asdict(trial)}, sort_keys=True)
                    write_atomically(self.folder / f"trial-{_file_name(sender)}-{codec}.json", text.encode())
        return {sender: trial for (sender, each), trial in self.trials.items() if each == codec}

    def is_used(self, sender: str, codec: str) -> bool:
        """Whether a style is mixed into training: one that was tried and teaches too little is not."""
        trial = self.trials.get((sender, codec))
        return trial is None or trial.help_share >= self.least_help

    def _tried(self, sender: str, codec: str, plan: StyleTrialPlan, seed: int) -> StyleTrial:
        own_seed, train = derived_seed(seed, "trial", self.silo), self.train
        if not self._real_score:
            self._real_score = trained_score(plan, train.images, train.masks, self.validation, own_seed, self.device)
        painted = self._paint(sender, codec, train, np.arange(len(train)), own_seed)
        score = trained_score(plan, painted, train.masks, self.validation, own_seed, self.device)
        return StyleTrial(score, self._real_score)

    def amplitudes(self) -> AmplitudeBank:
        return amplitude_bank(self.silo, self.train.images)

    def receive_amplitudes(self, sender: str, bank: object) -> int:
        """Keep another silo's amplitudes, checked; returns their bytes."""
        self._banks[sender] = checked_bank(bank, sender, self.train.size)
        return self._banks[sender].num_bytes

    # ---- painting

    def transferred(self, codec: str, index: np.ndarray, seed: int) -> dict[str, Images]:
        """Return sender -> images of its style on the silo's own training labels `index` (Algorithm 1, line 15); of the
        styles that are used, perhaps none."""
        return {sender: self._paint(sender, codec, self.train, index, seed) for sender in self._senders(codec)}

    def amplitude_painted(self, index: np.ndarray, seed: int) -> dict[str, Images]:
        """Return sender -> the silo's own images `index` with that silo's amplitudes."""
        if not self._banks:
            raise DataError(f"silo '{self.silo}' has received no amplitudes")
        return {
            sender: painted_with(self.train.images[index], bank, generator(seed, "amplitudes", self.silo, sender))
            for sender, bank in sorted(self._banks.items())
        }

    def rendered(self, styles: Mapping[str, StyleName], gap: float, index: np.ndarray, seed: int) -> dict[str, Images]:
        """Return silo -> images of its style on the silo's own labels by the true renderer: what no silo has."""
        found = {}
        for other, style in sorted(styles.items()):
            draws = generator(seed, "oracle", self.silo, other)
            found[other] = np.stack([render(mask, style, draws, gap) for mask in self.train.masks[index]])
        return found

    def held_out_pictures(self, codec: str, index: np.ndarray, seed: int) -> dict[str, Images]:
        """Return sender -> images of its style (and the silo's own) on the validation labels `index`."""
        found = {self.silo: self._paint(self.silo, "", self.validation, index, seed)}
        return found | {
            sender: self._paint(sender, codec, self.validation, index, seed)
            for sender in self._senders(codec, also_left_out=True)
        }

    # ---- inside

    @property
    def _pairs(self) -> Pairs:
        if self._own_pairs is None:
            self._own_pairs = Pairs.of(self.train.images, self.train.masks, self.device)
        return self._own_pairs

    @property
    def _held_out(self) -> Pairs:
        return Pairs.of(self.validation.images, self.validation.masks, self.device)

    def _own_network(self) -> nn.Module:
        assert self._generator is not None
        return self._generator

    def _senders(self, codec: str, also_left_out: bool = False) -> list[str]:
        senders = sorted(sender for sender, their_codec in self._received if their_codec == codec)
        if not senders:
            raise DataError(f"silo '{self.silo}' has received no generator as {codec}")
        return [sender for sender in senders if also_left_out or self.is_used(sender, codec)]

    def _network(self, sender: str, codec: str) -> nn.Module:
        """Return a received network, built once."""
        if (sender, codec) not in self._networks:
            self._networks[sender, codec] = self._received[sender, codec].generator().to(self.device)
        return self._networks[sender, codec]

    def _paint(self, sender: str, codec: str, part: MicrographSet, index: np.ndarray, seed: int) -> Images:
        """Paint labels of a part of the silo's micrographs in a style; codec "" is the silo's own generator."""
        if codec:
            header, network = self._received[sender, codec].header, self._network(sender, codec)
            spec, statistics, width = header.generator, header.grains, header.line_width_px
        else:
            assert self._spec is not None
            spec, statistics, width, network = self._spec, self._statistics, 0.0, self._own_network()
        maps = self._maps(part, width)
        own_seed = derived_seed(seed, "synthesis", self.silo, sender)
        where = torch.from_numpy(np.asarray(index, np.int64)).to(self.device)
        return synthesise(network, spec, maps, where, statistics, own_seed).cpu().numpy()

    def _maps(self, part: MicrographSet, line_width_px: float) -> GrainMaps:
        """Return the grains of a part's labels, their lines drawn about as wide as a sender's; 0 keeps them.

        The label that goes with the painted image stays the silo's own.
        """
        steps = pixels_to_widen(self._own_width, line_width_px) if line_width_px else 0
        key = (part is self.train, steps)
        if key not in self._grain_maps:
            self._grain_maps[key] = GrainMaps.of(widened(part.masks, steps), self.device)
        return self._grain_maps[key]

    def _artifact(self, codec: str) -> StyleArtifact:
        assert self._generator is not None
        assert self._spec is not None
        assert self.report is not None
        return make_artifact(
            self.silo, self._generator, self._spec, CODECS[codec],
            num_images=len(self.train), validation_l1=self.report.finding.held_out_l1,
            line_width_px=self._own_width, grains=self._statistics,
        )  # fmt: skip

    def _with_noise(self, seed: int) -> GrainStatistics:
        """Return the grains' statistics with the noise that the generator leaves out."""
        assert self._spec is not None
        pairs, index = self._pairs, torch.arange(min(len(self._pairs), 16), device=self.device)
        own_seed = derived_seed(seed, "noise", self.silo)
        painted = synthesise(self._own_network(), self._spec, pairs.maps, index, pairs.statistics, own_seed)
        masks = self.train.masks[: len(index)]
        real, made = (noise_level(images, masks) for images in (self.train.images[: len(index)], painted.cpu().numpy()))
        return replace(pairs.statistics, noise=max(0.0, real**2 - made**2) ** 0.5 / 255)

    def _examined(self, losses: list[dict[str, float]], seed: int) -> StyleReport:
        assert self._spec is not None
        finding = probe_memorisation(
            self._own_network(), self._spec, self._pairs, self._held_out, self._statistics, seed
        )
        self.report = StyleReport(self.silo, len(self.train), tuple(losses), finding, {})
        return StyleReport(self.silo, len(self.train), tuple(losses), finding, self._codec_costs(seed))

    def _codec_costs(self, seed: int) -> dict[str, CodecCost]:
        assert self._spec is not None
        held_out, spec = self._held_out, self._spec
        index = torch.arange(min(len(held_out), 16), device=self.device)
        where = (held_out.maps, index, self._statistics, derived_seed(seed, "codec", self.silo))
        # In full precision: what is measured is the weights' rounding, not that of the arithmetic.
        exact = synthesise(self._own_network(), spec, *where, low_precision=False).cpu().numpy()
        found = {}
        for codec in CODECS:
            artifact = self._artifact(codec)
            coded = synthesise(artifact.generator(), spec, *where, low_precision=False).cpu().numpy()
            quality = psnr(exact, coded, 255)
            found[codec] = CodecCost(artifact.num_bytes, quality if math.isfinite(quality) else None)
        return found

    def _fingerprint(self) -> str:
        import hashlib

        digest = hashlib.sha256(self.train.images.tobytes())
        digest.update(self.train.masks.tobytes())
        return digest.hexdigest()[:16]

    def _artifact_path(self, sender: str, codec: str) -> Path:
        assert self.folder is not None
        return self.folder / f"received-{_file_name(sender)}-{codec}.style"

    def _keep(self, digest: str) -> None:
        """Write the generator and what was found about it, the latter last: it stands for the whole."""
        if self.folder:
            assert self.report is not None
            write_atomically(self.folder / f"own-{digest}.style", packed(self._artifact("fp32")).tobytes())
            text = json.dumps(asdict(self.report), sort_keys=True)
            write_atomically(self.folder / f"own-{digest}.json", text.encode())

    def _recall(self, digest: str, plan: StylePlan) -> bool:
        path = self.folder / f"own-{digest}.json" if self.folder else None
        if path is None or not path.is_file():
            return False
        found = read_json(path, "remove the file, and the generator is made again")
        if set(found["finding"]) != set(MemorisationFinding.__dataclass_fields__):
            return False  # of a version that asked other questions: learn, and ask, again
        costs = {codec: CodecCost(**cost) for codec, cost in found["codecs"].items()}
        self.report = StyleReport(
            self.silo, found["num_images"], tuple(found["losses"]), MemorisationFinding(**found["finding"]), costs
        )
        own = kept(path.with_suffix(".style"))
        self._generator, self._spec = own.generator().to(self.device), plan.generator
        self._statistics = own.header.grains
        return True

    def recall_received(self) -> None:
        """Read what others sent before a restart; DataError names a file that is not what it is called."""
        for path in sorted(self.folder.glob("received-*.style")) if self.folder else ():
            artifact = kept(path)
            sender, codec = artifact.header.silo, CODEC_OF_BITS[artifact.header.bits]
            if self._artifact_path(sender, codec) != path or sender == self.silo:
                raise DataError(
                    f"{path}: it holds the generator of silo '{sender}' as {codec}, which is not what it is called; "
                    "remove the file, and the generator is sent again"
                )
            self._received[sender, codec] = artifact
        for path in sorted(self.folder.glob("trial-*.json")) if self.folder else ():
            found = read_json(path, "remove the file, and the style is tried again")
            self.trials[found["sender"], found["codec"]] = StyleTrial(found["painted"], found["real"])
            self._real_score = found["real"]


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
