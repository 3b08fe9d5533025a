"""kdsteps.lock: the version of kdsteps that a study outside of a clone uses.

The study's dvc.yaml depends on this file, since the installed package is in another place on every
machine. It is in git, so that colleagues use the same version until the study is moved to another.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from kdsteps.errors import KdstepsError
from kdsteps.files.digests import folder_digest
from kdsteps.files.text import write_text
from kdsteps.places import installed_version, shipped
from kdsteps.study.yaml_text import NotYaml, read_yaml

LOCK = Path("kdsteps.lock")
_PACKAGE = Path(__file__).parent.parent
_HEAD = "# The kdsteps version that this study uses; `kdsteps lock` sets it to the installed one.\n"


def lock_text() -> str:
    """The content of kdsteps.lock for the installed kdsteps."""
    return f'{_HEAD}version: "{installed_version()}"\ncode: "{_code_digest()}"\n'


def write_lock() -> None:
    """Write kdsteps.lock into the current folder."""
    write_text(LOCK, lock_text())


def locked_version() -> str | None:
    """The version in kdsteps.lock; None if there is no such file.

    Raises:
        KdstepsError: The file cannot be read.
    """
    try:
        content = read_yaml(LOCK.read_text(encoding="utf-8"))
        return str(content["version"])
    except FileNotFoundError:
        return None
    except (OSError, NotYaml, ValueError, KeyError, TypeError) as error:
        raise KdstepsError(
            f"{LOCK}: has no readable `version`; restore it from git, or run `kdsteps lock`"
        ) from error


def check_lock() -> list[str]:
    """Compare kdsteps.lock, where there is one, with the installed kdsteps.

    The code of one version changes where kdsteps is installed from a clone that is being edited.
    Then the file is updated, so that DVC looks at the jobs again.

    Returns:
        Sentences for the user.

    Raises:
        KdstepsError: Another version is installed.
    """
    if (locked := locked_version()) is None:
        return []
    installed = installed_version()
    if locked != installed:
        raise KdstepsError(
            f"{LOCK}: this study uses kdsteps {locked}, but {installed} is installed; "
            f"install kdsteps {locked}, or move the study to {installed} with `kdsteps lock` "
            "(`kdsteps stale` lists what would be rerun)"
        )
    return update_lock()


def update_lock() -> list[str]:
    """Update kdsteps.lock if the code of its version changed; return sentences for the user."""
    if not code_changed():
        return []
    write_lock()
    return [
        f"{LOCK}: updated, since the code of the installed kdsteps {installed_version()} changed"
    ]


def code_changed() -> bool:
    """Whether kdsteps.lock is of other code of the installed version, which DVC overlooks."""
    same_version = locked_version() == installed_version()
    return same_version and LOCK.read_text(encoding="utf-8") != lock_text()


def _code_digest() -> str:
    """A digest of the files of the package and of the workflow."""
    package = folder_digest(_PACKAGE, leave_out=("workflow", "profiles", "recipes"))
    both = package + folder_digest(shipped("workflow"))
    return blake2b(both.encode(), digest_size=16).hexdigest()
