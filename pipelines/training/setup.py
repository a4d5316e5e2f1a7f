"""From the configuration to silos, test set and task."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, sqrt
from pathlib import Path
from typing import get_type_hints

from pipelines.hub import HubSection
from pipelines.training.config import AUTO, CONFIGS, FormationEnergyConfig, TrainConfig
from pipelines.training.federation_file import FederationFile, SiteEntry, read_federation
from ray_fed.config import at_home, coerce, require
from ray_fed.errors import DataError
from ray_fed.federation.messages import SiloDescription
from ray_fed.federation.rounds.best_round import BestRound
from ray_fed.federation.rounds.job import Job, local_job
from ray_fed.federation.rounds.kept_back import KEPT_BACK
from ray_fed.federation.strategies.boosting import BoostedTrees
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.early_stopping import PATIENCE
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.boosted_property_task import BoostedPropertyTask
from ray_fed.materials.databases.addresses import scheme_of
from ray_fed.materials.databases.columns import canonical_target, unit_of_target
from ray_fed.materials.databases.kinds import is_on_disk, whole_path
from ray_fed.materials.databases.source import EMBEDDED, EMBEDDED_TARGET, Access, Source
from ray_fed.materials.inference import Inferred, inferred
from ray_fed.materials.kept_back import KeptBackErrors
from ray_fed.materials.own_network import with_own_network
from ray_fed.materials.personal_file import FOLDER
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.materials.study import StudyPart, StudyPlan
from ray_fed.materials.symmetry import Cell
from ray_fed.materials.targets import TWO_CLASSES, Target
from ray_fed.materials.units import UNKNOWN_UNIT, can_convert, checked_unit
from ray_fed.privacy.compression import Compression
from ray_fed.sites.requests import Invitation
from ray_fed.sites.tasks import FILTERS, PropertyOptions
from ray_fed.trees.settings import DEFAULTS

POOLED = "pooled"
RICHEST, RICH = "rich+structure", "rich"
"""What features=auto comes to."""
NUMBERS = "-"
"""Stands for a target that is a number, in a list of classes."""
EVALUATIONS_OF_TREES = 25
"""A whole forest travels to who evaluates it."""
EVALUATIONS_PER_JOB = 100
"""An exchange after every batch makes thousands of rounds; about this many of them are evaluated."""


@dataclass(frozen=True)
class Setup:
    """Everything the experiment needs before it meets a machine."""

    config: TrainConfig
    """The options; what they leave open (unit, task, classes, features=auto) is settled."""
    task: PropertyTask
    silos: tuple[SiloSpec, ...]
    """The silos of the federation."""
    pooled: SiloSpec | None
    """All training rows in one place; exists only in studies, where one source plays all silos."""
    test: SiloSpec | None
    sites: tuple[tuple[str, Invitation], ...] = ()
    """(site, what its silo is asked for) of silos at sites that their owners run."""
    hub: HubSection | None = None
    """Where these dial in."""
    order: tuple[str, ...] = ()
    """Names of all silos as their file lists them, where it does."""
    run: str = ""
    """Name of the run in ledgers; none is kept without one."""
    founders: tuple[str, ...] = ()
    """Silos that were there when the run began, once that is known: all of them, but for a run with late ones."""
    notes: tuple[str, ...] = ()
    """What was settled without a word of the user, to be said."""

    @property
    def passes(self) -> int:
        """Epochs of a network, iterations of a forest."""
        return self.task.trees.trees if isinstance(self.task, BoostedPropertyTask) else self.config.epochs

    @property
    def members(self) -> tuple[SiloSpec, ...]:
        return (*self.silos, *([self.pooled] if self.pooled else []))

    @property
    def training(self) -> tuple[str, ...]:
        """Names of the silos of the federation."""
        return self.order or tuple(spec.name for spec in self.silos)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all that trains a model of its own."""
        return (*self.training, *([self.pooled.name] if self.pooled else []))


def resolve(
    options: dict[str, object], site_overrides: Sequence[str] = (), pipeline: str = FormationEnergyConfig.PIPELINE
) -> Setup:
    """Return the setup of a command's options; those of a federation file count unless given on the command line.

    ConfigError or DataError for anything that can be known to be wrong before a silo starts.
    """
    setup = _resolved(options, site_overrides, CONFIGS[pipeline])
    wanted, there = setup.config.min_fit_clients, len(setup.training)
    require(wanted <= there, f"min_fit_clients={wanted} is more than the {there} silos there are")
    return setup


def _resolved(options: dict[str, object], site_overrides: Sequence[str], kind: type[TrainConfig]) -> Setup:
    path = options.get("federation")
    if path is None:
        if site_overrides:
            raise from_set_without_federation(site_overrides[0])
        return _study(kind(**options))  # type: ignore[arg-type]
    file = read_federation(str(path), site_overrides)
    return _sites(kind(**{**_options_of(file, str(path)), **options}), file)  # type: ignore[arg-type]


def _options_of(file: FederationFile, path: str) -> dict[str, object]:
    """Return the options that a federation file gives. Whoever wrote it may not choose the code that runs here."""
    hints = get_type_hints(TrainConfig)
    options = {key: coerce(value, hints[key], f"{path}: training: {key}") for key, value in file.training.items()}
    strategy = options.get("strategy", "")
    own = f"{path}: training: strategy={strategy!r} names code, which a federation file must not"
    require(":" not in strategy, f"{own}; if you trust that code, remove the line and give --strategy {strategy}")
    model = options.get("model", "")
    own = f"{path}: training: model={model!r} names code, which a federation file must not"
    require(":" not in model, f"{own}; if you trust that code, remove the line and give --model {model}")
    return options


def from_set_without_federation(override: str) -> Exception:
    from ray_fed.errors import ConfigError

    return ConfigError(f"--set {override!r} changes a federation file; give one with --federation FILE")


def with_state_folder(setup: Setup, folder: Path, run: str) -> Setup:
    """Let the silos keep their optimiser state: those of a private cluster in `folder`, those of a cluster we join in
    a folder named after the run inside the one their site gives, if it gives one."""

    def settled(spec: SiloSpec) -> SiloSpec:
        given = str(Path(spec.state_folder) / run) if spec.state_folder else ""
        return replace(spec, state_folder=str(folder.resolve()) if setup.config.address == "local" else given)

    return replace(
        setup,
        silos=tuple(settled(spec) for spec in setup.silos),
        pooled=settled(setup.pooled) if setup.pooled else None,
    )


def with_personal_folder(setup: Setup, folder: Path) -> Setup:
    """Let the silos keep their personal models: those of a private cluster in `folder`, as one person has them all; of
    a cluster that we join beside their states, where their site gives a folder for these."""

    def settled(spec: SiloSpec) -> SiloSpec:
        own = str(Path(spec.state_folder) / FOLDER) if spec.state_folder else ""
        return replace(spec, personal_folder=str(folder.resolve()) if setup.config.address == "local" else own)

    return replace(setup, silos=tuple(settled(spec) for spec in setup.silos))


def with_ledgers(setup: Setup, folder: Path, run: str) -> Setup:
    """Let silos that are actors keep ledgers of the run, and the evaluator a log: those of a private cluster in
    `folder`, those of a cluster we join beside their states, unless their owners' site files name another place. Sites
    keep their own."""
    setup = replace(setup, sites=tuple((site, replace(invited, run=run)) for site, invited in setup.sites))
    if setup.config.cohort == "local":  # silos within one process have no boundary
        return replace(setup, run=run if setup.sites else "")

    def settled(spec: SiloSpec) -> SiloSpec:
        place = str(folder.resolve()) if setup.config.address == "local" else spec.state_folder
        return replace(spec, run=run, ledger_folder=place)

    pooled = settled(setup.pooled) if setup.pooled else None
    test = setup.test and replace(setup.test, log_folder=settled(setup.test).ledger_folder)
    silos = tuple(settled(spec) for spec in setup.silos)
    return replace(setup, silos=silos, pooled=pooled, test=test, run=run)


def _study(config: TrainConfig) -> Setup:
    path = whole_path(str(at_home(config.data)) if config.data.startswith("~") else config.data, Path.cwd())
    if is_on_disk(path) and not Path(path).exists():
        raise DataError(f"data={config.data}: no such file or folder; 'embedded' needs none")
    config, of_strategy = _with_strategy(config)
    config, notes = _settled_by_data(_with_target(config), path)
    task, where = _task(config), tuple(_condition(text) for text in config.where)
    rows = _rows(config, task, path, config.target, (), where, config.access())
    rows = replace(rows, split_seed=config.seed)
    if path == EMBEDDED:
        rows = replace(rows, source=replace(rows.source, rows=config.rows))
    plan = StudyPlan(
        config.silos, config.rows, config.test_rows, config.split, config.partition, config.alpha, config.seed,
        config.group, config.folds if config.folds == "matbench" else config.num_folds, config.fold or 1,
        bool(task.targets[0].classes),
    )  # fmt: skip
    silos = [_part(config, rows, plan, f"silo-{number}") for number in range(1, len(config.silos) + 1)]
    pooled = _part(config, rows, plan, POOLED) if config.baselines else None
    of_test = replace(rows, calibration_fraction=0.0, validation_fraction=0.0)
    test = replace(_part(config, of_test, plan, "test"), num_gpus=0.0)
    return Setup(
        config, task, tuple(silos), pooled, _held(test, task), notes=(*of_strategy, *notes, *_said_of_model(config))
    )


def _part(config: TrainConfig, rows: CrystalRows, plan: StudyPlan, name: str) -> SiloSpec:
    return SiloSpec(name, replace(rows, part=StudyPart(plan, name)), config.num_gpus)


def _sites(config: TrainConfig, file: FederationFile) -> Setup:
    _check_baselines(config, file)
    config, of_strategy = _with_strategy(config)
    config, notes = _settled_by_file(_with_target(config), file)
    task = _task(config)
    base = at_home(str(config.federation)).resolve().parent
    fraction = 0.0 if file.test else config.test_fraction
    silos = tuple(
        SiloSpec(
            entry.name,
            _site_rows(config, task, entry, base, fraction),
            config.num_gpus if entry.num_gpus is None else entry.num_gpus,
            entry.num_cpus,
            entry.site,
            entry.state,
            memory_gb=entry.memory_gb,
        )
        for entry in file.silos
        if not entry.dataset
    )
    sites = tuple((entry.dialling, _invitation(config, entry, fraction)) for entry in file.silos if entry.dataset)
    order = tuple(entry.name for entry in file.silos)
    hub = replace(file.hub, tls=str(base / at_home(file.hub.tls))) if file.hub else None
    of_test = file.test and replace(
        _site_rows(config, task, file.test, base, 0.0), calibration_fraction=0.0, validation_fraction=0.0
    )
    test = SiloSpec("test", of_test, site=file.test.site) if file.test else None
    # A database that somebody else's file names is not asked from here, where other secrets are.
    is_here = file.test is not None and not scheme_of(file.test.data)
    test = _held(test, task) if test and is_here else test
    notes = (*of_strategy, *notes, *_said_of_model(config))
    return Setup(config, task, silos, None, test, sites, hub, order, notes=notes)


def _said_of_model(config: TrainConfig) -> tuple[str, ...]:
    return (*_shown_by_sums(config), *_said_of_graphs(config), *_said_of_pretraining(config))


def _said_of_pretraining(config: TrainConfig) -> tuple[str, ...]:
    """Say what the pretrained potential has seen, and what of it can be known."""
    if config.model != "chgnet":
        return ()
    seen = "chgnet was trained on relaxations of the Materials Project: errors on crystals of it are too good"
    own = "energies of elements stay in the silos: a common test set is predicted without them"
    return (
        f"{seen}; rows with its ids are counted below, of others it cannot be told whether it has seen them",
        *([own] if config.chgnet().references == "own" else []),
    )


def _shown_by_sums(config: TrainConfig) -> tuple[str, ...]:
    """Say what trees in clear give away."""
    if config.model != "boosted_trees" or config.secure_aggregation:
        return ()
    shown = "the coordinator can work out the targets of single rows from the sums that a silo sends for trees"
    return (f"{shown}: add --secure-aggregation yes (and --baselines no) where it must not (benchmarks/trees.md)",)


def _check_baselines(config: TrainConfig, file: FederationFile) -> None:
    for entry in file.silos:
        refused = f"baselines: silo '{entry.name}' cannot train alone: a hub on the way adds its updates to others'"
        require(not (entry.dataset and entry.way and config.baselines), f"{refused}; give --baselines no")


def _held(test: SiloSpec, task: PropertyTask) -> SiloSpec:
    """Return the test set's specification with what shows that its files are here, too, if they are."""
    return replace(test, possession=task.possession(test.source))


def _invitation(config: TrainConfig, entry: SiteEntry, test_fraction: float) -> Invitation:
    """Return what a site is asked for: names and plain options."""
    installed = "sites that their owners run train what is installed there (own_tasks in site.yaml)"
    require(not config.has_own_network, f"silo '{entry.name}': model={config.model}: {installed}")
    options = {**asdict(property_options(config)), **({FILTERS: entry.filters} if entry.filters else {})}
    return Invitation("", entry.name, entry.dataset, "property", options, test_fraction, config.seed, entry.way)


def _site_rows(config: TrainConfig, task: PropertyTask, entry: SiteEntry, base: Path, fraction: float) -> CrystalRows:
    """Relative paths of a federation file are relative to that file; `~` is the home of the silo's account."""
    path = whole_path(entry.data, base)
    columns = entry.columns or config.target
    same = f"silo '{entry.name}': target={','.join(columns)} must be {len(config.target)} columns, as the federation's"
    require(len(columns) == len(config.target), same)
    named = tuple(target.name for target in task.targets) if entry.columns else ()
    rows = _rows(config, task, path, columns, entry.units, entry.conditions, entry.access)
    return replace(rows, test_fraction=fraction, split_seed=config.seed, target_is=named)


def _rows(
    config: TrainConfig, task: PropertyTask, path: str, columns: Sequence[str], units: Sequence[str],
    where: tuple[tuple[str, str], ...], access: Access,
) -> CrystalRows:  # fmt: skip
    """Return the rows of a source with a column for each target, in the unit that its owner says; else in that of its
    name, else in the federation's."""
    keep = (config.partition.removeprefix("column:"),) if config.partition.startswith("column:") else ()
    source = Source(
        path, None, where, config.symmetry, structures=config.structures, keep=keep, access=access,
        targets=tuple(columns),
    )  # fmt: skip
    given = tuple(units) or ("",) * len(columns)
    said = tuple(_unit(*each) for each in zip(columns, given, task.targets, strict=True))
    rows = CrystalRows(
        source, calibration_fraction=config.calibration, validation_fraction=config.validation, units=said
    )
    return rows.with_one_number(task)


def _unit(column: str, given: str, target: Target) -> str:
    """Return the unit of a silo's column for a target."""
    if target.classes:
        return ""
    known = unit_of_target(column)
    return checked_unit(given) if given else target.unit if known == UNKNOWN_UNIT else known


def _condition(text: str) -> tuple[str, str]:
    column, _, value = text.partition("=")
    return column, value


def _task(config: TrainConfig) -> PropertyTask:
    task = property_options(config).task()
    return with_own_network(task, config.model, config.model_options) if config.has_own_network else task


def property_options(config: TrainConfig) -> PropertyOptions:
    """Return all that is said of the task; every site that is invited rebuilds it from that."""
    transforms = config.transform if len(config.transform) > 1 else config.transform * len(config.target)
    classes = tuple("|".join(labels) for labels in _classes(config))
    return PropertyOptions(
        config.features, config.impute, config.hidden, tuple(map(canonical_target, config.target)), config.unit,
        tuple("none" if labels else name for name, labels in zip(transforms, classes, strict=True)), classes,
        config.standardise_target and config.model != "boosted_trees", config.symmetry, _cell(config),
        "mlp" if config.has_own_network else config.model, _tree_options(config), config.calibration,
        () if config.has_own_network else config.model_options, config.validation,
    )  # fmt: skip


def _cell(config: TrainConfig) -> Cell:
    """Return whose cells features are of: graphs are made of standardised ones."""
    return "standard" if config.is_on_graphs else config.cell


def _tree_options(config: TrainConfig) -> tuple[str, ...]:
    return (*DEFAULTS, *config.tree_options) if config.model == "boosted_trees" else ()


# ---- what the options leave open


def _with_target(config: TrainConfig) -> TrainConfig:
    """Return the options with a target: that of the embedded data, where none is named."""
    is_embedded = config.data == EMBEDDED and config.federation is None
    require(bool(config.target) or is_embedded, "target: which column shall be learned? give --target NAME[,NAME...]")
    return config if config.target else replace(config, target=(EMBEDDED_TARGET,))


def _classes(config: TrainConfig) -> list[tuple[str, ...]]:
    """Return the labels of each target, none of a number."""
    if not config.classes:
        return [()] * len(config.target)
    if len(config.target) == 1:
        return [() if config.classes == (NUMBERS,) else config.classes]
    return [() if text == NUMBERS else tuple(text.split("|")) for text in config.classes]


def _settled_by_data(config: TrainConfig, path: str) -> tuple[TrainConfig, tuple[str, ...]]:
    """Return the options of a study with features, classes and units settled by its one source; and what to say."""
    is_open = config.features == AUTO or (config.task != "regression" and not config.classes)
    where = tuple(_condition(text) for text in config.where)
    source = Source(path, None, where, structures=config.structures, access=config.access(), targets=config.target)
    found = inferred(source) if is_open and path != EMBEDDED else None
    config, of_features = _with_features(config, found is None or found.has_structures)
    config, of_classes = _with_classes(config, found)
    config, of_units = _with_units(config, [])
    return config, (*of_features, *of_classes, *of_units)


def _settled_by_file(config: TrainConfig, file: FederationFile) -> tuple[TrainConfig, tuple[str, ...]]:
    """Return the same of a federation, whose data are not read here; units are those that the sites say."""
    config, _ = _with_features(config, has_structures=True)
    config, of_classes = _with_classes(config, None)
    entries = [*file.silos, *([file.test] if file.test else [])]
    config, of_units = _with_units(config, [entry.units for entry in entries if entry.units])
    for entry, (at, target) in ((entry, each) for entry in entries for each in enumerate(config.target)):
        given = entry.units[at] if at < len(entry.units) else ""
        unit = config.unit[at]
        fits = not given or _classes(config)[at] or can_convert(checked_unit(given), unit)
        cannot = f"silo '{entry.name or 'test'}': {target} is in '{given}' there, in '{unit}' in the federation"
        require(bool(fits), f"{cannot}, and the one cannot be converted to the other; say the right one with unit:")
        owned = f"silo '{entry.name}': its owner says the unit of {target}, and it must be known here, too"
        is_known = not entry.dataset or unit != UNKNOWN_UNIT or _classes(config)[at]
        require(bool(is_known), f"{owned}; give --unit")
    return config, (*of_classes, *of_units)


def _with_strategy(config: TrainConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """Return the options with the name of a strategy, and say where it is not the usual one. Trees have theirs."""
    if config.strategy != AUTO or config.model == "boosted_trees":
        return config, ()
    chosen, against = config.chosen_strategy(), config.against_common_moments()
    lost = f"{', '.join(against)}: strategy is fed_avg, as scaffold_adam does not go with it"
    note = f"{lost}; where silos are unlike, the model is then worse (strategy in ray-fed train --help)"
    return replace(config, strategy=chosen), (note,) if against else ()


def _said_of_graphs(config: TrainConfig) -> tuple[str, ...]:
    given = "--cell given has no effect: crystal graphs are made of standardised primitive cells"
    return (given,) if config.is_on_graphs and config.cell == "given" else ()


def _with_features(config: TrainConfig, has_structures: bool) -> tuple[TrainConfig, tuple[str, ...]]:
    if config.features != AUTO:
        return config, ()
    note = "the data have formulas without structures: features are 'rich' instead of 'rich+structure'"
    return replace(config, features=RICHEST if has_structures else RICH), () if has_structures else (note,)


def _with_classes(config: TrainConfig, found: Inferred | None) -> tuple[TrainConfig, tuple[str, ...]]:
    """Return the options with the labels of each target that is none of numbers, and say which were found."""
    if config.classes or config.task == "regression":
        return replace(config, task="classification" if any(_classes(config)) else "regression"), ()
    wanted = config.task == "classification"
    labels = [_found_classes(found, name, wanted) for name in config.target]
    if not any(labels):
        return replace(config, task="regression"), ()
    texts = labels[0] if len(labels) == 1 else tuple("|".join(each) or NUMBERS for each in labels)
    notes = [
        f"{name} holds {len(each)} classes ({', '.join(each)}): it is classified; for numbers: --task regression"
        for name, each in zip(config.target, labels, strict=True)
        if each and not wanted
    ]
    return replace(config, task="classification", classes=texts), tuple(notes)


def _found_classes(found: Inferred | None, name: str, wanted: bool) -> tuple[str, ...]:
    if found is None:
        return TWO_CLASSES if wanted else ()
    labels = found.labels[name] if wanted else found.classes[name]
    require(bool(labels) or not wanted, f"{name}: holds too many different labels to be classes; learn it as numbers")
    return labels


def _with_units(config: TrainConfig, said: Sequence[Sequence[str]]) -> tuple[TrainConfig, tuple[str, ...]]:
    """Return the options with a unit for each target: as given, else of its name, else as the first site says; and say
    which are not known."""
    if config.unit:
        return config, ()
    units, notes = [], []
    for at, (name, labels) in enumerate(zip(config.target, _classes(config), strict=True)):
        told = [unit[at] for unit in said if at < len(unit)]
        known = unit_of_target(name)
        assumed = (told or [config.UNIT_IF_UNKNOWN])[0] if known == UNKNOWN_UNIT else known
        units.append("dimensionless" if labels else assumed)
        if len(set(told)) > 1 and known == UNKNOWN_UNIT:
            notes.append(f"sites say {name} in different units; it is learned in '{assumed}', and the others converted")
        if not labels and known == UNKNOWN_UNIT and not told:
            shown = "its values are shown as" if assumed == UNKNOWN_UNIT else "it is taken to be in"
            notes.append(f"the unit of {name!r} is not given, and {shown} '{assumed}'; say it with --unit, e.g. GPa")
    return replace(config, unit=tuple(units)), tuple(notes)


def jobs(setup: Setup, silos: dict[str, SiloDescription], seed: int) -> list[Job]:
    """Return the federated run and, with baselines, the no-exchange run of each silo and of the pooled rows."""
    config = setup.config
    if isinstance(setup.task, BoostedPropertyTask):
        return _tree_jobs(setup, setup.task, silos, seed)
    total = sum(silos[name].num_examples for name in setup.founders or setup.training)
    shared = _plan(config, total, seed)
    steps = shared.total_steps
    require(shared.num_rounds <= steps, f"rounds={shared.num_rounds} is more than the {steps} local steps there are")
    federated = Job(
        f"federated-{seed}",
        setup.training,
        dict.fromkeys(setup.training, shared),
        seed,
        config.make_strategy(),
        config.rules(),
        config.max_update_norm,
        evaluate_every=ceil(shared.num_rounds / EVALUATIONS_PER_JOB),
        secure_threshold=config.threshold(len(setup.training)),
        best_round=BestRound(KEPT_BACK, patience=PATIENCE) if config.validation else None,
        kept_back=KeptBackErrors(setup.task.targets) if config.validation else None,
    )
    federated = within_budget(federated, config, shared.steps_per_epoch, silos)
    if not config.baselines:
        return [federated]
    # Alone, a silo fills the whole batch with its own rows, as the paper's single-client runs do.
    there = [name for name in setup.models if name in silos]
    alone = {name: _plan(config, silos[name].num_examples, seed) for name in there}
    num_rounds = min(shared.num_rounds, EVALUATIONS_PER_JOB)
    alone = {
        name: replace(
            plan,
            num_rounds=num_rounds,
            optimizer_state="keep",
            proximal_mu=0.0,
            keep_local=(),
            compression=None,
            validation_share=0.0 if config.early_stopping == "no" else config.validation_share,
        )
        for name, plan in alone.items()
    }
    return [federated, replace(local_job(federated, alone, f"local-{seed}"), evaluate_every=1)]


def _tree_jobs(setup: Setup, task: BoostedPropertyTask, silos: Mapping[str, SiloDescription], seed: int) -> list[Job]:
    """Return the federated forest and, with baselines, one of each silo alone and of the pooled rows. ConfigError where
    the budget ends before the forest."""
    config = setup.config
    noise = (config.dp_noise_multiplier or 0.0) * sqrt(len(setup.training))
    strategy = BoostedTrees(replace(task.trees, seed=seed), task.num_features, noise)
    # Sums within this process need no code.
    compression = None if config.cohort == "local" and not setup.sites else Compression()
    plan = TrainingPlan(
        seed, strategy.num_rounds, 1, strategy.num_rounds, private=config.private_steps(), compression=compression
    )
    federated = Job(
        f"federated-{seed}",
        setup.training,
        dict.fromkeys(setup.training, plan),
        seed,
        strategy,
        config.rules(),
        evaluate_every=ceil(strategy.num_rounds / EVALUATIONS_OF_TREES),
        secure_threshold=config.threshold(len(setup.training)),
    )
    federated = within_budget(federated, config, 1, silos)
    is_whole = (
        f"{strategy.num_rounds} rounds of {task.trees.trees} trees; fewer trees, less depth or more noise cost less"
    )
    ends = f"dp_budget={config.dp_budget} ends after {federated.num_rounds} of the {is_whole}"
    require(federated.num_rounds == strategy.num_rounds, ends)
    there = [name for name in setup.models if name in silos]
    alone = [
        replace(local_job(federated, {name: plan}, f"local-{seed}-{name}"), strategy=replace(strategy, name=name))
        for name in there
    ]
    return [federated, *alone] if config.baselines else [federated]


def within_budget(job: Job, config: TrainConfig, steps_per_epoch: int, silos: Mapping[str, SiloDescription]) -> Job:
    """Return the job with the account of its noise, ending before its budget does; ConfigError for a budget too small
    for one round. With a budget, private silos count their own steps and answer no more when these are spent: a round
    that is done twice, after a crash, costs twice, and epsilon as printed counts it once."""
    account = config.account(steps_per_epoch)
    if account is None:
        return job
    job = replace(job, account=account)
    planned, first = job.noised_steps(job.num_rounds), job.noised_steps(1)
    most = account.most_steps(planned)
    last = max((number for number in range(1, job.num_rounds + 1) if job.noised_steps(number) <= most), default=0)
    spent = f"one round alone costs epsilon={account.epsilon(first):.3g}; more noise or more rounds cost less each"
    require(last > 0, f"dp_budget={config.dp_budget} is too small: {spent}")
    private = job.any_plan.private
    if private is None:
        return replace(job, last_round=last)
    most_steps = None if config.dp_budget is None else job.noised_steps(last)
    told = {name: silos[name].num_examples if name in silos else None for name in job.silos}
    plans = {
        name: replace(job.any_plan, private=replace(private, most_steps=most_steps, public_examples=known))
        for name, known in told.items()
    }
    return replace(job, last_round=last, plans=plans, evaluate_silos=False)


def _plan(config: TrainConfig, num_examples: int, seed: int) -> TrainingPlan:
    steps = ceil(num_examples / config.batch_size)
    return TrainingPlan(
        seed, config.epochs, steps, config.num_rounds(steps), config.learning_rate, config.optimizer,
        config.optimizer_state, config.proximal_mu, own_parameters(config),
        private=config.private_steps(), compression=config.make_compression(), decay=config.decay,
    )  # fmt: skip


def own_parameters(config: TrainConfig) -> tuple[str, ...]:
    """Return the names of parameters that each silo keeps for itself."""
    if config.model == "chgnet" and config.chgnet().references == "own":
        return ("reference",)
    return output_bias(config) if config.personal_bias else ()


def output_bias(config: TrainConfig) -> tuple[str, ...]:
    """Return the name of the output bias of the network; layers and activations of the MLP are numbered in turn."""
    if config.model == "crystal_graph":
        return ("output.bias",)
    return (f"{2 * len(config.hidden)}.bias",)
