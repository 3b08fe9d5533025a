"""The regular files of a folder, each once, no matter how many links lead to it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from kdsteps.errors import KdstepsError

_DEBRIS = {"__macosx", "@eadir", "$recycle.bin", "system volume information"}
_DEBRIS |= {"thumbs.db", "ehthumbs.db", "desktop.ini"}

Identity = tuple[int, int]
"""Device and inode: what two paths to one file have in common."""


def is_debris(name: str) -> bool:
    """Whether a file or folder is hidden or created by macOS or Windows, and so is not data."""
    return name.startswith(".") or name.lower() in _DEBRIS


@dataclass
class Walk:
    """A walk through the folders of one root.

    A symbolic link to something that is also found directly is skipped, so that each image is
    counted once. A link out of the root is followed only if `follow_links` is set.

    Attributes:
        root: The folder that the walked ones are in.
        follow_links: Whether links may lead out of the root.
        links: Links skipped so far, because their targets are counted elsewhere.
        special: Named pipes, sockets and devices skipped so far.
    """

    root: Path
    follow_links: bool = False
    links: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    _folders: set[Identity] = field(default_factory=set)
    _files: set[Identity] = field(default_factory=set)
    _inside: Path = field(init=False)

    def __post_init__(self) -> None:
        self._inside = self.root.resolve()
        status = self.root.stat()
        self._folders.add((status.st_dev, status.st_ino))

    def files(self, folders: list[Path]) -> list[list[str]]:
        """The files below each folder, sorted; those of a folder before those of its subfolders.

        All of them are walked before any link is followed, so that a file counts where it is and
        not where a link to it is.

        Raises:
            KdstepsError: A folder cannot be read, or a link leads out of the root.
        """
        links: list[list[str]] = [[] for _ in folders]
        found = [
            [] if folder.is_symlink() else self._below(str(folder), waiting)
            for folder, waiting in zip(folders, links, strict=True)
        ]
        for number, folder in enumerate(folders):
            if folder.is_symlink():
                links[number].append(str(folder))
            linked: list[str] = []
            while links[number]:
                linked += self._linked(links[number].pop(0), links[number])
            if linked:
                found[number] = sorted(found[number] + linked, key=_order)
        return found

    def _below(self, folder: str, links: list[str], *, once: bool = False) -> list[str]:
        """Files of a folder and the folders in it; symbolic links are added to `links`.

        Args:
            once: Whether files and folders that were found before are skipped.
        """
        found: list[str] = []
        waiting = [folder]
        while waiting:
            current = waiting.pop()
            status = os.stat(current)
            identity = status.st_dev, status.st_ino
            if once and identity in self._folders:
                continue
            self._folders.add(identity)
            inner: list[str] = []
            for entry in _entries(current):
                if is_debris(entry.name):
                    continue
                if entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir():
                    inner.append(entry.path)
                elif entry.is_file():
                    identity = status.st_dev, entry.inode()
                    if once and identity in self._files:
                        continue
                    found.append(entry.path)
                    self._files.add(identity)
                else:
                    self.special.append(entry.path)
            waiting += reversed(inner)
        links.sort()
        return found

    def _linked(self, path: str, links: list[str]) -> list[str]:
        """The files that a link leads to and that were not found before."""
        link = Path(path)
        try:
            status = link.stat()
        except OSError:  # to nothing, or in a circle
            return [path]  # reported when it is read
        identity, target = (status.st_dev, status.st_ino), link.resolve()
        circle = link.parent.resolve().is_relative_to(target)
        inside = target.is_relative_to(self._inside)
        if identity in self._folders or identity in self._files or (circle and inside):
            self.links.append(path)
            return []
        if not (self.follow_links or inside):
            raise KdstepsError(
                f"{link}: is a link out of {self.root}, to {target}; set `follow_links: true` to "
                "read what is there, or remove the link"
            )
        if stat.S_ISDIR(status.st_mode):
            return self._below(path, links, once=True)
        if stat.S_ISREG(status.st_mode):
            self._files.add(identity)
            return [path]
        self.special.append(path)
        return []


def _order(path: str) -> list[tuple[bool, str]]:
    """Sorts the files of a folder before those of its subfolders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise KdstepsError(
            f"{folder}: the folder cannot be read ({error.strerror}); make it readable, or move it "
            "away"
        ) from error
