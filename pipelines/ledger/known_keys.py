"""The public keys by which this machine's owner knows coordinator and silos: told by their owners, not by the run."""

from collections.abc import Mapping, Sequence

from ray_fed.config import require
from ray_fed.errors import DataError
from ray_fed.federation.task import SiloSpec
from ray_fed.perimeter.boundary import key_path
from ray_fed.perimeter.policy import PUBLIC_KEY, read_site
from ray_fed.privacy.signing import SigningKey


def known_keys(given: Sequence[str], writers: Sequence[str]) -> dict[str, str]:
    """Return writer -> public key: as given (SILO=HEX), else the machine's own, else as the site file names it.

    given: must be of `writers`: a ledger that was expected and is not there was taken away. DataError names it;
    ConfigError for a text that is no name with a key.
    """
    told = dict(map(_name_and_key, given))
    for name in told:
        if name not in writers:
            raise DataError(f"--key {name}=...: the run has no ledger of '{name}', only of {', '.join(writers)}")
    return {**_of_site(writers), **told}


def _name_and_key(text: str) -> tuple[str, str]:
    name, _, key = text.rpartition("=")
    fits = bool(name) and PUBLIC_KEY.fullmatch(key)
    wanted = "must be NAME=KEY, with a key of 64 digits 0-9 a-f; its owner's `ray-fed ledger key NAME` prints it"
    require(bool(fits), f"--key {text!r} {wanted}")
    return name, key


def _of_site(writers: Sequence[str]) -> Mapping[str, str]:
    """Return the keys in the owner's file, and those whose private halves are on this machine."""
    found = {}
    for name in writers:
        site = read_site(name)
        own = key_path(SiloSpec(name, ""), site)
        if site.ledger_folder and own.is_file():
            found[name] = SigningKey.at(own).public
        elif name in site.partners:
            found[name] = site.partners[name]
    return found
