"""Every choice of `ray-fed fedtransfer`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from pipelines.update_options import Coding, UpdateOptions
from ray_fed.config import PathText, require, require_gpus, unknown_name

DEFAULT_METHODS = (
    "separate", "central", "fed_avg", "fed_avg_gn", "fed_bn", "amplitude", "transfer_fp32", "transfer_int8",
    "oracle",
)  # fmt: skip
"""All sixteen take more than 15 minutes with three seeds; benchmarks/fedtransfer.py runs them."""


@dataclass(frozen=True)
class FedTransferConfig(UpdateOptions):
    """Style generators move between silos, then a segmentation network is federated ("Data privacy protection in
    microscopic image analysis for material data mining", 2022)."""

    OPTION_GROUPS: ClassVar = {
        "preset": "scale", "data": "micrographs", "style": "style transfer", "methods": "segmentation",
        "strategy": "updates of the segmentation network", "seed": "run",
    }  # fmt: skip

    preset: Literal["default", "quick", "paper"] = "default"
    """default: all of Tables 2-3 at 96x96, three seeds, in under 15 minutes on two cores; quick: a look in under two
    minutes; paper: 400x400, 560 images per silo, 20 rounds, 5 folds, for a GPU. Options given besides it count."""
    data: tuple[PathText, ...] = ("austenite", "iron")
    """Silos: embedded styles (austenite, iron), or folders of micrographs with masks; NAME=FOLDER names a silo."""
    masks: tuple[str, ...] = field(default=(), metadata={"repeatable": "NAME=MEANING,..."})
    """What numbers in a folder's masks mean, where they are not 0 and 1 or 255: NAME=boundary:2,
    NAME=between_classes for masks of phases, NAME=instances where every grain has a number, or NAME=threshold:127 or
    NAME=threshold-below:127 (bright or dark boundaries) for masks smeared by JPEG (repeatable)."""
    image_files: tuple[str, ...] = field(default=(), metadata={"repeatable": "NAME=PATTERN,..."})
    """Which files of a folder are its images, if not those in images/: NAME=SUBFOLDER, or NAME=PATTERN with one * for
    the name that image and mask share, e.g. lab=scans/*.tif (repeatable)."""
    mask_files: tuple[str, ...] = field(default=(), metadata={"repeatable": "NAME=PATTERN,..."})
    """Which files are its masks, if not those in labels/ or masks/, e.g. lab=scans/*_mask.png; also outlines: a COCO
    file, LabelMe files (*.json) or ImageJ ROIs (*.zip) (repeatable)."""
    source_pattern: tuple[str, ...] = field(default=(), metadata={"repeatable": "NAME=REGEX"})
    """Which images are cut from one micrograph, so that they stay on one side of a split: a regular expression whose
    first group is the micrograph's name, e.g. "lab=(.+)_[0-9]+_[0-9]+"; if not given, index.csv (name, source_image)
    says it (repeatable)."""
    pixel_size_um: tuple[str, ...] = field(default=(), metadata={"repeatable": "NAME=MICROMETRES,..."})
    """Edge of a pixel of a folder's images; if not given, the column pixel_size_um of its index.csv, or what TIFF files
    state (ImageJ, FEI, Zeiss, OME). With it all silos are brought to one scale, which the models carry (repeatable)."""
    training_pixel_size_um: float | None = None
    """The pixel size that all images are brought to; if not given, the largest of the silos' own."""
    data_bar: tuple[str, ...] = field(default=(), metadata={"repeatable": "NAME=ROWS,..."})
    """Rows at the bottom of a folder's images that are a data bar, 0 for none; if not given, bars are looked for and
    what was cut is told (repeatable)."""
    most_tiles: int = 4000
    """Tiles of a folder that are used; of more, so many spread evenly over all its images."""
    size: int = 96
    """Height and width of images and tiles, pixels."""
    images: int = 80
    """Embedded images per silo for training and validation together."""
    test_images: int = 64
    """Embedded test images per silo; the same for all folds."""
    gap: float = 1.0
    """How far apart the embedded styles are: 0 alike, 1 fully apart."""
    spacing: float = 24.0
    """Mean distance of embedded grain centres, pixels."""
    folds: int = 5
    """Parts that training and validation images are divided into; one is for validation."""
    num_folds: int = 1
    """How many of the folds are run."""
    style: Literal["hybrid", "pix2pix", "pix2pixhd"] = "hybrid"
    """Generator and losses. pix2pix: U-Net, PatchGAN, cross-entropy, L1 (Eqs. 5-7); pix2pixhd: residual generator,
    two-scale discriminator, least squares, feature matching; hybrid: these losses on the U-Net."""
    style_epochs: int = 24
    """Epochs of generator training."""
    style_width: int = 16
    """Channels of the first layer of generator and discriminator."""
    style_learning_rate: float = 4e-4
    """Of both, constant for half of the epochs, then linear to 0."""
    style_inputs: tuple[str, ...] = ("label", "level", "band", "light", "line", "noise")
    """What the generator sees: label; level and band of each grain; light and depth of lines; noise."""
    fresh_noise: bool = True
    """Paint the synthetic images anew for every epoch, with other grains and noise."""
    synthetic_weight: float = 1.0
    """How often a synthetic image is drawn against one of the silo's own."""
    memorisation: Literal["refuse", "warn"] = "refuse"
    """What happens to a generator that repeats training images: it stays in its silo, or it leaves and the run says
    so."""
    trial_steps: int = 64
    """Steps of two short trainings by which a silo tries a received style: on images painted in it alone, and on its
    own real ones; both are judged on its own real validation images."""
    least_help: float = 0.1
    """Share of the ARI by real images that painted ones must reach for the style to be used in a silo; 0 uses all."""
    methods: tuple[str, ...] = DEFAULT_METHODS
    """What is compared: separate, central, fed_avg, fed_avg_gn, fed_avg_greys, fed_bn, amplitude, transfer_fp32,
    transfer_fp16, transfer_int8, transfer_int4, transfer_gn, transfer_greys, transfer_bn, transfer_prox, oracle."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the segmentation U-Net at full resolution, half, a quarter, ..."""
    rounds: int = 12
    """Exchanges of parameters."""
    local_steps: int = 16
    """Optimiser steps per silo and round, the same for every method."""
    batch_size: int = 8
    """Images per step."""
    learning_rate: float = 2e-3
    """Adam's, linear to 0 over the run."""
    optimizer_state: Literal["keep", "reset"] = "reset"
    """What happens to Adam's moments when new global parameters arrive."""
    boundary_weight: float = 3.0
    """How often a boundary pixel counts in the loss against a grain pixel."""
    select_on: Literal["validation", "test"] = "validation"
    """Which loss, a mean over the silos, chooses the round. The paper chose on the test sets, which flatters; `test` is
    for reproducing that only."""
    strategy: str = "fed_avg"
    """How updates are combined, in the methods that leave it open: all but separate, central, fed_bn, transfer_bn and
    transfer_prox. Any that `formation-energy --help` names but fed_bn and fed_buff, or MODULE:CLASS of your own."""
    strategy_options: tuple[str, ...] = ()
    """Options of the strategy as NAME=VALUE, e.g. eta=0.01,tau=0.001."""
    dp_noise_multiplier: float | None = None
    """Example-level differential privacy of the segmentation network: standard deviation of the noise on every local
    step, in units of --dp-clip. For methods with GroupNorm only (fed_avg_gn, transfer_gn). A tile, own or synthetic, is
    in a batch with probability 1 / --local-steps, whatever --batch-size. Generators are not covered. Needs pip install
    'ray-fed[privacy]'."""
    dp_clip: float = 1.0
    """Longest gradient of one tile that counts in full (2-norm)."""
    dp_delta: float = 1e-5
    """Chance that the guarantee of epsilon fails; keep it well below one over the number of tiles."""
    compression: Coding = "none"
    """How a silo codes its update of the segmentation network; what a code leaves out goes along with the next one."""
    top_k_share: float = 0.01
    """Share of the values that top_k sends."""
    secure_aggregation: bool = False
    """Let the coordinator learn the sums of updates, losses and steps alone (masks that cancel, Bonawitz et al. 2017);
    the model comes out bit for bit the same. Each silo still tells its own metrics: a round is chosen by them. Leave
    separate and central out of --methods: they send single models."""
    secure_threshold: int | None = None
    """Silos that must answer for a sum to be shown, and that together could unmask one; more than half, two thirds if
    not given."""
    seed: int = 0
    """Seed of data, folds, generators and the first repeat."""
    repeats: int = 3
    """Seeds of the segmentation; the generators stay the same."""
    num_gpus: float | None = None
    """GPUs per silo; if not given, an even share of what there is."""
    round_timeout: float | None = None
    """Seconds after which a silo that does not answer counts as failed."""
    cohort: Literal["ray", "local"] = "ray"
    """ray: every silo is an actor; local: one after another in this process, same results."""
    address: str = "local"
    """Ray cluster: 'local' starts a private one; 'auto' or HOST:PORT joins a running one, with the ray-fed installed
    there (RAY_FED_SHIP_CODE=yes: with this machine's)."""
    out: PathText | None = None
    """Folder of the run; runs/fedtransfer-DATE-TIME if not given. An interrupted run there with the same options is
    resumed."""

    def __post_init__(self) -> None:
        for name in ("size", "images", "test_images", "style_epochs", "style_width", "rounds", "local_steps",
                     "batch_size", "learning_rate", "style_learning_rate", "repeats", "num_folds",
                     "most_tiles", "trial_steps"):  # fmt: skip
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        size = self.training_pixel_size_um
        require(size is None or size > 0, f"training_pixel_size_um={size} must be positive")
        require(len(self.data) >= 2, f"data={','.join(self.data)} must name at least two silos")
        require(self.folds >= 2, f"folds={self.folds} must be at least 2")
        require(self.num_folds <= self.folds, f"num_folds={self.num_folds} must not be above folds={self.folds}")
        require(0 <= self.gap <= 1, f"gap={self.gap} must lie between 0 and 1")
        require(0 <= self.least_help <= 1, f"least_help={self.least_help} must lie between 0 and 1")
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        require_gpus(self.num_gpus)
        require(len(self.methods) > 0, "methods must name at least one")
        for name in self.methods:
            if name not in METHOD_NAMES:
                raise unknown_name("method", name, METHOD_NAMES)
        self.check_updates()
        self._check_strategy()

    def _check_strategy(self) -> None:
        """What choosing a round, and counting epsilon, forbid."""
        require(self.strategy != "fed_bn", "strategy=fed_bn is a method here: use --methods fed_bn or transfer_bn")
        asynchronous = "it never has all silos' losses of one round, by which the round is chosen"
        require(self.strategy != "fed_buff", f"strategy=fed_buff: {asynchronous}; choose another one")
        if self.is_private:
            for name in ("repeats", "num_folds"):
                many = getattr(self, name)
                require(many == 1, f"{name}={many} would spend epsilon as often; use 1")
        weight = self.synthetic_weight
        even = self.dp_noise_multiplier is None or weight == 1
        require(even, f"synthetic_weight={weight}: with dp_noise_multiplier all tiles are drawn alike; use 1")


METHOD_NAMES = (
    "separate", "central", "fed_avg", "fed_avg_gn", "fed_avg_greys", "fed_bn", "amplitude", "transfer_fp32",
    "transfer_fp16", "transfer_int8", "transfer_int4", "transfer_gn", "transfer_greys", "transfer_bn",
    "transfer_prox", "oracle",
)  # fmt: skip
"""Those of ray_fed.style_transfer.methods, which the command line must not import."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "quick": {
        "size": 64, "images": 40, "test_images": 24, "spacing": 20.0, "style_epochs": 12, "style_width": 8,
        "widths": (8, 16, 32), "rounds": 6, "local_steps": 12, "repeats": 1,
        "methods": ("separate", "central", "fed_avg", "fed_bn", "amplitude", "transfer_int8", "oracle"),
    },
    "paper": {
        "size": 400, "images": 700, "test_images": 192, "spacing": 55.0, "num_folds": 5, "style": "pix2pixhd",
        "style_width": 32, "style_epochs": 50, "style_learning_rate": 2e-4, "widths": (64, 128, 256, 512, 1024),
        "rounds": 20, "local_steps": 70, "learning_rate": 1e-4, "repeats": 1,
    },
}  # fmt: skip


def resolved(options: Mapping[str, Any]) -> FedTransferConfig:
    """Return the configuration: the preset's values, over them what was given on the command line."""
    preset = str(options.get("preset", "default"))
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return FedTransferConfig(**{**PRESETS[preset], **options})


def same_results(config: FedTransferConfig) -> dict[str, object]:
    """Return the options that decide what comes out of a method's training."""
    changes_nothing = (
        "out", "cohort", "address", "num_gpus", "round_timeout", "preset", "methods", "repeats", "num_folds",
    )  # fmt: skip
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name not in changes_nothing}
