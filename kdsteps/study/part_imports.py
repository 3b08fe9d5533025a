"""From a name in params.yaml to the class or function behind it.

Only `load` imports. Methods import torch, so planning calls it in a separate process
(`part_cache`), and a stage calls it directly.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from kdsteps.errors import KdstepsError, nearest

Kind = Literal["methods", "models", "data", "metrics", "loggers"]

PACKAGE = Path(__file__).parent.parent
NOUNS: dict[Kind, str] = {
    "methods": "method",
    "models": "model family",
    "data": "kind of data",
    "metrics": "metric",
    "loggers": "logger",
}
_FOLDERS: dict[Kind, str] = {
    "methods": "methods",
    "models": "models/families",
    "data": "data/kinds",
    "loggers": "loggers",
}
_ENTRIES: dict[Kind, str] = {"models": "build", "data": "load", "loggers": "Writer"}
"""What a shipped module defines, except for methods."""
_BASES = {"base"}  # modules of these folders that are not parts


@cache
def shipped(kind: Kind) -> tuple[str, ...]:
    """The parts that ship with kdsteps, by the names of their modules."""
    if kind not in _FOLDERS:
        return ()
    files = (PACKAGE / _FOLDERS[kind]).glob("[a-z]*.py")
    return tuple(sorted({file.stem for file in files} - _BASES))


@cache
def installed(kind: Kind) -> dict[str, str]:
    """The entry points of installed packages, `package.module:Name` by name."""
    return {point.name: point.value for point in entry_points(group=f"kdsteps.{kind}")}


def location(kind: Kind, reference: str) -> str:
    """Where a part is defined: `module:Name`, `./file.py:Name`, or a shipped method's module alone.

    Raises:
        KdstepsError: The reference is neither a known name nor of the form `place:Name`.
    """
    if reference in shipped(kind):
        module = f"kdsteps.{_FOLDERS[kind].replace('/', '.')}.{reference}"
        return f"{module}:{_ENTRIES[kind]}" if kind in _ENTRIES else module
    place, colon, name = reference.rpartition(":")
    if colon and place and name:
        return reference
    if reference in installed(kind):
        return installed(kind)[reference]
    if not colon and (reference.endswith(".py") or "/" in reference or "." in reference):
        raise KdstepsError(
            f"{reference!r} does not say which {NOUNS[kind]}; add its name in the module, as in "
            f"'{reference}:Name'"
        )
    names = sorted({*shipped(kind), *installed(kind)})
    raise KdstepsError(f"there is no {NOUNS[kind]} {reference!r}{nearest(reference, names)}")


def load(kind: Kind, reference: str) -> Any:
    """Import the class or function that a reference names.

    Paths and modules are looked up in the current folder, that of the study.

    Raises:
        KdstepsError: It does not exist, cannot be imported, or is not what this kind needs.
    """
    return _load(kind, location(kind, reference), str(Path.cwd()))


@cache
def _load(kind: Kind, found: str, folder: str) -> Any:
    place, colon, name = found.rpartition(":")
    if not colon:
        return method_in(importlib.import_module(found))
    module = _imported(place, Path(folder))
    value: Any = module
    for attribute in name.split("."):
        if not hasattr(value, attribute):
            there = nearest(attribute, _offered(kind, module))
            raise KdstepsError(f"{place} has no {NOUNS[kind]} {name!r}{there}")
        value = getattr(value, attribute)
    _check(kind, found, value)
    return value


def method_in(module: ModuleType) -> type:
    """The one class derived from `Method` that a module defines."""
    found = _methods_of(module)
    if len(found) != 1:
        raise ValueError(f"{module.__name__} defines {len(found)} methods; it should define one")
    return found[0]


def source_of(module: ModuleType) -> Path | None:
    """The Python source file of a module, if there is one.

    Some of torch's modules, such as `torch.ops`, name a file without a folder, which is not there.
    """
    path = getattr(module, "__file__", None)
    return Path(path) if path and path.endswith(".py") and os.path.isabs(path) else None


def _imported(place: str, root: Path) -> ModuleType:
    """Import a module by dotted name or path, with the study's folder on the import path."""
    if str(root) not in sys.path:
        sys.path.append(str(root))  # at the end: a file of the study hides no installed package
    if place.endswith(".py"):
        return _from_file(place, root / place)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{place}.".startswith(f"{error.name}."):
            raise KdstepsError(
                f"there is no module {error.name!r}; install it, or write a path such as "
                "'./file.py:Name' for a file next to params.yaml"
            ) from error
        raise KdstepsError(_import_sentence(place, error)) from error
    except (Exception, SystemExit) as error:  # it is the user's code: anything can happen
        raise KdstepsError(_import_sentence(place, error)) from error


def _from_file(place: str, path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        others = [f"./{file.name}" for file in sorted(path.parent.glob("*.py")) if file.is_file()]
        hint = nearest(place, others) if others else "; correct the path"
        raise KdstepsError(f"there is no file {place!r}{hint}")
    name = str(path)  # no importable name: it hides no module, and two files never share one
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and annotations look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise KdstepsError(_import_sentence(place, error)) from error
    return module


def _import_sentence(place: str, error: BaseException) -> str:
    """Why a module could not be imported: file, line and problem."""
    if isinstance(error, SyntaxError):
        file = shown_path(error.filename or place)
        return f"{file} line {error.lineno} is not valid Python ({error.msg}); correct that line"
    frame = own_frame(error)
    at = f" in line {frame.lineno} of {shown_path(frame.filename)}" if frame else ""
    reason = str(error).strip().partition("\n")[0]
    problem = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"{place} cannot be imported: {problem}{at}"


def own_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The last line of the user's own code that led to an error."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((frame for frame in frames if _is_users(frame.filename)), None)


def _is_users(filename: str) -> bool:
    path = Path(filename)
    return path.is_file() and is_users(path)


def is_users(path: Path) -> bool:
    """Whether a source file is the user's: not of kdsteps, not installed, not of Python."""
    outside = (PACKAGE, Path(sys.base_prefix, "lib"), Path(sys.prefix, "lib"))
    if "site-packages" in path.parts or "dist-packages" in path.parts:
        return False
    return not any(path.is_relative_to(folder) for folder in outside)


def shown_path(filename: str) -> str:
    """A path as params.yaml would have it."""
    path = Path(filename)
    return f"./{path.relative_to(Path.cwd())}" if path.is_relative_to(Path.cwd()) else filename


def _offered(kind: Kind, module: ModuleType) -> list[str]:
    """What a module has of a kind, for a message about a missing name."""
    if kind == "methods":
        return [found.__name__ for found in _methods_of(module)]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    ]


def _methods_of(module: ModuleType) -> list[type]:
    base = _method_base()
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]


def _method_base() -> type:
    base: type = importlib.import_module("kdsteps.methods.base").Method
    return base


def _check(kind: Kind, reference: str, value: Any) -> None:
    """Raise KdstepsError for an object that cannot be a part of this kind."""
    if kind != "methods":
        if not callable(value):
            raise KdstepsError(
                f"{reference!r} is a {type(value).__name__}; a {NOUNS[kind]} is a function or class"
            )
        return
    base = _method_base()
    if not (inspect.isclass(value) and issubclass(value, base)):
        what = "a class" if inspect.isclass(value) else f"a {type(value).__name__}"
        raise KdstepsError(
            f"{reference!r} is {what} that is not derived from kdsteps.methods.base.Method; "
            "every method has to be"
        )
    if inspect.isabstract(value):
        missing = ", ".join(sorted(getattr(value, "__abstractmethods__", ())))
        raise KdstepsError(f"{reference!r} does not define {missing}, which every method needs")
