"""`ray-fed site init`: the owner's file, commented, for the owner's eyes alone; and what the coordinator must know."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_fed.config import at_home, require
from ray_fed.errors import ConfigError
from ray_fed.materials.databases.addresses import check_address
from ray_fed.materials.databases.kinds import whole_path
from ray_fed.perimeter.owner_file import check_own_folder
from ray_fed.perimeter.policy import require_site_file, site_path
from ray_fed.privacy.signing import SigningKey
from ray_fed.sites.link import Certificates
from ray_fed.sites.site_file import SiteFile, read_site_file

QUESTIONS = {
    "name": "Name of this site, as the coordinator will call it",
    "hub": "HOST:PORT of the coordinator's hub",
    "hub_key": "Hash of the hub's public key, 64 digits (the coordinator reads it out)",
    "dataset": "A data set, as NAME=FILE or NAME=ADDRESS of a database",
    "target": "A column that may be learned, as NAME=COLUMN:UNIT",
}

TEMPLATE = """\
# What this site lets others do with its data. It belongs to you: mode 600, and nothing that a coordinator sends is read
# into it. `ray-fed site check` tries it, `ray-fed site start` serves it, and a change counts from the next invitation.

name: {name}                     # what the coordinator calls this site

hub:
  address: {address}             # this site dials out to it, and opens no port
  key: {key}
  tls: {tls}                     # folder with ca.crt, node.crt and node.key
{proxy}

datasets:                        # a coordinator says these names, never a path, a column or a condition
{datasets}
    # query: SELECT ... ORDER BY id   # of a database, or table: NAME; query_timeout: SECONDS; password: TEXT
    # structures: all            # of files that hold several; first, or a number from 1
    # columns: [formula]         # inputs that may be used; all that are understood if not given
    # filters: {{pbe: {{functional: PBE}}}}   # conditions that may be asked for by name
    # perimeter: {{min_examples: 50, epsilon_budget: 8}}   # rules of this data set beside those below

tasks: [property]                # what may be trained
# own_tasks: {{NAME: {{make: MODULE:FUNCTION, sha256: HASH}}}}   # installed code of your own

perimeter:                       # what may leave; all rules are in ray_fed/perimeter/policy.py
  # kinds: [description, moments, update]   # without metrics, moments or update: such messages stay here
  min_examples: 5                # fewest rows behind a mean or a sum

# partners: {{SITE: KEY}}          # keys of the other sites, for sums under masks
ledger: {ledger}                 # what left, line by line, signed; and this site's log
state: {state}                   # optimiser states during a run
{models}   # where the final models of runs are put
device:
  address: local                 # a Ray of this site's own; HOST:PORT or auto for the institution's
  # num_gpus: 1                  # for each silo; an even share of what there is if not given
"""


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Write the file and print what the coordinator must know. ConfigError for what is missing or already there."""
    path = site_path() if options["file"] is None else require_site_file(at_home(options["file"]))
    require(not os.path.lexists(path), f"{path} is there already; change it, or give another place with --file")
    text = _content(_answered(options))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_own_folder(path.absolute().parent)
    _write_private(path, text)
    try:
        file = read_site_file(path)
    except ConfigError:
        path.unlink()
        raise
    print(f"wrote {path}, which only this account can read\n\ntell the coordinator:")
    print("\n".join(introduction(file)))
    return 0


def introduction(file: SiteFile) -> list[str]:
    """Return what a coordinator writes into the federation file, and other owners into theirs."""
    try:
        shown = Certificates.read(file.hub.tls_folder).key_hash()
    except ConfigError:
        shown = f"(bring ca.crt, node.crt and node.key to {file.hub.tls_folder}; then: ray-fed site key)"
    signing = SigningKey.at(file.key_file).public
    return [f"  site             {file.name}", f"  certificate key  {shown}", f"  signing key      {signing}"]


def _answered(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, those that are missing asked for where somebody can answer."""
    found = dict(options)
    for name, question in QUESTIONS.items():
        if not found[name] and sys.stdin.isatty():
            said = input(f"{question}: ").strip()
            found[name] = [said] if name in ("dataset", "target") else said
        flag = f"--{name.replace('_', '-')}"
        require(bool(found[name]), f"{flag} is missing: {question[0].lower()}{question[1:]}")
    return found


def _content(found: Mapping[str, Any]) -> str:
    targets = dict(_target(text) for text in found["target"])
    sets = [_parted(text, "=", "--dataset", "NAME=FILE") for text in found["dataset"]]
    written = [
        f"  {_quoted(name)}:\n    source: {_quoted(_source(place))}\n    targets: {json.dumps(targets)}"
        for name, place in sets
    ]
    models = found["receive_models"]
    proxy = f"  proxy: {_quoted(found['proxy'])}" if found["proxy"] else "  # proxy: HOST:PORT"
    return TEMPLATE.format(
        name=_quoted(found["name"]), address=_quoted(found["hub"]), key=_quoted(found["hub_key"]),
        tls=_quoted(found["tls"]), proxy=proxy, datasets="\n".join(written),
        models=f"receive_models: {_quoted(models)}" if models else "# receive_models: ~/ray-fed/models",
        ledger=_quoted(found["ledger"]), state=_quoted(found["state"]),
    )  # fmt: skip


def _source(place: str) -> str:
    check_address(place, "--dataset")
    return whole_path(place, Path.cwd())


def _target(text: str) -> tuple[str, dict[str, str]]:
    form = "NAME=COLUMN:UNIT"
    name, said = _parted(text, "=", "--target", form)
    column, unit = _parted(said, ":", "--target", form)
    return name, {"column": column, "unit": unit}


def _parted(text: str, mark: str, option: str, form: str) -> tuple[str, str]:
    before, _, after = text.partition(mark)
    require(bool(before and after), f"{option} {text!r} must be {form}")
    return before, after


def _quoted(value: str) -> str:
    """Return a text as YAML reads it back, whatever is in it."""
    return json.dumps(value, ensure_ascii=False)


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
