"""Flower's own package, imported when something of it is used: ray-fed works without it."""

from importlib import import_module
from typing import Any

from ray_fed.errors import ConfigError

INSTALL = "pip install 'ray-fed[flower]' -c constraints-flower.txt"


def flower(module: str) -> Any:
    """Return the module `flwr.<module>`; ConfigError where Flower is not installed."""
    try:
        return import_module(f"flwr.{module}")
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("flwr"):
            raise
        raise ConfigError(f"Flower is not installed in this environment ({error}): {INSTALL}") from error
