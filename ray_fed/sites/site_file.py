"""What the owner of a site says, in `site.yaml`: the names by which others may speak of data, and what may come of it.

The file is the one of ray_fed/perimeter/policy.py, with these keys besides `perimeter`, `partners`, `ledger` and
`receive_models`:

    name: north                       what the coordinator calls this site
    hub:
      address: hub.example.org:7443   where this site dials out to; any field of `HubEntry`
      key: 3fa1...                    hash of the hub's public key, as its owner reads it out
      tls: ~/ray-fed/tls              folder with ca.crt, node.crt and node.key
    datasets:
      alloys:                         any field of `Dataset`; the name is all that a coordinator ever says
        source: ~/data/alloys.parquet    or the address of a database, with query or table, query_timeout, password
        targets: {formation_energy_per_atom: {column: e_form, unit: eV/atom}}
        columns: [formula, spacegroup_number]
        filters: {pbe: {functional: PBE}}
        perimeter: {min_examples: 20, epsilon_budget: 8}
    tasks: [property]                 of those in ray_fed/sites/tasks.py
    own_tasks: {graphs: {make: my_lab.graphs:make_task, sha256: 9b0c...}}
    device: {address: local, num_gpus: 1}
    state: ~/ray-fed/state            optimiser states during a run

It belongs to the account that runs the site, mode 0600. Nothing that a coordinator sends is read into it.

A hub between sites and coordinator (`ray-fed site relay`) has a file of the same name and mode, with `name`, `hub`,
`ledger`, for its log, and

    relay:                            any field of `Relay`
      listen: 0.0.0.0:7443
      sites: {north: 3fa1..., south: 77c0...}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any

from ray_fed.config import at_home, coerce, from_mapping, require, require_gpus, unknown_name
from ray_fed.errors import ConfigError
from ray_fed.materials.databases.addresses import check_address, split
from ray_fed.materials.databases.kinds import whole_path
from ray_fed.materials.databases.source import Access, check_structures
from ray_fed.perimeter.owner_file import read_owned
from ray_fed.perimeter.policy import (
    Policy,
    Site,
    check_keys,
    ledger_folder_of,
    mapping_of,
    model_folder_of,
    partners_of,
    policy_of,
    site_path,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HASH = re.compile(r"[0-9a-f]{64}")
PORT = re.compile(r".+:[0-9]{1,5}")
TASK_NAMES = ("property",)
"""Built in: ray_fed/sites/tasks.py."""
EMBEDDED = "embedded"
"""The source that needs no file: model crystals."""
ACCESS_KEYS = tuple(each.name for each in fields(Access))
"""What is said of a data set in a database besides its address."""
RELAY_KEYS = ("name", "hub", "relay", "ledger")
STATE_FOLDER, LEDGER_FOLDER = "~/ray-fed/state", "~/ray-fed/ledger"


@dataclass(frozen=True)
class TargetColumn:
    """A column that may be learned."""

    column: str
    """Its name in the owner's source, which others do not hear."""
    unit: str
    """Its unit; "" for classes."""
    classes: tuple[str, ...] = ()
    """Labels that it holds, if they are classes: what others may learn to tell apart, and hear of."""


@dataclass(frozen=True)
class Dataset:
    """Rows that others may train on, by a name."""

    name: str
    """What a coordinator says."""
    source: str
    """File or folder on this machine, address of a database without its password, or 'embedded'; what the site's own
    tasks get as their source."""
    targets: Mapping[str, TargetColumn]
    """Name by which others know a target -> the column, and its unit. Empty for tasks that need none."""
    columns: tuple[str, ...]
    """Columns that may be used as inputs; all that are understood if not given."""
    filters: Mapping[str, tuple[tuple[str, Any], ...]]
    """Name of a condition that others may ask for -> (column, value) pairs; a coordinator has no conditions of its
    own."""
    policy: Policy
    """What may leave: `perimeter` of the site, with what the data set has of its own, such as an `epsilon_budget`."""
    access: Access = field(default_factory=Access)
    """Of a database: what it is asked, and its password."""
    structures: str = ""
    """Which of several structures in one file: all, first, or a number from 1; all where each has a label of its own if
    not given."""


@dataclass(frozen=True)
class HubEntry:
    """Where the site dials out to, and whom it expects there."""

    address: str = ""
    """HOST:PORT."""
    key: str = ""
    """SHA-256 of the hub's public key, 64 digits; its owner's `ray-fed site key TLS-FOLDER` prints it."""
    tls: str = "~/ray-fed/tls"
    """Folder with this site's node.crt and node.key, and the authority's ca.crt."""
    server_name: str = ""
    """Name in the hub's certificate, where it is not that of its address."""
    proxy: str = ""
    """HOST:PORT of an HTTP CONNECT proxy; those that https_proxy names if not given."""

    def __post_init__(self) -> None:
        fits = PORT.fullmatch(self.address) is not None
        require(fits, f"address={self.address!r} must be HOST:PORT of the coordinator's hub")
        wanted = "must be the hash of the hub's key, 64 digits 0-9 a-f in quotes; ask the coordinator for it"
        require(HASH.fullmatch(self.key) is not None, f"key={self.key!r} {wanted}")

    @property
    def tls_folder(self) -> Path:
        return at_home(self.tls)


@dataclass(frozen=True)
class Listening:
    """Where sites that their owners run dial in."""

    listen: str = "0.0.0.0:7443"
    """HOST:PORT of this machine, the one port that is to be open."""
    sites: Any = None
    """Site -> hash of its public key, as its owner reads it out (`ray-fed site init` prints it). Another key is
    refused."""

    def __post_init__(self) -> None:
        require(PORT.fullmatch(self.listen) is not None, f"listen={self.listen!r} must be HOST:PORT")
        require(isinstance(self.sites or {}, Mapping), f"sites={self.sites!r} must be a mapping of sites to their keys")
        for site, key in self.pins.items():
            wanted = "must be the hash of the site's key, 64 digits 0-9 a-f in quotes"
            require(HASH.fullmatch(key) is not None, f"sites: {site}={key!r} {wanted}")
            fits = NAME.fullmatch(site) is not None
            require(fits, f"sites: {site!r} must be letters, digits, '-', '_' and '.', at most 64")

    @property
    def pins(self) -> dict[str, str]:
        return {str(site): str(key) for site, key in (self.sites or {}).items()}


@dataclass(frozen=True)
class Relay(Listening):
    """What a hub is that is a site of another hub."""

    patience: float | None = None
    """Seconds after which a round goes on without the sites that are late, where the coordinator does not say fewer
    (round_timeout); none waits as long as the coordinator does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.pins), "sites: is empty; name at least one site, with the hash of its key")
        fits = self.patience is None or (isfinite(self.patience) and self.patience > 0)
        require(fits, f"patience={self.patience} must be a finite number above 0")


@dataclass(frozen=True)
class Device:
    """Where the silos of this site work."""

    address: str = "local"
    """Ray: 'local' starts a private one, HOST:PORT or 'auto' joins that of the institution."""
    num_gpus: float | None = None
    """GPUs of each silo; an even share of what there is if not given, 0 for the CPU."""
    num_cpus: float = 1.0
    """CPUs of each silo."""
    memory_gb: float = 0.0
    """GB of main memory that Ray sets aside for each silo."""

    def __post_init__(self) -> None:
        require_gpus(self.num_gpus)
        for name in ("num_cpus", "memory_gb"):
            value = getattr(self, name)
            require(isfinite(value) and value >= 0, f"{name}={value} must be a finite number, 0 or more")


@dataclass(frozen=True)
class OwnTask:
    """A task in code of the site's own."""

    make: str
    """MODULE:FUNCTION of an installed package; called with the coordinator's plain options, it returns the task."""
    sha256: str
    """Of the source files of that package; `ray-fed site check` says what it is."""

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.make) is not None
        require(fits, f"make={self.make!r} must be MODULE:FUNCTION of an installed package")
        hash_fits = HASH.fullmatch(self.sha256) is not None
        require(hash_fits, f"sha256={self.sha256!r} must be 64 digits 0-9 a-f; `ray-fed site check` prints it")


@dataclass(frozen=True)
class SiteFile:
    """All that the owner says."""

    path: Path
    name: str
    hub: HubEntry
    datasets: Mapping[str, Dataset]
    tasks: tuple[str, ...]
    own_tasks: Mapping[str, OwnTask]
    partners: Mapping[str, str]
    """Silo -> its public key, for secure aggregation."""
    ledger_folder: Path
    state_folder: Path
    model_folder: Path | None
    """Where final models are put; None takes none."""
    device: Device = field(default_factory=Device)

    def site_of(self, dataset: Dataset) -> Site:
        """Return what the boundary of a silo on that data set must know."""
        folder = str(self.ledger_folder)
        return Site(dataset.policy, folder, self.path, self.partners, self.model_folder, self.key_file)

    @property
    def key_file(self) -> Path:
        """The key with which the site signs its ledgers and its part of secure sums."""
        return self.ledger_folder / "signing.key"


@dataclass(frozen=True)
class RelayFile:
    """All that the operator of a hub between says."""

    path: Path
    name: str
    hub: HubEntry
    relay: Relay
    log_folder: Path


def read_relay_file(path: Path | None = None) -> RelayFile:
    """Return what the operator's file says; see `read_site_file`."""
    reader = _read(path, "write name, hub and relay into it, as in cluster/network.md")
    for key in reader.content:
        none_here = f"{reader.path}: {key}: a hub between has no data; leave it out, it belongs into a site's own file"
        require(key in RELAY_KEYS, none_here)
    named = "relay" in reader.content
    require(named, f"{reader.path}: key 'relay' is missing; write relay: {{listen: HOST:PORT, sites: {{NAME: HASH}}}}")
    return RelayFile(
        reader.path,
        reader.name(),
        reader.section(HubEntry, "hub"),
        reader.section(Relay, "relay"),
        at_home(ledger_folder_of(reader.content, reader.path) or LEDGER_FOLDER),
    )


def is_relay_file(path: Path) -> bool:
    """Whether a file is that of a hub between, by its key `relay`. ConfigError as in `read_site_file`."""
    return "relay" in _read(path).content


def _read(path: Path | None, remedy: str = "make one with `ray-fed site init`") -> "_Reader":
    path = path or site_path()
    require(path.exists(), f"{path}: no such file; {remedy}")
    content = read_owned(path, is_secret=True)
    check_keys(content, path)
    return _Reader(path, content)


def read_site_file(path: Path | None = None) -> SiteFile:
    """Return what the owner's file says; where it stands: see policy.py.

    ConfigError names the file, the key, the value and the remedy.
    """
    reader = _read(path)
    path, content = reader.path, reader.content
    require("relay" not in content, f"{path}: relay: is for a hub between; start it with `ray-fed site relay`")
    alone = "counts where a coordinator's file names silos; here write it under datasets: NAME: perimeter"
    require("silos" not in content, f"{path}: silos: {alone}")
    return SiteFile(
        path,
        reader.name(),
        reader.section(HubEntry, "hub"),
        reader.datasets(),
        reader.tasks(),
        {name: reader.section(OwnTask, "own_tasks", name) for name in reader.names("own_tasks")},
        partners_of(content, path),
        at_home(ledger_folder_of(content, path) or LEDGER_FOLDER),
        at_home(reader.text("state", STATE_FOLDER)),
        model_folder_of(content, path),
        reader.section(Device, "device"),
    )


class _Reader:
    """The file's keys as what they stand for."""

    def __init__(self, path: Path, content: Mapping[str, Any]):
        self.path, self.content = path, content

    def text(self, key: str, default: str) -> str:
        return coerce(self.content.get(key, default), str, f"{self.path}: {key}")

    def name(self) -> str:
        name = self.text("name", "")
        wanted = "must be the site's name: letters, digits, '-', '_' and '.', as in the coordinator's file"
        require(NAME.fullmatch(name) is not None, f"{self.path}: name={name!r} {wanted}")
        return name

    def names(self, key: str) -> list[str]:
        """Return the names under a key; ConfigError for one that is none."""
        found = [str(name) for name in mapping_of(self.content.get(key), f"{self.path}: {key}")]
        for name in found:
            fits = NAME.fullmatch(name) is not None
            require(fits, f"{self.path}: {key}: {name!r} must be letters, digits, '-', '_' and '.', at most 64")
        return found

    def section(self, cls: type, *keys: str) -> Any:
        """Return what stands under keys as a dataclass of its fields."""
        where, values = f"{self.path}: {': '.join(keys)}", self._under(*keys)
        missing = [f.name for f in fields(cls) if f.name not in values and f.default is f.default_factory]
        require(not missing, f"{where}: key {missing[0] if missing else ''!r} is missing")
        try:
            return from_mapping(cls, values, where)
        except ConfigError as error:
            message = str(error)
            raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from error

    def _under(self, *keys: str) -> Mapping[str, Any]:
        values: Any = self.content
        for number, key in enumerate(keys):
            values = mapping_of(values.get(key), f"{self.path}: {': '.join(keys[: number + 1])}")
        return values

    def tasks(self) -> tuple[str, ...]:
        tasks = coerce(self.content.get("tasks", ()), tuple[str, ...], f"{self.path}: tasks")
        for name in tasks:
            if name not in TASK_NAMES:
                raise ConfigError(
                    f"{self.path}: tasks: {unknown_name('task', name, TASK_NAMES)}; others go to own_tasks"
                )
        return tasks

    def datasets(self) -> dict[str, Dataset]:
        found = {name: self._dataset(name) for name in self.names("datasets")}
        remedy = "name at least one data set, with its source and its targets"
        require(bool(found), f"{self.path}: datasets: is empty; {remedy}")
        return found

    def _dataset(self, name: str) -> Dataset:
        where, said = f"{self.path}: datasets: {name}", self._under("datasets", name)
        known = ("source", *ACCESS_KEYS, "structures", "targets", "columns", "filters", "perimeter")
        for key in said:
            if key not in known:
                raise ConfigError(f"{where}: {unknown_name('key', str(key), known)}")
        source, access = self._source(said, where)
        structures = str(said.get("structures") or "")
        check_structures(structures)
        return Dataset(
            name,
            source,
            {str(key): _target(value, f"{where}: targets: {key}") for key, value in _pairs(said, "targets", where)},
            coerce(said.get("columns") or (), tuple[str, ...], f"{where}: columns"),
            {str(key): _conditions(value, f"{where}: filters: {key}") for key, value in _pairs(said, "filters", where)},
            policy_of(self.content, self.path, said.get("perimeter"), f"{where}: perimeter"),
            access,
            structures,
        )

    def _source(self, said: Mapping[str, Any], where: str) -> tuple[str, Access]:
        """Return the source with its home filled in, and how it is asked; relative ones are relative to the file. A
        password within an address is taken out of it."""
        source = coerce(said.get("source") or "", str, f"{where}: source")
        wanted = "give a file, a folder, the address of a database or 'embedded'"
        require(bool(source), f"{where}: key 'source' is missing; {wanted}")
        source, within = split(source)
        asked = {key: said[key] for key in ACCESS_KEYS if said.get(key) is not None}
        twice = not (within and "password" in asked)
        require(twice, f"{where}: password: the address has one, too; write it once")
        check_address(source, f"{where}: source")
        access = from_mapping(Access, {**({"password": within} if within else {}), **asked}, where)
        folder = self.path.absolute().parent
        return whole_path(str(at_home(source)) if source.startswith("~") else source, folder), access


def _pairs(said: Mapping[str, Any], key: str, where: str) -> list[tuple[Any, Any]]:
    return list(mapping_of(said.get(key), f"{where}: {key}").items())


def _target(value: Any, where: str) -> TargetColumn:
    wanted = f"{where}: must be {{column: NAME, unit: UNIT}} or {{column: NAME, classes: [LABEL, ...]}}, not {value!r}"
    require(isinstance(value, Mapping), wanted)
    texts = [part for key, part in value.items() if key != "classes"]
    fits = set(value) in ({"column", "unit"}, {"column", "classes"})
    require(fits and all(isinstance(part, str) and part for part in texts), wanted)
    labels = value.get("classes", [])
    require(isinstance(labels, list) and ("classes" not in value or len(labels) > 1), wanted)
    return TargetColumn(value["column"], value.get("unit", ""), tuple(_label(label) for label in labels))


def _label(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _conditions(value: Any, where: str) -> tuple[tuple[str, Any], ...]:
    wanted = f"{where}: must be a mapping of columns to values, e.g. {{functional: PBE}}, not {value!r}"
    require(isinstance(value, Mapping) and bool(value), wanted)
    for column, wished in value.items():
        require(isinstance(column, str) and isinstance(wished, str | int | float | bool), wanted)
    return tuple(value.items())
