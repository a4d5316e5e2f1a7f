"""The data owner's word on audits: a file on the silo's own machine. Without it, nothing is replayed."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from ray_fed.errors import ConfigError


def check_allowed(path: str, silos: Sequence[str]) -> None:
    """Raise a ConfigError naming the first silo that the policy file does not list under 'audit', and the remedy."""
    allowed = _allowed(Path(path).expanduser())
    for silo in silos:
        if silo not in allowed:
            raise ConfigError(
                f"silo '{silo}': its owner has not allowed an audit; the owner adds it to the list 'audit' in {path} "
                f"(audit: [{silo}]), or names another policy file with --policy"
            )


def _allowed(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"policy={path}: cannot be read: {' '.join(str(error).split())}") from error
    listed = content.get("audit", []) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise ConfigError(f"policy={path}: must be a mapping with the key 'audit', a list of silo names")
    return [str(name) for name in listed]
