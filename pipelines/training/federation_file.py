"""The YAML description of a federation of real sites: who takes part, where, with which data and GPUs.

silos:
  - name: north-institute      # required
    data: /data/crystals.parquet   # required; a path on that site's own disk
    site: north                # node label; the silo starts nowhere else
    num_gpus: 1
    where: {source: OQMD}
  - name: west-lab               # a database, whose password stands in the silo's environment: cluster/databases.md
    data: postgresql://reader:${RAY_FED_PASSWORD}@db.west.example/materials
    query: SELECT id, formula, spacegroup_number, e_form FROM crystals ORDER BY id
  - {name: south-lab, dataset: alloys, site: south}   # at a site that its owner runs (`ray-fed site start`)
  - {name: east-lab, dataset: alloys, site: region/east}   # at one that dials the hub `region` (`ray-fed site relay`)
hub:                           # where such sites dial in, and which keys they have; any field of `HubSection`
  listen: 0.0.0.0:7443
  tls: certs/hub
  sites: {south: 3fa1...}
test:                          # optional common test set, published by its owner
  data: /data/benchmark.csv
training:                      # options of `ray-fed train`
  epochs: 100

Such a file is often received from somebody else. It therefore names no code, no place to write to and no cluster: those
are given on the command line.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, TypeVar

from pipelines.hub import HubSection
from pipelines.training.config import TrainConfig
from ray_fed.config import at_home, coerce, from_mapping, require, require_gpus, unknown_name
from ray_fed.errors import ConfigError, DataError
from ray_fed.materials.databases.addresses import check_address
from ray_fed.materials.databases.source import Access
from ray_fed.reading import MAX_YAML_BYTES, parse_yaml, read_bounded

Section = TypeVar("Section")

KEYS = ("silos", "hub", "test", "training")
NOT_IN_FILE = {
    "out": "it chooses where files are written",
    "address": "it chooses the cluster that this installation's code goes to",
}
"""Options of the command line alone, and why."""
STATE_FOLDER = "~/ray-fed/state"
"""Below it, in the home of the account that runs the silo, are the folders that files name as `state`."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class SiteEntry:
    """One silo, or the common test set, of a federation file."""

    data: str = ""
    """File or folder on the site's own disk, address of a database that it reaches, or 'embedded'. An address has no
    password: ${RAY_FED_...} is looked up where the silo runs."""
    query: str = ""
    """Of a database: a SELECT statement; for OPTIMADE and MongoDB a filter, for ASE a selection."""
    table: str = ""
    """Of a database, instead of a statement: a table or view; for MongoDB the collection."""
    query_timeout: float = 600.0
    """Seconds in which all rows of a database must have come."""
    dataset: str = ""
    """Instead of `data`: name of a data set at a site that its owner runs, as the owner's site.yaml has it."""
    filters: tuple[str, ...] = ()
    """With `dataset`: names of conditions that the owner allows."""
    name: str = ""
    """Name of the silo in messages, tables and figures."""
    site: str = ""
    """Value of the Ray node label `site` of the machines that hold the data; empty: anywhere. With `dataset`: the name
    of the site that has it, after those of the hubs on the way to it, as HUB/SITE."""
    target: str | None = None
    """The site's name for the column to learn; the pipeline's target if not given. Several with commas between."""
    unit: str | None = None
    """Unit of that column; the site converts it to the federation's, and is refused where that cannot be done. The
    federation's if not given."""
    where: Any = None
    """Mapping column -> value: keep only these rows."""
    num_gpus: float | None = None
    """GPUs reserved for the silo; the pipeline's num_gpus if not given."""
    num_cpus: float = 1.0
    """CPUs reserved for the silo."""
    memory_gb: float = 0.0
    """GB of main memory that Ray sets aside for the silo."""
    state: str = ""
    """Name of a folder for the silo's optimiser state during a run, so that a silo that is started again, or a run that
    is resumed, goes on exactly; without one the silo goes on with fresh moments. It stands in ~/ray-fed/state of the
    account that runs the silo; any other place is for `--set silos.NAME.state=FOLDER`. One file per run and round, the
    last few kept; nobody else reads them."""

    def __post_init__(self) -> None:
        where = self.where or {}
        require(isinstance(where, Mapping), f"where={where!r} must be a mapping, e.g. {{source: OQMD}}")
        require_gpus(self.num_gpus)
        for name in ("num_cpus", "memory_gb"):
            value = getattr(self, name)
            require(isfinite(value) and value >= 0, f"{name}={value} must be a finite number, 0 or more")
        check_address(self.data, only_ours=True)
        self.access  # noqa: B018 (checks what it is made of)
        if self.dataset:
            self._check_owned()
        require(bool(self.dataset) or not self.filters, f"filters={self.filters} need dataset; give where with data")

    def _check_owned(self) -> None:
        """What the owner's file says is not for this one."""
        require(bool(self.site), f"dataset={self.dataset!r} needs site: the name of the site that has it")
        for name in ("data", "query", "table", "target", "unit", "where", "state", "num_gpus", "memory_gb"):
            unwanted = f"{name}={getattr(self, name)!r} goes with data; of a dataset, its owner's site.yaml says that"
            require(not getattr(self, name), unwanted)

    @property
    def columns(self) -> tuple[str, ...]:
        """The site's names for the targets, where it has its own."""
        return tuple(name.strip() for name in self.target.split(",")) if self.target else ()

    @property
    def units(self) -> tuple[str, ...]:
        """Units of these columns, where it says them; "" where not."""
        return tuple(unit.strip() for unit in self.unit.split(",")) if self.unit else ()

    @property
    def dialling(self) -> str:
        """The site that dials the coordinator's hub: the one with the data, or the first hub on the way to it."""
        return self.site.partition("/")[0]

    @property
    def way(self) -> str:
        """From there to the site with the data; empty where that is the one."""
        return self.site.partition("/")[2]

    @property
    def access(self) -> Access:
        return Access(self.query, self.table, self.query_timeout)

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        return tuple((str(key), str(value)) for key, value in (self.where or {}).items())


@dataclass(frozen=True)
class FederationFile:
    """A validated federation file."""

    silos: tuple[SiteEntry, ...]
    test: SiteEntry | None
    training: Mapping[str, Any]
    hub: HubSection | None = None
    """None where no silo is at a site that its owner runs."""


def read_federation(path: str, overrides: Sequence[str] = ()) -> FederationFile:
    """Read and check a federation file; `overrides` are `silos.NAME.FIELD=VALUE` or `test.FIELD=VALUE`.

    ConfigError names the file, the key and the nearest known one.
    """
    content = _yaml(path)
    for key in content:
        if key not in KEYS:
            raise ConfigError(f"{path}: {unknown_name('key', str(key), KEYS)}")
    entries = content.get("silos")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: 'silos' must be a list with at least one silo")
    _confine_states(entries, path)
    _apply(overrides, content, path)
    silos = tuple(_entry(entry, f"{path}: silos[{number}]") for number, entry in enumerate(content["silos"]))
    _check_names(silos, path)
    test = _entry(content["test"], f"{path}: test") if content.get("test") else None
    require(test is None or not test.dataset, f"{path}: test: dataset: a common test set is data of this side")
    training = content.get("training") or {}
    require(isinstance(training, Mapping), f"{path}: 'training' must be a mapping of options")
    known = {field.name for field in fields(TrainConfig)} - {"federation", "data", "silos", *NOT_IN_FILE}
    for key, value in training.items():
        alone = f"{path}: training: {key}={value!r} must not stand in a federation file: {NOT_IN_FILE.get(key)}"
        require(key not in NOT_IN_FILE, f"{alone}; give --{key} on the command line")
        if key not in known:
            raise ConfigError(f"{path}: training: {unknown_name('key', str(key), known)}")
    return FederationFile(silos, test, training, _hub(content.get("hub"), silos, path))


def _hub(values: Any, silos: Sequence[SiteEntry], path: str) -> HubSection | None:
    """Return the hub that the silos at sites need; ConfigError for a site whose key nobody has written down."""
    owned = [silo for silo in silos if silo.dataset]
    require(values is None or isinstance(values, Mapping), f"{path}: hub: must be a mapping, not {values!r}")
    if not owned:
        require(values is None, f"{path}: hub: no silo has a dataset at a site; leave the section out")
        return None
    hub = _section(HubSection, values or {}, f"{path}: hub")
    for silo in owned:
        parts = silo.site.split("/")
        fits = all(map(PLAIN_NAME.fullmatch, parts))
        require(fits, f"{path}: silo '{silo.name}': site={silo.site!r} must be SITE, or HUB/SITE behind another hub")
        missing = f"{path}: hub: sites: the key of site '{silo.dialling}' is missing"
        require(silo.dialling in hub.pins, f"{missing}; its owner reads it out: `ray-fed site init` prints it")
    return hub


def _yaml(path: str) -> dict[str, Any]:
    try:
        content = parse_yaml(read_bounded(at_home(path), MAX_YAML_BYTES), path, "ask who wrote it for another")
    except FileNotFoundError as error:
        raise ConfigError(f"federation={path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"federation={path}: cannot be read: {error.strerror}") from error
    except DataError as error:
        raise ConfigError(f"federation={error}") from error
    require(isinstance(content, dict), f"{path}: must be a mapping with the key 'silos'")
    return content


def _entry(values: Any, where: str) -> SiteEntry:
    require(isinstance(values, Mapping), f"{where}: must be a mapping with the keys name and data, not {values!r}")
    name = values.get("name")
    where = f"{where} ({name})" if name else where
    there = "data" in values or "dataset" in values
    require(there, f"{where}: key 'data' is missing; give a path on the site's disk, or 'embedded', or a dataset")
    return _section(SiteEntry, values, where)


def _section(cls: type[Section], values: Mapping[str, Any], where: str) -> Section:
    try:
        return from_mapping(cls, values, where)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from error


def _check_names(silos: Sequence[SiteEntry], path: str) -> None:
    names = [silo.name for silo in silos]
    for number, name in enumerate(names):
        require(bool(name), f"{path}: silos[{number}]: key 'name' is missing")
        fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) is not None and name not in (
            "test",
            "pooled",
            "federated",
        )
        require(fits, f"{path}: silo name {name!r} must be letters, digits, - and _, and not test, pooled or federated")
        require(
            names.count(name) == 1, f"{path}: silo name {name!r} occurs {names.count(name)} times; names must differ"
        )


def _confine_states(entries: Sequence[Any], path: str) -> None:
    """Put the folders that the file names where it may name some; ConfigError for any other place."""
    for number, entry in enumerate(entries):
        given = entry.get("state") if isinstance(entry, dict) else None
        if not given:
            continue
        fits = isinstance(given, str) and PLAIN_NAME.fullmatch(given) is not None
        refused = f"{path}: silos[{number}]: state={given!r} chooses where files are written"
        name = entry.get("name")
        remedy = f"give a plain name, for a folder in {STATE_FOLDER}, or --set silos.{name}.state=FOLDER"
        require(fits, f"{refused}; {remedy} on the command line")
        entry["state"] = f"{STATE_FOLDER}/{given}"


def _apply(overrides: Sequence[str], content: dict[str, Any], path: str) -> None:
    for override in overrides:
        key, equals, value = override.partition("=")
        parts = key.split(".")
        require(bool(equals), f"--set {override!r} must be silos.NAME.FIELD=VALUE or test.FIELD=VALUE")
        if parts[0] == "test" and len(parts) == 2:
            target = content["test"] = content.get("test") or {}
            require(isinstance(target, dict), f"{path}: test: must be a mapping with the key data, not {target!r}")
        elif parts[0] == "silos" and len(parts) == 3:
            target = _silo_named(content["silos"], parts[1], path)
        else:
            raise ConfigError(f"--set {override!r} must be silos.NAME.FIELD=VALUE or test.FIELD=VALUE")
        field = parts[-1]
        hints = {entry.name: entry for entry in fields(SiteEntry)}
        if field not in hints:
            raise ConfigError(f"--set {override!r}: {unknown_name('key', field, hints)}")
        target[field] = _mapping(value, override) if field == "where" else coerce(value, hints[field].type, field)


def _mapping(text: str, override: str) -> Any:
    try:
        return parse_yaml(text, f"--set {override!r}", "quote it")
    except DataError as error:
        raise ConfigError(str(error)) from error


def _silo_named(entries: Sequence[Any], name: str, path: str) -> dict[str, Any]:
    known = [str(entry.get("name", "")) for entry in entries if isinstance(entry, dict)]
    for entry in entries:
        if isinstance(entry, dict) and str(entry.get("name")) == name:
            return entry
    raise ConfigError(f"{path}: {unknown_name('silo', name, known)}")
