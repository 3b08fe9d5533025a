"""The installed kdsteps: its version, and the folders `workflow`, `profiles` and `recipes`."""

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
