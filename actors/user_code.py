"""A user's own code travels with what is made of it: a task, a strategy, functions that these hold.

Workers import what is installed; a script's neighbours they do not have. `travelling(value)` is pickled as the sources
of the packages that the value comes from, then the value: whoever unpickles it has the value itself, and can import
the packages, whole, also later and inside of functions. Sources stay in memory; nothing is written to a worker's disk.

What is meant to be there, and is not, is named by the import itself: it fails where the value is unpickled.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import pickle
import pickletools
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ray_fed.deployment.installed import PACKAGES
from ray_fed.errors import ConfigError

MAX_BYTES = 32 << 20
"""Of the sources of one package; a larger one is to be installed."""
IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+(\w[\w.]*)[ \t]+import|import[ \t]+([^#;\n]+))", re.MULTILINE)


@dataclass(frozen=True)
class ModuleText:
    """One module: its text, and where it stood."""

    path: str
    is_package: bool
    content: bytes | None
    """None for a package without a file of its own."""


Sources = Mapping[str, ModuleText]
"""Name of a module -> what it is."""


class Travelling:
    """Pickles as the code that its value needs, then the value; unpickles as the value."""

    def __init__(self, value: object):
        self.value, self.code = value, code_of(value)

    def __reduce__(self) -> tuple:
        # A pickle is read from front to back: the code is there before anything of the value is imported.
        return _second, (_Code(self.code), self.value)


class Carried:
    """Holds a value that is pickled more than once on its way, each time with the code that it needs."""

    def __init__(self, value: Any):
        self.value = value

    def __reduce__(self) -> tuple:
        return _carried, (_Code(code_of(self.value)), self.value)


def _carried(_code: object, value: object) -> Carried:
    return Carried(value)


def pickled(value: object) -> bytes:
    """Return a value as it travels, without its code: equal for equal values of one process."""
    from ray import cloudpickle

    return cloudpickle.dumps(value)  # type: ignore[attr-defined]


class _Code:
    def __init__(self, sources: Sources):
        self.sources = sources

    def __reduce__(self) -> tuple:
        return install, (dict(self.sources),)


def _second(_code: object, value: object) -> object:
    return value


def travelling(value: Any) -> Any:
    """Return what is to be handed to Ray in place of a value that may be of a user's own classes and functions."""
    return Travelling(value)


# ---- at the sender's: which code?


def code_of(value: object) -> dict[str, ModuleText]:
    """Return the modules that a value needs and that are not installed, each with the whole package that it is of, and
    those that their texts import. ConfigError for a package that is too large to travel."""
    found: dict[str, ModuleText] = {}
    waiting = [name.partition(".")[0] for name in _strings_in_pickle(value)]
    while waiting:
        top = waiting.pop()
        if top in found or not (files := _sources_of(top)):
            continue
        found |= files
        for source in files.values():
            waiting += [name for name in _imports(source.content or b"") if name not in found]
    return found


def _strings_in_pickle(value: object) -> Iterator[str]:
    """Yield whatever may name a module in a pickle of the value: classes and functions by name, and the names in code
    that is pickled as such, such as a script's."""
    content = io.BytesIO()
    _NamesPickler(content, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=lambda _: None).dump(value)
    seen = {text for _, text, _ in pickletools.genops(content.getvalue()) if isinstance(text, str)}
    parts = {part for text in seen for part in text.split(":")}  # a strategy may be named MODULE:CLASS
    yield from (part for part in parts if all(word.isidentifier() for word in part.split(".")))


def _NamesPickler(*given: Any, **more: Any) -> Any:
    import ray
    from ray import cloudpickle
    from ray.actor import ActorHandle

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
        def persistent_id(self, obj: object) -> str | None:
            return "elsewhere" if isinstance(obj, ray.ObjectRef | ActorHandle) else None

    return Pickler(*given, **more)


def _sources_of(top: str) -> dict[str, ModuleText]:
    """Return the modules of a top-level package or module of the user; none of what is installed, or is no module."""
    if came := _came(top):  # to this process, with a task
        return came
    spec = _spec(top)
    if spec is None or top in PACKAGES or top == "__main__":
        return {}
    if spec.submodule_search_locations is None:
        path = Path(spec.origin or "")
        return {top: ModuleText(str(path), False, path.read_bytes())} if _is_own(path) and path.suffix == ".py" else {}
    folders = [Path(folder) for folder in spec.submodule_search_locations if _is_own(Path(folder))]
    if not spec.origin and top not in sys.modules:  # any folder could be a package; only one in use is
        return {}
    found = {name: source for folder in folders for name, source in _package(top, folder)}
    size = sum(len(source.content or b"") for source in found.values())
    if size > MAX_BYTES:
        raise ConfigError(
            f"package '{top}' ({folders[0]}) has {size >> 20} MB of sources, too much to travel with a task; install "
            "it where the silos are"
        )
    return found


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__spec__", None)
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _package(name: str, folder: Path) -> Iterator[tuple[str, ModuleText]]:
    start = folder / "__init__.py"
    yield name, ModuleText(str(start), True, start.read_bytes() if start.is_file() else None)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name.isidentifier() and entry.name != "__pycache__":
            yield from _package(f"{name}.{entry.name}", Path(entry.path))
        elif entry.is_file() and entry.name.endswith(".py") and entry.name != "__init__.py":
            yield f"{name}.{entry.name[:-3]}", ModuleText(entry.path, False, Path(entry.path).read_bytes())


def _imports(content: bytes) -> Iterator[str]:
    """Yield the top-level names that a text imports anywhere in it, and perhaps a word of a docstring besides."""
    for one, several in IMPORT.findall(content.decode("utf-8", "replace")):
        yield from (part.split()[0].partition(".")[0] for part in (one or several).split(",") if part.split())


def _is_own(path: Path) -> bool:
    """Whether a file is the user's: neither of Python nor where packages are installed."""
    if not path.exists() or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not path.is_relative_to(sysconfig.get_paths()["stdlib"])


# ---- at the receiver's


def install(sources: Sources) -> None:
    """Let this process import the modules; another version of them that came earlier goes."""
    tops = {name.partition(".")[0] for name in sources}
    new = {top for top in tops if not (_came(top) == _of(sources, top) or _is_from_file(top, sources[top]))}
    for name in [name for name in sys.modules if name.partition(".")[0] in new]:
        del sys.modules[name]
    if new:
        sys.meta_path.insert(0, Finder({name: sources[name] for name in sources if name.partition(".")[0] in new}))


def _came(top: str) -> dict[str, ModuleText]:
    """Return the modules of a package that has come to this process with a task, none of others."""
    return next((each.package(top) for each in sys.meta_path if isinstance(each, Finder) and top in each.sources), {})


def _is_from_file(top: str, source: ModuleText) -> bool:
    """Whether this process has imported the package from where it stands, as the one does that it comes from."""
    module = sys.modules.get(top)
    is_file = module is not None and not isinstance(getattr(module, "__loader__", None), Finder)
    where = [getattr(module, "__file__", None), *(str(Path(each) / "__init__.py") for each in _path_of(module))]
    return is_file and source.path in where


def _path_of(module: ModuleType | None) -> list[str]:
    return list(getattr(module, "__path__", ()))


def _of(sources: Sources, top: str) -> dict[str, ModuleText]:
    return {name: source for name, source in sources.items() if name.partition(".")[0] == top}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds modules among sources that came with a task. Tracebacks show their lines."""

    def __init__(self, sources: Sources):
        self.sources = dict(sources)

    def package(self, top: str) -> dict[str, ModuleText]:
        return _of(self.sources, top)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:  # fmt: skip
        source = self.sources.get(fullname)
        if source is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=source.path, is_package=source.is_package)
        if source.is_package:  # where they stood: what is no text, such as a compiled module, is found there if at all
            spec.submodule_search_locations = [str(Path(source.path).parent)]
        spec.has_location = source.content is not None
        return spec

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.sources[fullname].content or b"")

    def get_code(self, fullname: str) -> Any:
        return compile(self.get_source(fullname), self.sources[fullname].path, "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        return self.sources[fullname].is_package
