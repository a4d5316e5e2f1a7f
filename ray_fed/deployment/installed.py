"""Which ray-fed is installed on a machine: version and content.

The functions here use the standard library alone: they travel by value to machines that may have no ray-fed at all.
"""

import hashlib
import importlib.metadata
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PACKAGES = ("ray_fed", "actors", "pipelines")
DRIVERS_VARIABLE = "RAY_FED_DRIVER_PACKAGE"
"""Tells a job's processes which package its driver has. Not set where the driver's code is sent along."""


def installed_package() -> str | None:
    """Return version and content hash of the ray-fed of this machine, such as "0.1.0+3f2a91c04d5e"; None: none.

    Two installations with one version and other files differ. Code that came with a job is left out.
    """
    places = [_place(name) for name in PACKAGES]
    if None in places:
        return None
    digest = hashlib.sha256()
    for place in map(Path, filter(None, places)):
        for path in sorted(path for path in place.rglob("*") if _counts(path)):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(place.parent).as_posix()} {content}\n".encode())
    return f"{_version()}+{digest.hexdigest()[:12]}"


def differences(there: Mapping[str, str | None], here: str | None) -> list[str]:
    """Return one clause for each node whose package is not the one here."""
    return [
        f"node {node} has {f'ray-fed {package}' if package else 'no ray-fed'}"
        for node, package in sorted(there.items())
        if package != here
    ]


def _counts(path: Path) -> bool:
    """Whether a file is one that a wheel has: code, and the tables beside it."""
    return path.suffix == ".py" or (path.parent.name == "tables" and path.is_file())


def _place(name: str) -> str | None:
    spec = _spec(name)
    return next(iter(spec.submodule_search_locations or ()), None) if spec else None


def _spec(name: str) -> ModuleSpec | None:
    """Find a package where it is installed, even if a copy that Ray unpacked for a job stands in front of it."""
    installed = [folder for folder in sys.path if "runtime_resources" not in Path(folder).parts]
    for finder in sys.meta_path:
        spec = PathFinder.find_spec(name, installed) if finder is PathFinder else finder.find_spec(name, None)
        if spec:
            return spec
    return None


def _version() -> str:
    try:
        return importlib.metadata.version("ray-fed")
    except importlib.metadata.PackageNotFoundError:
        return "unversioned"  # a checkout on the path
