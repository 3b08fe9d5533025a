"""Where things are: the installed kdsteps, what ships with it, and the folder of a study."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def shipped(name: str) -> Path:
    """A folder that ships with kdsteps: inside an installed package, next to it in a clone.

    The package is found by this file. `kdsteps.__file__` would be wrong where a folder called
    kdsteps in the current folder hides the package.
    """
    package = Path(__file__).resolve().parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def installed_version() -> str:
    """The version of kdsteps, such as "0.1.0"; "unknown" where it runs without being installed."""
    try:
        return version("kdsteps")
    except PackageNotFoundError:
        return "unknown"


def study_folder() -> Path:
    """The folder of the study, with what it caches: the current one.

    A temporary clone that `dvc exp run --temp` makes inside a study uses the study's own.
    """
    here = Path.cwd()
    for parent in here.parents:
        if parent.name == ".dvc" and here.is_relative_to(parent / "tmp" / "exps"):
            return parent.parent
    return Path()
