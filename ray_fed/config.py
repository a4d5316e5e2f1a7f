"""Configuration as frozen dataclasses: one class gives the defaults, the checks, the YAML keys and the --help text.

A string under a field is its documentation. Field types understood on the command line: str, int, float, bool,
`X | None`, `tuple[X, ...]` (comma-separated), `Literal[...]` (choices) and `PathText`, in which `~` is the home of
who gave it.
"""

import argparse
import ast
import difflib
import importlib
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ray_fed.errors import ConfigError

Config = TypeVar("Config")
PathText = Annotated[str, "path"]
"""A place on this machine's disk, or a word that stands for one ('embedded'), or a URL."""


def path_text(text: str) -> str:
    """Return a place with `~` as the home folder it stands for; also in NAME=~/place. ConfigError for nobody's home."""
    name, equals, place = ("", "", text) if text.startswith("~") else text.partition("=")
    return name + equals + str(at_home(place)) if place.startswith("~") else text


def path_option(text: str) -> str:
    """Return what `path_text` does, with its reason for argparse."""
    try:
        return path_text(text)
    except ConfigError as error:  # a ValueError, for which argparse has a message of its own
        raise argparse.ArgumentTypeError(str(error)) from error


def field_documentation(cls: type) -> dict[str, str]:
    """Return field name -> the string that stands under the field in the source of the class, or of one it is made
    from."""
    found: dict[str, str] = {}
    for each in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        found |= _own_documentation(each)
    return found


def _own_documentation(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    documented = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = _literal_string(following)
            if text is not None:
                documented[statement.target.id] = " ".join(text.split())
    return documented


def _literal_string(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return value if isinstance(value, str) else None
    return None


def unknown_name(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name nobody knows, with the nearest that somebody does."""
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return ConfigError(f"unknown {what} {name!r}; {hint}")


def from_mapping(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Build `cls` from YAML values. ConfigError names `where`, the key and the nearest known one."""
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            error = unknown_name("key", str(key), known)
            raise ConfigError(f"{where}: {error}")
    hints = get_type_hints(cls, include_extras=True)
    return cls(**{key: coerce(value, hints[key], f"{where}: {key}") for key, value in values.items()})


def coerce(value: Any, annotation: Any, name: str) -> Any:
    """Return `value` (a YAML value or a command-line string) as the annotated type; ConfigError says what was wrong."""
    try:
        return _coerced(value, annotation)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}={value!r} must be {describe_type(annotation)}") from error


def _coerced(value: Any, annotation: Any) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation == PathText:
        return path_text(_coerced(value, str))
    if origin in (types.UnionType, typing.Union):
        return _coerced_union(value, args)
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        return tuple(_coerced(item, args[0]) for item in items)
    if origin is Literal:
        if value not in args:
            raise ValueError(value)
        return value
    if annotation is Any:
        return value
    if annotation is bool:
        return _boolean(value)
    if annotation in (int, float):
        return _number(value, annotation)
    if annotation is str and isinstance(value, (dict, list)):
        raise ValueError(value)
    return annotation(value)


def _coerced_union(value: Any, args: tuple[Any, ...]) -> Any:
    if value is None or value == "none":
        if type(None) in args:
            return None
        raise ValueError(value)
    for arg in args:
        if arg is not type(None):
            try:
                return _coerced(value, arg)
            except (ValueError, TypeError):
                continue
    raise ValueError(value)


def _boolean(value: Any) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    text = str(value).lower()
    if text not in known:
        raise ValueError(value)
    return known[text]


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool):
        raise ValueError(value)
    number = kind(value)
    if kind is int and isinstance(value, float) and value != number:
        raise ValueError(value)
    return number


def describe_type(annotation: Any) -> str:
    """Return a type in words for messages and --help."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe_type(arg) for arg in args)
    if origin is tuple:
        return f"a comma-separated list, each {describe_type(args[0])}"
    if origin is Literal:
        return " | ".join(repr(arg) for arg in args)
    words = {int: "a whole number", float: "a number", str: "text", PathText: "a path", bool: "true or false"}
    words[type(None)] = "none"
    return words.get(annotation, str(annotation))


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add `--field-name` for every field of `cls`; an option not given stays out of the namespace.

    `cls.OPTION_GROUPS`, if there, maps the first field of a group to the group's title. A field whose metadata hold
    'repeatable', the placeholder of its value, gathers what it is given each time, in a list.
    """
    docs, hints, target = field_documentation(cls), get_type_hints(cls, include_extras=True), parser
    groups: Mapping[str, str] = getattr(cls, "OPTION_GROUPS", {})
    for field in fields(cls):
        if field.name in groups:
            target = parser.add_argument_group(groups[field.name])
        target.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            default=argparse.SUPPRESS,
            action="extend" if "repeatable" in field.metadata else "store",
            type=_parser_of(hints[field.name], field.name),
            metavar=field.metadata.get("repeatable") or _metavar(hints[field.name]),
            help=_help(field, docs.get(field.name, "")),
        )


def _parser_of(annotation: Any, name: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return coerce(text, annotation, name)
        except ConfigError as error:  # a ValueError, for which argparse has a message of its own
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _metavar(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "{" + ",".join(map(str, args)) + "}"
    if origin in (types.UnionType, typing.Union):
        return "|".join(dict.fromkeys(_metavar(arg) for arg in args if arg is not type(None)))
    if origin is tuple:
        return f"{_metavar(args[0])},..."
    return {int: "INT", float: "NUMBER", bool: "BOOL", PathText: "PATH"}.get(annotation, "TEXT")


def _help(field: Field, documentation: str) -> str:
    if "repeatable" in field.metadata:
        return documentation.replace("%", "%%")
    default = None if field.default is MISSING else field.default
    shown = ",".join(map(str, default)) or "none" if isinstance(default, tuple) else default
    return f"{documentation} (default: {shown})".replace("%", "%%")


def at_home(path: str) -> Path:
    """Return a path with `~` as the home of the account that this process runs under; ConfigError for a home that is
    not there."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no such home; ~/ is that of this account") from error


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition`."""
    if not condition:
        raise ConfigError(message)


def require_gpus(num_gpus: float | None, name: str = "num_gpus") -> None:
    """Raise ConfigError unless a silo, or a task, can have that much of one GPU; None leaves it open."""
    asked = 0.0 if num_gpus is None else num_gpus
    require(isfinite(asked) and asked >= 0, f"{name}={num_gpus} must be a finite number, 0 or more")
    one = "a silo or task computes on one GPU: ask for 1, for a share such as 0.5, or for 0, the CPU"
    require(asked <= 1, f"{name}={asked:g}: {one}; further GPUs serve further silos")
    require(asked == 0 or asked >= 1e-4, f"{name}={asked:g} is less than Ray tells apart (0.0001); 0 is the CPU")


def own_class(option: str, name: str) -> Any:
    """Import what a user names as MODULE:CLASS; the current folder counts as a place of modules. ConfigError where it
    is not there."""
    module_name, _, class_name = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{option}={name!r}: {error}; give MODULE:CLASS of a module here or installed") from error
