"""Addresses of databases: SCHEME://USER@HOST/DATABASE, with the secrets kept out of them.

A password may stand in no address that others can read: a federation file, a command line and a run's config.yaml are
copied, and processes list their commands. `${NAME}` in its place names a variable of the environment in which the silo
runs; there, and only there, `filled` looks it up. An owner's site file, which nobody else can read, may hold one:
`split` takes it out of the address before anything else sees it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from ray_fed.config import at_home, require
from ray_fed.errors import ConfigError, DataError, Trouble

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(?:([^/?#]*)@)?([^@]*)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_OPTION = re.compile(
    r"[?&](?!passfile=)([^=&#]*(?:pass|pwd|secret|token|api_?key|credential)[^=&#]*)=([^&#]*)", re.IGNORECASE
)
_SHOWN_PASSWORD = re.compile(r"(://[^/?#\s:@'\"]*:)(?!\$\{\w*\}@)[^\s'\"]*@")
_SHOWN_OPTION = re.compile(_SECRET_OPTION.pattern.replace("([^&#]*)", r"(?!\$\{)[^&#\s'\"]*"), re.IGNORECASE)
OUR_VARIABLES = "RAY_FED_"
"""How variables begin that somebody else's file may name: it chooses the server that gets their values."""


def scheme_of(path: str) -> str:
    """Return the scheme of an address without its driver, in small letters; "" for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", path)
    return found[1].lower().partition("+")[0] if found else ""


def redacted(text: str) -> str:
    """Return a text with every password in an address as ***."""
    return _SHOWN_OPTION.sub(lambda found: found[0][: found.end(1) - found.start()] + "=***",
                             _SHOWN_PASSWORD.sub(r"\1***@", text))  # fmt: skip


def check_address(path: str, name: str = "data", only_ours: bool = False) -> None:
    """ConfigError, without the address, for one with a password in it; a path is none.

    only_ours   variables must begin with RAY_FED_, because who wrote the address may not be the data's owner
    """
    if not scheme_of(path):
        return
    found = _ADDRESS.fullmatch(path)
    if found is None:
        raise ConfigError(f"{name}: the address has an '@' after its server; write special characters as %XX")
    password = (found[2] or "").partition(":")[2]
    options = [value for _, value in _SECRET_OPTION.findall(path)]
    remedy = (
        f"write ${{{OUR_VARIABLES}PASSWORD}} in its place and set that variable where the silo runs, or use PGPASSWORD "
        "or ~/.pgpass there; an owner's site.yaml may hold it"
    )
    for secret in (password, *options):
        require(
            not secret or _VARIABLE.fullmatch(secret) is not None, f"{name}: the address holds a password; {remedy}"
        )
    for variable in _VARIABLE.findall(path) if only_ours else ():
        told = f"{name}: the variable {variable} would be told to a server that this address chooses"
        require(variable.startswith(OUR_VARIABLES), f"{told}; give it a name that begins with {OUR_VARIABLES}")


def split(address: str) -> tuple[str, str]:
    """Return an address without its password, and the password; "" where there is none, or a variable stands for it."""
    found = _ADDRESS.fullmatch(address)
    user, colon, password = ((found[2] or "") if found else "").partition(":")
    if not found or not colon or _VARIABLE.fullmatch(password):
        return address, ""
    return f"{found[1]}://{user}@{found[3]}", unquote(password)


def filled(address: str, password: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return an address with its variables' values and the password, all escaped; DataError for a variable that is
    not set. What it returns goes to a driver and nowhere else."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in environment:
            raise DataError(
                f"the environment variable {found[1]} is not set where the silo runs; its owner sets it there",
                failure=Trouble.OPTION_WRONG,
            )
        return quote(environment[found[1]], safe="")

    found = _ADDRESS.fullmatch(address)
    if found and password:
        user = (found[2] or "").partition(":")[0]
        address = f"{found[1]}://{user}:{_escaped(password)}@{found[3]}"
    return _VARIABLE.sub(value, address)


def _escaped(password: str) -> str:
    return password if _VARIABLE.fullmatch(password) else quote(password, safe="")


def shown(address: str) -> str:
    """Return how messages call a database: its scheme and the last part of its address, no server, no user."""
    found = _ADDRESS.fullmatch(address)
    last = Path(re.split("[?#]", found[3])[0].partition("/")[2]).name if found else ""
    return f"{scheme_of(address)} database '{last}'" if last else f"{scheme_of(address)} database"


def file_of(address: str) -> Path:
    """Return the file that SCHEME:///PATH names; `~` is the home of the account that this process runs under."""
    return at_home(address.partition(":///")[2])


def located(address: str, folder: Path) -> str:
    """Return SCHEME:///PATH with its path taken from `folder`, unless it is a whole one or begins with `~`."""
    scheme, slashes, path = address.partition(":///")
    require(
        bool(slashes and path), f"{redacted(address)} must name a file: SCHEME:///PATH, four slashes for a whole path"
    )
    return address if path.startswith("~") else f"{scheme}:///{os.path.abspath(folder / path)}"  # noqa: PTH100
