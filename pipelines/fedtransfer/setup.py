"""From options to silos, task and training plans."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipelines.fedtransfer.config import FedTransferConfig
from ray_fed.config import require
from ray_fed.errors import ConfigError
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.strategies import local_plan
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.micrographs.folders import MicrographFolder
from ray_fed.micrographs.image_files import ReadingRules
from ray_fed.micrographs.mask_meaning import MaskMeaning
from ray_fed.micrographs.polycrystals import STYLES, StyleName
from ray_fed.micrographs.scale import common_pixel_size, require_plausible
from ray_fed.micrographs.unet import UNetDesign
from ray_fed.randomness import derived_seed
from ray_fed.style_transfer.methods import METHODS, Method, method_named
from ray_fed.style_transfer.networks import GeneratorSpec
from ray_fed.style_transfer.sources import (
    MicrographSource,
    PooledSource,
    Split,
    SplitFolderSource,
    SplitPolycrystalSource,
)
from ray_fed.style_transfer.task import FedTransferTask, session_name
from ray_fed.style_transfer.training import StylePlan, style_plan

POOLED = "pooled"
"""The silo of centralised training, which holds what no silo may give away."""


def named_data(config: FedTransferConfig) -> dict[str, str]:
    """Return silo -> embedded style or folder; ConfigError for two silos of one name."""
    found: dict[str, str] = {}
    for text in config.data:
        name, equals, place = text.partition("=")
        name, place = (name, place) if equals else (Path(text).name, text)
        require(name not in found, f"data names silo '{name}' twice; give one another name with NAME={place}")
        require(name != POOLED, f"data: a silo must not be called '{POOLED}'")
        found[name] = place
    for option in PER_SILO:
        said_of(config, option, found)
    return found


PER_SILO = ("masks", "image_files", "mask_files", "source_pattern", "pixel_size_um", "data_bar")


def said_of(config: FedTransferConfig, option: str, silos: Mapping[str, str]) -> dict[str, str]:
    """Return silo -> what an option says of it; ConfigError for a silo that is not there, is said twice, or is drawn
    by this package."""
    found: dict[str, str] = {}
    for text in getattr(config, option):
        name, equals, said = text.partition("=")
        require(name in silos, f"{option}={text}: there are the silos {', '.join(silos)}")
        require(bool(equals and said), f"{option}={text}: say {name}=SOMETHING; see --help")
        require(name not in found, f"{option}: '{name}' is told twice ({found.get(name)}, {said}); give one entry")
        require(silos[name] not in STYLES, f"{option}={text}: '{name}' is drawn by this package; it has no files")
        found[name] = said
    return found


def source_of(name: str, place: str, config: FedTransferConfig, fold: int) -> MicrographSource:
    """Return the source of an embedded style or a folder; ConfigError for what is neither."""
    split = Split(config.folds, fold, seed=config.seed)
    if place in STYLES:
        return SplitPolycrystalSource(
            place, config.images, config.test_images, config.size, config.spacing, config.gap, config.seed, split
        )
    if not Path(place).is_dir():
        raise ConfigError(f"data={place!r} is neither a folder nor one of {', '.join(STYLES)}")
    return SplitFolderSource(folder_of(name, place, config), split)


def folder_of(name: str, place: str, config: FedTransferConfig) -> MicrographFolder:
    """Return what the options say of a silo's folder."""
    silos = named_data(config)
    said = {option: said_of(config, option, silos).get(name, "") for option in PER_SILO}
    return MicrographFolder(
        str(Path(place).absolute()),
        images=said["image_files"],
        masks=said["mask_files"],
        meaning=mask_meaning(name, said["masks"]),
        tile=config.size,
        rules=ReadingRules(data_bar=int(_number(name, "data_bar", said["data_bar"])) if said["data_bar"] else None),
        source_pattern=said["source_pattern"],
        pixel_size_um=_pixel_size(name, said["pixel_size_um"]),
        training_pixel_size_um=config.training_pixel_size_um,
        most_tiles=config.most_tiles,
    )


def _pixel_size(name: str, said: str) -> float | None:
    return require_plausible(_number(name, "pixel_size_um", said), f"pixel_size_um: {name}") if said else None


def _number(name: str, option: str, said: str) -> float:
    try:
        value = float(said)
    except ValueError:
        raise ConfigError(f"{option}={name}={said}: {said!r} is no number") from None
    require(value >= 0, f"{option}={name}={said} must not be negative")
    return value


def at_one_scale(config: FedTransferConfig) -> FedTransferConfig:
    """Return the options with the pixel size that all silos' images are brought to, None where no silo knows its own.

    Reads index.csv and the headers of TIFF files. ConfigError where some silos know their scale and others do not.
    """
    folders = {name: place for name, place in named_data(config).items() if place not in STYLES}
    for name, place in folders.items():
        source_of(name, place, config, 0)  # what is no folder is said first
    sizes = {name: folder_of(name, place, config).pixel_size(name) for name, place in folders.items()}
    drawn = {name: None for name in named_data(config) if name not in folders}
    if not any(sizes.values()) and not config.training_pixel_size_um:
        return config
    return replace(config, training_pixel_size_um=common_pixel_size({**sizes, **drawn}, config.training_pixel_size_um))


def mask_meaning(silo: str, said: str) -> MaskMeaning:
    """Return what the numbers in a silo's masks mean; ConfigError for an entry of `masks` that says nothing."""
    kind, _, value = said.partition(":")
    numbers = value.split("+")
    if said in ("", "between_classes", "instances"):
        return MaskMeaning(between_classes=said == "between_classes", instances=said == "instances")
    if kind == "boundary" and all(number.isdigit() for number in numbers):
        return MaskMeaning(tuple(int(number) for number in numbers))
    if kind == "threshold" and value.isdigit():
        return MaskMeaning(threshold=int(value))
    if kind == "threshold-below" and value.isdigit():
        return MaskMeaning(threshold_below=int(value))
    ways = ("between_classes", "instances", "boundary:NUMBER[+NUMBER]", "threshold:NUMBER", "threshold-below:NUMBER")
    raise ConfigError(f"masks={silo}={said}: say {', '.join(f'{silo}={way}' for way in ways)}")


def specs_of(config: FedTransferConfig, fold: int, folder: Path) -> list[SiloSpec]:
    """Return the silos, and the pooled one if a method needs it; `folder` stands for the silos' own disks."""
    sources = {name: source_of(name, place, config, fold) for name, place in named_data(config).items()}
    places: dict[str, MicrographSource] = dict(sources)
    if any(method_named(name).cooperation == "pooled" for name in config.methods):
        places[POOLED] = PooledSource(tuple(sources.items()))
    return [
        SiloSpec(name, source, config.num_gpus, state_folder=str(folder / f"fold{fold}" / name))
        for name, source in places.items()
    ]


def is_embedded(config: FedTransferConfig) -> bool:
    """Whether all micrographs are drawn by this package, so that showing them shows nobody's data."""
    return set(named_data(config).values()) <= set(STYLES)


def embedded_styles(config: FedTransferConfig) -> tuple[tuple[str, StyleName], ...]:
    found: dict[str, StyleName] = {name: place for name, place in named_data(config).items() if place in STYLES}
    return tuple(found.items()) if is_embedded(config) else ()


def task_of(config: FedTransferConfig, fold: int) -> FedTransferTask:
    return FedTransferTask(
        design=UNetDesign(config.widths),
        batch_size=config.batch_size,
        boundary_weight=config.boundary_weight,
        synthetic_weight=config.synthetic_weight,
        style=style_of(config),
        style_seed=derived_seed(config.seed, "style", fold),
        fresh_noise=config.fresh_noise,
        memorisation=config.memorisation,
        trial_steps=config.trial_steps,
        least_help=config.least_help,
        styles=embedded_styles(config),
        gap=config.gap,
    )


def style_of(config: FedTransferConfig) -> StylePlan:
    """Return the preset with the options' sizes."""
    preset = style_plan(config.style)
    old = preset.generator
    generator = GeneratorSpec(old.architecture, config.style_width, old.depth, old.blocks, config.style_inputs)
    generator.check_size(config.size, config.size)
    return replace(
        preset,
        generator=generator,
        discriminator_width=config.style_width,
        epochs=config.style_epochs,
        learning_rate=config.style_learning_rate,
    )


def check_methods(config: FedTransferConfig) -> None:
    """Raise ConfigError for methods that do not fit together with the options, or that would send without protection
    what the options say is protected."""
    methods = [method_named(name) for name in config.methods]
    single = [method.name for method in methods if not method.is_federated]
    without_masks = f"secure_aggregation: {', '.join(single)} would send single models without masks"
    require(not (config.secure_aggregation and single), f"{without_masks}; leave them out of --methods")
    if config.dp_noise_multiplier is not None:
        batch = [method.name for method in methods if method.norm == "batch"]
        mixing = f"dp_noise_multiplier: {', '.join(batch)} use BatchNorm, which mixes the tiles of a batch"
        group = ",".join(method.name for method in METHODS.values() if method.norm == "group")
        require(not batch, f"{mixing}; GroupNorm does not: --methods {group}")
    elif config.is_private:
        own = [method.name for method in methods if method.cooperation != "fed_avg"]
        noiseless = f"strategy={config.strategy}: {', '.join(own)} have strategies of their own, without noise"
        require(not own, f"{noiseless}; leave them out of --methods")
    for method in methods:
        job = job_of(config, method, 0, config.seed)
        local_plan(job.strategy, job.any_plan, task_of(config, 0).of(method).model(0))


def job_of(config: FedTransferConfig, method: Method, fold: int, seed: int) -> Job:
    """Return the training run of a method. Every silo takes `local_steps` a round; centralised training takes as many
    as all silos together."""
    silos = tuple(named_data(config))
    members = (POOLED,) if method.cooperation == "pooled" else silos
    steps = config.local_steps * (len(silos) if method.cooperation == "pooled" else 1)
    plan = TrainingPlan(
        seed=derived_seed(seed, "segmentation", fold),
        epochs=config.rounds,
        steps_per_epoch=steps,
        num_rounds=config.rounds,
        learning_rate=config.learning_rate,
        optimizer_state=config.optimizer_state,
        private=config.private_steps(),
        compression=config.make_compression() if method.is_federated else None,
    )
    return Job(
        session_name(method, fold, seed), members, dict.fromkeys(members, plan),
        derived_seed(seed, "segmentation model"),
        config.make_strategy() if method.cooperation == "fed_avg" else method.strategy,
        account=config.account(config.local_steps),
        secure_threshold=config.threshold(len(silos)),
        single_metrics=True,  # by those of the validation tiles a round is chosen, and the tables compare silos
        kind="federated" if method.is_federated else "baseline",
    )  # fmt: skip


def session_names(config: FedTransferConfig) -> list[str]:
    """Return the names of all training runs that the options ask for."""
    seeds = range(config.seed, config.seed + config.repeats)
    return [
        session_name(method_named(name), fold, seed)
        for fold in range(config.num_folds)
        for seed in seeds
        for name in config.methods
    ]
