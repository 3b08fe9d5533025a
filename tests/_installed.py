"""kdsteps as a wheel, installed into an environment of its own, away from this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _study import REPOSITORY, clean_environment


def listed_files(*folders: str) -> list[str]:
    """The files of this repository as they would be committed now, by their paths in it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def build_wheel(folder: Path) -> Path:
    """The wheel, built from the source distribution, without a network."""
    source = folder / "source"
    for name in listed_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, source / name)
    with tarfile.open(_built("sdist", source, folder)) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return _built("wheel", unpacked, folder)


def _built(kind: str, source: Path, folder: Path) -> Path:
    """What the build backend makes of a source tree: its sdist or its wheel."""
    call = f"import setuptools.build_meta as b; print(b.build_{kind}({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.splitlines()[-1]


@dataclass(frozen=True)
class Installed:
    """A virtual environment with kdsteps from its wheel, and all else from that of the tests.

    Attributes:
        folder: Of the environment.
        variables: Environment variables of every command.
    """

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def new(cls, folder: Path) -> Installed:
        wheel = build_wheel(folder)
        environment = cls(folder / "environment")
        venv.create(environment.folder, symlinks=True)
        command = [sys.executable, "-m", "pip", "--python", str(environment.bin / "python")]
        command += ["install", "--quiet", "--no-index", "--no-deps", str(wheel)]
        subprocess.run(command, env=clean_environment(), check=True)
        others = Path(sys.executable).parent  # their scripts start another python
        for name in ("snakemake", "dvc"):
            _, *lines = (others / name).read_text().splitlines(keepends=True)
            script = environment.bin / name
            script.write_text(f"#!{environment.bin / 'python'}\n" + "".join(lines))
            script.chmod(0o755)
        found = [path for path in map(Path, sys.path) if path.name == "site-packages"]
        (environment.packages / "others.pth").write_text("\n".join(map(str, found)))
        return environment

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a user who has activated it."""
        path = os.pathsep.join([str(self.bin), os.environ["PATH"]])
        return clean_environment() | {"PATH": path, "OMP_NUM_THREADS": "1"} | self.variables

    def attempt(self, folder: Path, *command: str | Path) -> tuple[int, str]:
        """The exit status of a command in `folder`, and what it says."""
        done = subprocess.run(
            [str(self.bin / command[0]), *map(str, command[1:])],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        return done.returncode, done.stdout

    def run(self, folder: Path, *command: str | Path) -> str:
        """What a command in `folder` says; it must succeed."""
        status, said = self.attempt(folder, *command)
        assert status == 0, f"{command}: {status}\n{said}"
        return said
