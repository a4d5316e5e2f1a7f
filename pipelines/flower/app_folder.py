"""The folder of a Flower app: its pyproject.toml names the apps and the values of their run config."""

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ray_fed.errors import ConfigError
from ray_fed.flower.package import flower

USUAL_SUPERNODES = 10
"""As many silos as Flower's simulation makes where an app does not say."""


@dataclass(frozen=True)
class AppFolder:
    """A Flower app as its folder describes it."""

    path: Path
    server_app: Any
    client_app: Any
    run_config: Mapping[str, Any]
    """Flat, nested keys with dots, as the apps see them."""
    num_supernodes: int | None
    """What the folder's federation says, in the older form of the file."""


def read_app_folder(path: Path | str, run_config: Mapping[str, Any] | None = None) -> AppFolder:
    """Import the apps of a folder. run_config: values in place of the folder's own. ConfigError says what is missing,
    or which key the app does not have."""
    folder = Path(path).expanduser().resolve()
    tool = _tool_section(folder)
    app = tool.get("app", {})
    components = app.get("components", {})
    missing = [name for name in ("serverapp", "clientapp") if name not in components]
    if missing:
        raise ConfigError(f"{folder}/pyproject.toml: [tool.flwr.app.components] does not name {' and '.join(missing)}")
    settled = _settled(app.get("config", {}), run_config or {}, folder)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    server_app, client_app = (_loaded(components[name], folder) for name in ("serverapp", "clientapp"))
    return AppFolder(folder, server_app, client_app, settled, _supernodes(tool.get("federations", {})))


def parsed_run_config(texts: list[str]) -> dict[str, Any]:
    """Return what `--run-config` says, as `flwr run` reads it: "key=1 other='text'", or a .toml file."""
    try:
        return flower("common.config").parse_config_args(texts)
    except Exception as error:  # Flower's own, of the command line
        raise ConfigError(f"run_config={' '.join(texts)!r} cannot be read: {' '.join(str(error).split())}") from error


def _tool_section(folder: Path) -> dict[str, Any]:
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise ConfigError(f"{folder} is no Flower app: it has no pyproject.toml; give the folder that `flwr run` takes")
    try:
        return tomllib.loads(file.read_text("utf-8")).get("tool", {}).get("flwr", {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _settled(own: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    flat = flower("common.config").flatten_dict(own)
    for key in given:
        if key not in flat:
            raise ConfigError(f"run_config has no '{key}'; {folder}/pyproject.toml has: {', '.join(flat) or 'none'}")
    return {**flat, **given}


def _loaded(place: str, folder: Path) -> Any:
    """Return the object at "module:attribute"; ConfigError where the module is another folder's."""
    module, _, name = place.partition(":")
    top = module.partition(".")[0]
    known = getattr(sys.modules.get(top), "__file__", None) or next(iter(_paths_of(top)), None)
    if known and not Path(known).resolve().is_relative_to(folder):
        raise ConfigError(f"{place}: this process has already imported '{top}' from {known}; run the app in its own")
    try:
        return getattr(import_module(module), name)
    except AttributeError as error:
        raise ConfigError(f"{folder}: {place} is not there: {error}") from error
    except ImportError as error:
        raise ConfigError(f"{folder}: {place} cannot be imported: {error}; install what the app needs") from error


def _paths_of(top: str) -> list[str]:
    return list(getattr(sys.modules.get(top), "__path__", []))


def _supernodes(federations: Mapping[str, Any]) -> int | None:
    named = federations.get(federations.get("default", ""), {})
    found = named.get("options", {}).get("num-supernodes") if isinstance(named, Mapping) else None
    return int(found) if found else None
