"""`ray-fed ledger key SILO`: the public key by which other owners know a silo of this machine."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_fed.errors import ConfigError
from ray_fed.federation.task import SiloSpec
from ray_fed.perimeter.boundary import key_path
from ray_fed.perimeter.policy import read_site
from ray_fed.privacy.signing import SigningKey


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print the key, made at the first call. ConfigError where the owner names no folder that lasts."""
    silo = options["silo"]
    site = read_site(silo)
    if not site.ledger_folder:
        raise ConfigError(f"{site.path} names no folder for ledgers and keys; write 'ledger: /a/folder/that/lasts'")
    print(SigningKey.at(key_path(SiloSpec(silo, ""), site)).public)
    return 0
