"""From the words of an invitation to a silo: the task by its name, the data by theirs, both looked up in the owner's
file.

A coordinator says names and plain options. The code that runs is the site's installed one: a task below, or a package
that the owner lists with the SHA-256 of its source files. What the owner has not named is refused in a fixed phrase;
what would help to put it right is written into the site's own log, because it may hold the owner's names.
"""

import hashlib
import importlib
import importlib.util
import itertools
import logging
import re
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ray_fed.config import from_mapping, require
from ray_fed.errors import ConfigError, PerimeterRefused
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.materials.boosted_property_task import boosted
from ray_fed.materials.databases.columns import canonical_target
from ray_fed.materials.databases.source import Source
from ray_fed.materials.graphs.chgnet_network import chgnet_settings
from ray_fed.materials.graphs.chgnet_task import with_chgnet
from ray_fed.materials.graphs.crystal_graph_network import graph_settings
from ray_fed.materials.graphs.graph_task import on_graphs
from ray_fed.materials.personal_file import FOLDER
from ray_fed.materials.property_task import FORMATION_ENERGY, CrystalRows, PropertyTask, property_task
from ray_fed.materials.symmetry import Cell, Symmetry
from ray_fed.materials.targets import MOST_TARGETS, Target
from ray_fed.materials.units import can_convert, checked_unit
from ray_fed.perimeter.book import Book
from ray_fed.perimeter.policy import Site
from ray_fed.sites.site_file import Dataset, OwnTask, SiteFile, TargetColumn
from ray_fed.trees.settings import tree_settings

_log = logging.getLogger(__name__)

SPLIT_STEPS = 20
"""Parts of 1 by which a test_fraction may differ from another: two that differ by less hold out the same rows but for
one that a coordinator can choose, and the counts of rows would tell whether it is there."""
LEAST_HELD_OUT, MOST_HELD_OUT = 2, 10
"""Of SPLIT_STEPS; for the same reason none holds out single rows."""
FILTERS = "filters"
"""Option of every task: names of conditions that the owner allows."""
CALIBRATION_FRACTION, VALIDATION_FRACTION = "calibration_fraction", "validation_fraction"
"""Option of a property task: a share of rows that is held out, too."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,127}")
"""Of a run, a silo or a session: they become names of files."""
MOST_WIDTH, MOST_LAYERS, MOST_WEIGHTS = 1 << 14, 64, 1 << 28
"""A larger network is a mistake, or meant to fill the site's memory."""
MODELS = ("mlp", "boosted_trees", "crystal_graph", "chgnet")
CODE_SUFFIXES = (".py", ".so", ".pyd")

Options = Mapping[str, Any]


class InvitationLike(Protocol):
    """What is read of an invitation (requests.py)."""

    @property
    def run(self) -> str: ...
    @property
    def silo(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def options(self) -> Options: ...
    @property
    def test_fraction(self) -> float: ...
    @property
    def split_seed(self) -> int: ...


@dataclass(frozen=True)
class Invited:
    """A silo as its site will make it."""

    spec: SiloSpec
    make_task: Callable[[], Task]
    """Makes the task, in the process that holds the rows."""
    site: Site
    """What its owner lets out of it."""
    dataset: Dataset


def accepted(file: SiteFile, invitation: InvitationLike) -> Invited:
    """Return the silo that an invitation asks for. PerimeterRefused where the owner's file does not name what it asks
    for, or the options make no task."""
    for name in (invitation.silo, invitation.run):
        require_plain("?", name)
    silo = invitation.silo
    if invitation.dataset not in file.datasets:
        known = ", ".join(file.datasets)
        detail = f"data set {invitation.dataset!r} is asked for; named: {known}"
        refuse(silo, "its owner names no such data set", detail)
    dataset = file.datasets[invitation.dataset]
    options = dict(invitation.options)
    try:
        where = _conditions(silo, dataset, options.pop(FILTERS, ()))
        make_task, source = _task_and_source(file, dataset, invitation, options, where)
    except ConfigError as error:
        refuse(silo, "its options make no task at this site", str(error))
    _count_split(file, dataset, invitation)
    spec = SiloSpec(
        silo, source, file.device.num_gpus, file.device.num_cpus, state_folder=str(file.state_folder / invitation.run),
        personal_folder=str(file.state_folder / invitation.run / FOLDER),
        run=invitation.run, ledger_folder=str(file.ledger_folder), dataset=dataset.name,
        memory_gb=file.device.memory_gb,
    )  # fmt: skip
    return Invited(spec, make_task, file.site_of(dataset), dataset)


def _count_split(file: SiteFile, dataset: Dataset, invitation: InvitationLike) -> None:
    """Refuse to hold out rows in a way that singles some out, or in too many ways; note the way in the owner's book."""
    _count_held_out(file, dataset, invitation, invitation.test_fraction, "test_fraction")
    below = invitation.test_fraction
    for name in (CALIBRATION_FRACTION, VALIDATION_FRACTION):
        given = invitation.options.get(name, 0.0)
        share = given if type(given) in (int, float) else 0.0
        if share:  # parts are told apart at their sums
            below += share
            _count_held_out(file, dataset, invitation, below, f"with {name}")


def _count_held_out(file: SiteFile, dataset: Dataset, invitation: InvitationLike, fraction: float, what: str) -> None:
    step = round(fraction * SPLIT_STEPS)
    if fraction == 0:
        return
    is_coarse = LEAST_HELD_OUT <= step <= MOST_HELD_OUT and abs(fraction * SPLIT_STEPS - step) < 1e-9
    if not is_coarse:
        phrase = f"{what} must be 0, or one of 0.1, 0.15, ... 0.5: a finer one tells who is among its rows"
        refuse(invitation.silo, phrase, f"{fraction!r} of '{dataset.name}' is asked for")
    most = dataset.policy.max_splits_per_dataset
    found = Book(file.ledger_folder).take_split(dataset.name, step / SPLIT_STEPS, invitation.split_seed, most)
    if found:
        refuse(invitation.silo, found, f"{fraction!r}, seed {invitation.split_seed} of '{dataset.name}' is asked for")


def require_plain(silo: str, name: str) -> None:
    """Refuse a name of a silo, a run or a session that could lead elsewhere on this disk."""
    if not PLAIN_NAME.fullmatch(name):
        refuse(
            silo, "a name that it was sent is none", f"{name[:200]!r}: up to 128 letters, digits, '_', '-', '.', '@'"
        )


def refuse(silo: str, phrase: str, detail: str) -> NoReturn:
    """Write the detail into the site's log, and raise PerimeterRefused with a phrase that holds nothing of the
    owner."""
    _log.warning("silo '%s' is refused: %s: %s", silo, phrase, detail)
    raise PerimeterRefused(silo, "invitation", phrase)


def _conditions(silo: str, dataset: Dataset, names: Any) -> tuple[tuple[str, Any], ...]:
    """Return the owner's conditions of the filters asked for by name."""
    require(isinstance(names, tuple | list), f"{FILTERS} must be names of filters")
    for name in names:
        if name not in dataset.filters:
            known = ", ".join(dataset.filters) or "none"
            refuse(silo, "its owner names no such filter", f"filter {name!r} of '{dataset.name}' is asked for; {known}")
    return tuple(pair for name in names for pair in dataset.filters[name])


def _task_and_source(
    file: SiteFile, dataset: Dataset, invitation: InvitationLike, options: Options, where: tuple
) -> tuple[Callable[[], Task], object]:
    name = invitation.task
    if name in file.own_tasks:
        require(not where, "a task of the site's own does its own filtering")
        check_source(file.own_tasks[name])
        return partial(own_task, file.own_tasks[name], options), dataset.source
    if name not in file.tasks:
        known = ", ".join([*file.tasks, *file.own_tasks]) or "none"
        refuse(invitation.silo, "its owner allows no such task", f"task {name!r} is asked for; allowed: {known}")
    return TASKS[name](dataset, invitation, options, where)


# ---- built-in tasks


@dataclass(frozen=True)
class PropertyOptions:
    """All that is said of a `PropertyTask`."""

    features: str = "guo73"
    impute: str = "median"
    hidden: tuple[int, ...] = (200, 200)
    target: tuple[str, ...] = (FORMATION_ENERGY.name,)
    unit: tuple[str, ...] = (FORMATION_ENERGY.unit,)
    transform: tuple[str, ...] = ()
    """One for each target; none at all if empty."""
    classes: tuple[str, ...] = ()
    """For each target its labels with "|" between them, "" for a number; numbers all if empty."""
    standardise_target: bool = False
    symmetry: Symmetry = "given"
    cell: Cell = "given"
    model: str = "mlp"
    """One of MODELS."""
    tree_options: tuple[str, ...] = ()
    """NAME=VALUE of the trees."""
    calibration_fraction: float = 0.0
    """Share of formulas on which nothing is trained, for intervals of predictions."""
    model_options: tuple[str, ...] = ()
    """NAME=VALUE of a crystal-graph network."""
    validation_fraction: float = 0.0
    """Share of further formulas on which nothing is trained, for early stopping."""

    def __post_init__(self) -> None:
        for name in (CALIBRATION_FRACTION, VALIDATION_FRACTION):
            share = getattr(self, name)
            require(0 <= share <= 0.5, f"{name}={share} must lie between 0 and 0.5")
        count = len(self.target)
        many = 0 < count <= MOST_TARGETS and len(set(self.target)) == count
        require(many, f"target={self.target} must be 1 to {MOST_TARGETS} different names")
        for name in ("unit", "transform", "classes"):
            said = getattr(self, name)
            require(len(said) in ((count,) if name == "unit" else (0, count)), f"{name}={said}: one for each target")
        require(self.model in MODELS, f"model={self.model!r} must be one of {', '.join(MODELS)}")
        fits = len(self.hidden) <= MOST_LAYERS and all(0 < width <= MOST_WIDTH for width in self.hidden)
        require(fits, f"hidden={self.hidden} must be at most {MOST_LAYERS} widths from 1 to {MOST_WIDTH}")
        size = sum(a * b for a, b in itertools.pairwise(self.hidden))
        require(size <= MOST_WEIGHTS, f"hidden={self.hidden} makes {size} weights, the most are {MOST_WEIGHTS}")

    def task(self) -> PropertyTask:
        """Return the task; ConfigError for features or options that are not there."""
        options = (("impute", self.impute),) if self.features.startswith("guo") else ()
        # Cells as given are the default of every feature set: the options of older runs name none.
        options += (("cell", self.cell),) if self.cell != "given" else ()
        task = property_task(self.features, options, self.hidden, self.targets(), self.standardise_target)
        task = self._with_model(task)
        task.featurizer()
        return task

    def _with_model(self, task: PropertyTask) -> PropertyTask:
        if self.model == "boosted_trees":
            return boosted(task, tree_settings(self.tree_options))
        if self.model in ("crystal_graph", "chgnet"):
            require(self.cell == "standard", f"{self.model}: graphs are made of standardised cells; cell must say so")
        if self.model == "crystal_graph":
            return on_graphs(task, graph_settings(self.model_options))
        if self.model == "chgnet":
            return with_chgnet(task, chgnet_settings(self.model_options))
        return task

    def targets(self) -> tuple[Target, ...]:
        """Return what is learned; ConfigError for transforms, units or classes that are none."""
        nothing = ("",) * len(self.target)
        each = zip(self.target, self.unit, self.transform or nothing, self.classes or nothing, strict=True)
        return tuple(
            Target(
                canonical_target(name),
                "" if classes else checked_unit(unit),
                transform or "none",
                tuple(classes.split("|")) if classes else (),
            )
            for name, unit, transform, classes in each
        )


def _property(
    dataset: Dataset, invitation: InvitationLike, options: Options, where: tuple
) -> tuple[Callable[[], Task], CrystalRows]:
    """Return the task, and rows of the data set with the column that the owner has for its target."""
    wanted = from_mapping(PropertyOptions, options, "options")
    task = wanted.task()
    columns = [_column(dataset, target, invitation.silo) for target in task.targets]
    source = Source(
        dataset.source, None, where=where, symmetry=wanted.symmetry, columns=dataset.columns,
        access=dataset.access, structures=dataset.structures, targets=tuple(column.column for column in columns),
    )  # fmt: skip
    named = tuple(target.name for target in task.targets)
    units = tuple(column.unit for column in columns)
    rows = CrystalRows(
        source, None, invitation.test_fraction, invitation.split_seed, wanted.calibration_fraction,
        wanted.validation_fraction, named, units,
    )  # fmt: skip
    return wanted.task, rows.with_one_number(task)


def _column(dataset: Dataset, target: Target, silo: str) -> TargetColumn:
    """Return the owner's column for a target. PerimeterRefused where there is none, or it holds something else."""
    column = next((said for name, said in dataset.targets.items() if canonical_target(name) == target.name), None)
    if column is None:
        known = ", ".join(dataset.targets) or "none"
        detail = f"target {target.name!r} of '{dataset.name}' is asked for; targets: {known}"
        refuse(silo, "its owner names no such target", detail)
    if set(column.classes) != set(target.classes):
        detail = f"classes {target.classes} of {target.name!r} are asked for; its owner lists {column.classes}"
        refuse(silo, "its owner lists other classes of that target, or none", detail)
    if not target.classes and not can_convert(column.unit, target.unit):
        detail = f"{target.name!r} is asked for in '{target.unit}'; here it is in '{column.unit}'"
        refuse(silo, "its unit of that target cannot be converted to the one asked for", detail)
    return column


Rebuild = Callable[[Dataset, InvitationLike, Options, tuple], tuple[Callable[[], Task], object]]
"""(data set, invitation, options, conditions) -> what makes the task, and what its silo opens."""
TASKS: Mapping[str, Rebuild] = {"property": _property}
"""Name -> how it is rebuilt at a site."""


# ---- code of the site's own


def check_source(own: OwnTask) -> None:
    """ConfigError where the package of a task is not the one that its owner listed."""
    package = own.make.partition(":")[0].partition(".")[0]
    found = source_hash(package)
    changed = f"{own.make}: the source files of '{package}' have the SHA-256 {found}, the site file says {own.sha256}"
    require(found == own.sha256, f"{changed}; look at what changed, then write the new one")


def own_task(own: OwnTask, options: Options) -> Task:
    """Call the owner's function with the options, if its package is still the one that was listed."""
    check_source(own)
    module, _, function = own.make.partition(":")
    task = getattr(importlib.import_module(module), function)(**options)
    require(isinstance(task, Task), f"{own.make} must return a Task, not a {type(task).__name__}")
    return task


def source_hash(package: str) -> str:
    """Return the SHA-256 over names and contents of all source files of an installed package, 64 digits.

    ConfigError for one that is not installed: what stands in the current folder is not.
    """
    files = _source_files(package)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _source_files(package: str) -> dict[str, Path]:
    """Return name within the package -> file. Nothing is imported."""
    spec = importlib.util.find_spec(package)
    remedy = "install it in this environment (pip install), not in the current folder"
    if spec is None or spec.origin is None:
        raise ConfigError(f"own_tasks: there is no package '{package}'; {remedy}")
    origin = Path(spec.origin)
    require(is_installed(origin), f"own_tasks: '{package}' is at {origin}; {remedy}")
    if spec.submodule_search_locations is None:
        return {origin.name: origin}
    folder = origin.parent
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.suffix in CODE_SUFFIXES}


def is_installed(path: Path) -> bool:
    """Whether a file is among the installed packages of this environment."""
    paths = sysconfig.get_paths()
    return any(path.is_relative_to(paths[name]) for name in ("purelib", "platlib"))
