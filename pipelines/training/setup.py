"""From the configuration to silos, test set and task."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import get_type_hints

from pipelines.hub import HubSection
from pipelines.training.config import FormationEnergyConfig
from pipelines.training.federation_file import FederationFile, SiteEntry, read_federation
from ray_fed.config import at_home, coerce, require
from ray_fed.errors import DataError
from ray_fed.federation.messages import SiloDescription
from ray_fed.federation.rounds.job import Job, local_job
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.databases.columns import UNKNOWN_UNIT, canonical_target, unit_of_target
from ray_fed.materials.databases.kinds import is_on_disk, whole_path
from ray_fed.materials.databases.source import EMBEDDED, Source
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.materials.study import StudyPart, StudyPlan
from ray_fed.sites.tasks import FILTERS, PropertyOptions
from ray_fed.sites.wire import Invitation

POOLED = "pooled"
ENERGY_UNIT = "eV/atom"
"""Unit of a target column whose name is not one of the known ones, as the options say."""
EVALUATIONS_PER_JOB = 100
"""An exchange after every batch makes thousands of rounds; about this many of them are evaluated."""


@dataclass(frozen=True)
class Setup:
    """Everything the experiment needs before it meets a machine."""

    config: FormationEnergyConfig
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


def resolve(options: dict[str, object], site_overrides: Sequence[str] = ()) -> Setup:
    """Return the setup of command-line options; those of a federation file count unless given on the command line.

    ConfigError or DataError for anything that can be known to be wrong before a silo starts.
    """
    setup = _resolved(options, site_overrides)
    wanted, there = setup.config.min_fit_clients, len(setup.training)
    require(wanted <= there, f"min_fit_clients={wanted} is more than the {there} silos there are")
    return setup


def _resolved(options: dict[str, object], site_overrides: Sequence[str]) -> Setup:
    path = options.get("federation")
    if path is None:
        if site_overrides:
            raise from_set_without_federation(site_overrides[0])
        return _study(FormationEnergyConfig(**options))  # type: ignore[arg-type]
    file = read_federation(str(path), site_overrides)
    return _sites(FormationEnergyConfig(**{**_options_of(file, str(path)), **options}), file)  # type: ignore[arg-type]


def _options_of(file: FederationFile, path: str) -> dict[str, object]:
    """Return the options that a federation file gives. Whoever wrote it may not choose the code that runs here."""
    hints = get_type_hints(FormationEnergyConfig)
    options = {key: coerce(value, hints[key], f"{path}: training: {key}") for key, value in file.training.items()}
    strategy = options.get("strategy", "")
    own = f"{path}: training: strategy={strategy!r} names code, which a federation file must not"
    require(":" not in strategy, f"{own}; if you trust that code, remove the line and give --strategy {strategy}")
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


def _study(config: FormationEnergyConfig) -> Setup:
    path = str(at_home(config.data)) if config.data.startswith("~") else config.data
    source = _source(config, path, None, tuple(_condition(text) for text in config.where))
    if source.path == EMBEDDED:
        source = replace(source, rows=config.rows)
    source = replace(source, access=config.access())
    if is_on_disk(source.path) and not Path(source.path).exists():
        raise DataError(f"data={config.data}: no such file or folder; 'embedded' needs none")
    plan = StudyPlan(
        config.silos, config.rows, config.test_rows, config.split, config.partition, config.alpha, config.seed
    )
    silos = [_part(config, source, plan, f"silo-{number}") for number in range(1, len(config.silos) + 1)]
    pooled = _part(config, source, plan, POOLED) if config.baselines else None
    test = replace(_part(config, source, plan, "test"), num_gpus=0.0)
    return Setup(config, _task(config), tuple(silos), pooled, _held(test, _task(config)))


def _part(config: FormationEnergyConfig, source: Source, plan: StudyPlan, name: str) -> SiloSpec:
    return SiloSpec(name, CrystalRows(source, StudyPart(plan, name)), config.num_gpus)


def _sites(config: FormationEnergyConfig, file: FederationFile) -> Setup:
    _check_baselines(config, file)
    base = at_home(str(config.federation)).resolve().parent
    fraction = 0.0 if file.test else config.test_fraction
    silos = tuple(
        SiloSpec(
            entry.name,
            _site_rows(config, entry, base, fraction),
            config.num_gpus if entry.num_gpus is None else entry.num_gpus,
            entry.num_cpus,
            entry.site,
            entry.state,
        )
        for entry in file.silos
        if not entry.dataset
    )
    sites = tuple((entry.dialling, _invitation(config, entry, fraction)) for entry in file.silos if entry.dataset)
    order = tuple(entry.name for entry in file.silos)
    hub = replace(file.hub, tls=str(base / at_home(file.hub.tls))) if file.hub else None
    test = SiloSpec("test", _site_rows(config, file.test, base, 0.0), site=file.test.site) if file.test else None
    return Setup(config, _task(config), silos, None, test and _held(test, _task(config)), sites, hub, order)


def _check_baselines(config: FormationEnergyConfig, file: FederationFile) -> None:
    for entry in file.silos:
        refused = f"baselines: silo '{entry.name}' cannot train alone: a hub on the way adds its updates to others'"
        require(not (entry.dataset and entry.way and config.baselines), f"{refused}; give --baselines no")


def _held(test: SiloSpec, task: PropertyTask) -> SiloSpec:
    """Return the test set's specification with what shows that its files are here, too, if they are."""
    return replace(test, possession=task.possession(test.source))


def _invitation(config: FormationEnergyConfig, entry: SiteEntry, test_fraction: float) -> Invitation:
    """Return what a site is asked for: names and plain options."""
    options = {**asdict(property_options(config)), **({FILTERS: entry.filters} if entry.filters else {})}
    return Invitation("", entry.name, entry.dataset, "property", options, test_fraction, config.seed, entry.way)


def _site_rows(config: FormationEnergyConfig, entry: SiteEntry, base: Path, test_fraction: float) -> CrystalRows:
    """Relative paths of a federation file are relative to that file; `~` is the home of the silo's account."""
    path = whole_path(entry.data, base)
    source = replace(_source(config, path, entry.target, entry.conditions), access=entry.access)
    if entry.unit:
        source = replace(source, unit=entry.unit)
    return CrystalRows(
        source, None, test_fraction, config.seed, canonical_target(config.target) if entry.target else ""
    )


def _source(config: FormationEnergyConfig, path: str, target: str | None, where: tuple[tuple[str, str], ...]) -> Source:
    located = whole_path(path, Path.cwd())
    keep = (config.partition.removeprefix("column:"),) if config.partition.startswith("column:") else ()
    column = target or config.target
    unit = None if unit_of_target(column) != UNKNOWN_UNIT else ENERGY_UNIT
    return Source(located, target=column, where=where, symmetry=config.symmetry, keep=keep, unit=unit)


def _condition(text: str) -> tuple[str, str]:
    column, _, value = text.partition("=")
    return column, value


def _task(config: FormationEnergyConfig) -> PropertyTask:
    return property_options(config).task()


def property_options(config: FormationEnergyConfig) -> PropertyOptions:
    """Return all that is said of the task; every site that is invited rebuilds it from that."""
    known = unit_of_target(config.target)
    unit = ENERGY_UNIT if known == UNKNOWN_UNIT else known
    return PropertyOptions(
        config.features, config.impute, config.hidden, canonical_target(config.target), unit, config.symmetry
    )


def jobs(setup: Setup, silos: dict[str, SiloDescription], seed: int) -> list[Job]:
    """Return the federated run and, with baselines, the no-exchange run of each silo and of the pooled rows."""
    config = setup.config
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
            plan, num_rounds=num_rounds, optimizer_state="keep", proximal_mu=0.0, keep_local=(), compression=None
        )
        for name, plan in alone.items()
    }
    return [federated, replace(local_job(federated, alone, f"local-{seed}"), evaluate_every=1)]


def within_budget(
    job: Job, config: FormationEnergyConfig, steps_per_epoch: int, silos: Mapping[str, SiloDescription]
) -> Job:
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


def _plan(config: FormationEnergyConfig, num_examples: int, seed: int) -> TrainingPlan:
    steps = ceil(num_examples / config.batch_size)
    return TrainingPlan(
        seed, config.epochs, steps, config.num_rounds(steps), config.learning_rate, config.optimizer,
        config.optimizer_state, config.proximal_mu, output_bias(config) if config.personal_bias else (),
        private=config.private_steps(), compression=config.make_compression(),
    )  # fmt: skip


def output_bias(config: FormationEnergyConfig) -> tuple[str, ...]:
    """Return the name of the output bias of the MLP: layers and activations are numbered in turn."""
    return (f"{2 * len(config.hidden)}.bias",)
