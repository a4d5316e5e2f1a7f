"""`ray-fed site check`: one line for each thing that a run will need, ok or failed with its remedy."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.site.init import introduction
from ray_fed.config import at_home
from ray_fed.deployment.certificates import days_left
from ray_fed.errors import ConfigError, FedError
from ray_fed.federation.reasons import counted_notes, counted_reasons
from ray_fed.materials.databases.database import open_database
from ray_fed.materials.databases.kinds import is_on_disk
from ray_fed.materials.databases.source import Source
from ray_fed.materials.targets import Target, labels
from ray_fed.materials.units import checked_unit
from ray_fed.perimeter.policy import require_site_file, site_path
from ray_fed.reporting.environment import gpu_names
from ray_fed.sites.agent import HubAddress
from ray_fed.sites.hub import Hub
from ray_fed.sites.link import Certificates, listed
from ray_fed.sites.probe import probe
from ray_fed.sites.site_file import (
    Dataset,
    HubEntry,
    OwnTask,
    RelayFile,
    SiteFile,
    is_relay_file,
    read_relay_file,
    read_site_file,
)
from ray_fed.sites.tasks import check_source
from ray_fed.sites.wire import PROTOCOL

FEW_DAYS = 14.0

Check = tuple[str, Callable[[], str]]
"""(what is checked, what does it): returns what was found, or raises a FedError that names the remedy."""


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print the lines; 1 when something failed, 2 when the file itself cannot be read."""
    path = site_path() if options["file"] is None else require_site_file(at_home(options["file"]))
    if is_relay_file(path):
        relay = read_relay_file(path)
        looks, told = (
            relay_checks(relay),
            [f"  site             {relay.name}", f"  certificate key  {_key_hash(relay)}"],
        )
    else:
        site = read_site_file(path)
        looks, told = checks(site), introduction(site)
    print(f"ok      site file: {path} is this account's alone")
    failed = sum(not _is_ok(name, look) for name, look in looks)
    print("\nfor the coordinator:")
    print("\n".join(told))
    return 1 if failed else 0


def _key_hash(file: RelayFile) -> str:
    try:
        return Certificates.read(file.hub.tls_folder).key_hash()
    except ConfigError:
        return f"(bring ca.crt, node.crt and node.key to {file.hub.tls_folder})"


def relay_checks(file: RelayFile) -> Iterator[Check]:
    """Yield what is checked of a hub between, which has no data."""
    yield "certificate", lambda: certificate(file.hub.tls_folder)
    yield "hub above", lambda: hub(file)
    yield "sites below", lambda: port(file)


def port(file: RelayFile) -> str:
    """Listen for a moment, as the hub would."""
    with Hub(file.relay.listen, Certificates.read(file.hub.tls_folder), file.relay.pins):
        return f"{file.relay.listen} is free for {listed(sorted(file.relay.pins))}"


def checks(file: SiteFile) -> Iterator[Check]:
    """Yield everything that is checked, in the order of a run."""
    for dataset in file.datasets.values():
        yield f"data set '{dataset.name}'", lambda dataset=dataset: opened(file, dataset)
    for name, own in file.own_tasks.items():
        yield f"own task '{name}'", lambda own=own: _source_checked(own)
    yield "certificate", lambda: certificate(file.hub.tls_folder)
    yield "hub", lambda: hub(file)
    yield "GPU", lambda: gpu(file)


def _is_ok(name: str, look: Callable[[], str]) -> bool:
    try:
        print(f"ok      {name}: {look()}")
    except FedError as error:
        print(f"failed  {name}: {' '.join(str(error).split())}")
        return False
    return True


def opened(file: SiteFile, dataset: Dataset) -> str:
    """Open a data set with each of its targets and filters; return what can be used."""
    if "property" not in file.tasks:
        if not is_on_disk(dataset.source):
            return "is for the site's own tasks to open"
        if not os.access(dataset.source, os.R_OK):
            raise ConfigError(f"{dataset.source} is not there, or may not be read; correct its source")
        return "is there"
    if not dataset.targets:
        raise ConfigError("no target is named, so nothing can be learned from it; write targets: {NAME: ...}")
    return "; ".join(f"{name}: {_counted(dataset, name, ())}" for name in dataset.targets) + "".join(
        f"; filter {name}: {_filtered(dataset, name)}" for name in dataset.filters
    )


def _filtered(dataset: Dataset, name: str) -> str:
    return _counted(dataset, next(iter(dataset.targets)), dataset.filters[name])


def _counted(dataset: Dataset, name: str, where: tuple[tuple[str, Any], ...]) -> str:
    """Return how many rows can be used for a target, and what is odd about them."""
    column = dataset.targets[name]
    source = Source(
        dataset.source, None, where, columns=dataset.columns, access=dataset.access, structures=dataset.structures,
        targets=(column.column,),
    )  # fmt: skip
    database = open_database(source)
    frame = database.frame
    target = Target(name, "" if column.classes else checked_unit(column.unit), classes=column.classes)
    _, reasons = labels([pd.Series(frame["target.0"])], [target], [target.unit])
    told = [first or second for first, second in zip(frame["reason"], reasons, strict=True)]
    usable, least = sum(not reason for reason in told), dataset.policy.min_examples
    if usable < least:
        raise ConfigError(f"{usable} usable rows are fewer than min_examples={least}; nothing about them may leave")
    odd = [f"{count} x {reason}" for reason, count in counted_reasons(told).items()]
    odd += [f"{count} x {note}" for note, count in counted_notes([*frame["note"], *database.notices]).items()]
    return f"{usable:,} usable rows of {len(frame):,}" + (f" ({'; '.join(odd)})" if odd else "")


def _source_checked(own: OwnTask) -> str:
    check_source(own)
    return f"{own.make} has the hash that is listed"


def certificate(folder: Path) -> str:
    """Look at the certificate and its key; return how long it counts."""
    Certificates.read(folder).key_hash()
    key, days = folder / "node.key", days_left(folder / "node.crt")
    if key.stat().st_mode & 0o077:
        raise ConfigError(f"{key}: others can read it; chmod 600 {key}")
    if days < 0:
        raise ConfigError(f"{folder / 'node.crt'} ended {-days:.0f} days ago; ask for a new one")
    return f"counts for {days:.0f} days" + ("; ask for a new one soon" if days < FEW_DAYS else "")


def hub(file: SiteFile | RelayFile) -> str:
    """Reach the hub as a run would, without beginning anything."""
    found = probe(file.name, address_of(file.hub), file.hub.tls_folder)
    if found.protocol != PROTOCOL:
        versions = f"it speaks protocol {found.protocol}, this site {PROTOCOL}"
        raise ConfigError(f"{versions}; install the same ray-fed at both ends")
    through = f" through {file.hub.proxy}" if file.hub.proxy else ""
    return f"{file.hub.address} answers{through}, has the pinned key, knows this site and speaks protocol {PROTOCOL}"


def address_of(hub: HubEntry) -> HubAddress:
    return HubAddress(hub.address, hub.key, hub.server_name, hub.proxy)


def gpu(file: SiteFile) -> str:
    """Compare the GPUs there are with those that silos ask for."""
    if file.device.address != "local":
        return f"the Ray cluster at {file.device.address} is asked when a silo starts"
    import torch

    names, asked = gpu_names(), file.device.num_gpus
    usable = len(names) if torch.cuda.is_available() else 0
    if asked and asked > usable:
        raise ConfigError(f"device: num_gpus={asked:g}, and torch can use {usable}; lower it, or install the driver")
    return f"{usable} ({', '.join(names)})" if usable else "none; silos train on the CPU"
