"""The home folder in paths that users write."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path with the home folder in place of `~`, where there is such a user.

    Unlike `Path.expanduser`, it leaves a name such as `~draft.png` alone.
    """
    return Path(os.path.expanduser(path))
