"""Load what `./file.py:name`, `package.module:name` or the name of an entry point refers to."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from kdsteps.errors import KdstepsError, nearest


def load_reference(reference: str, group: str) -> object:
    """The object that a reference names.

    Args:
        reference: `./file.py:name`, relative to the working directory; `package.module:name`; or
            an entry point.
        group: Of the entry points.

    Raises:
        KdstepsError: There is no such file, module, entry point or name.
    """
    place, _, name = reference.rpartition(":")
    if not place:
        return _entry_point(reference, group)
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place, reference)
    if not hasattr(module, name):
        names = [other for other in vars(module) if not other.startswith("_")]
        raise KdstepsError(f"{reference}: {place} has no {name!r}{nearest(name, names)}")
    return getattr(module, name)


def _from_file(path: Path) -> object:
    if not path.is_file():
        raise KdstepsError(f"{path}: there is no such file; paths start beside params.yaml")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_package(name: str, reference: str) -> object:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there and lacks something that it imports
        raise KdstepsError(
            f"{reference}: there is no module {name!r}; for a file write ./file.py:name"
        ) from error


def _entry_point(name: str, group: str) -> object:
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        raise KdstepsError(
            f"{name}: no installed package has such an entry point in {group}; for a function "
            f"of your own write ./file.py:name{nearest(name, found) if found else ''}"
        )
    return found[name].load()
