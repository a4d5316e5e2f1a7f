"""Packages that only some kinds of source need: the extras of pyproject.toml."""

from importlib.util import find_spec

from ray_fed.errors import DataError, Trouble


def required_package(module: str, extra: str, source: str) -> None:
    """DataError, with what to install, where a package is not here."""
    if find_spec(module) is None:
        raise DataError(
            f"{source} needs the package {module}: pip install 'ray-fed[{extra}]' where the silo runs",
            failure=Trouble.PACKAGE_MISSING,
        )
