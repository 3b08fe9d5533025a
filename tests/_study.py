"""A study in a folder of its own, run by the real snakemake, dvc and git."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import yaml

from kdsteps.jobs.outputs import STAGES

REPOSITORY = Path(__file__).parents[1]

# Small enough that a job is little more than its start.
TINY: dict[str, Any] = {
    "datasets": {"digits": {"kind": "digits", "size": 8}},
    "models": {
        "big": {"family": "cifar_resnet", "depth": 8, "widths": [4, 8, 8, 16]},
        "small": {"family": "cifar_resnet", "depth": 8, "widths": [4, 4, 4, 8]},
    },
    "pairs": {"pair": {"dataset": "digits", "teacher": "big", "student": "small"}},
    "methods": {"labels": {}, "kd": {}, "feature_only": {}},
    "seeds": [0],
    "prepare": {},
    "train": {"epochs": 1, "batch_size": 256, "teacher_check": "warn"},  # it knows nothing yet
    "cache": {"images": 100},
    "score": {"num_layers": 3},
    "build": {},
    "distil": {"epochs": 1, "batch_size": 256},
    "evaluate": {"latency_runs": 2},
    "report": {},
}

_ENVIRONMENT = {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "DVC_NO_ANALYTICS": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{
        f"GIT_{who}_{what}": "a@b.invalid"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
}


def clean_environment() -> dict[str, str]:
    """The environment of a user with the tools at hand and nothing set for kdsteps."""
    foreign = ("KDSTEPS_", "SNAKEMAKE_", "GIT_", "PYTHONPATH")
    own = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return own | _ENVIRONMENT


def _snakemake(*arguments: str) -> list[str]:
    return ["snakemake", *arguments, "--cores", "2", "--resources", "gpu=1"]


class Study:
    """One folder with a study; every program runs in it as a user would run it.

    Attributes:
        described: Where the first of all studies leaves what planning found out about kdsteps;
            None: each one finds it out.
    """

    described: ClassVar[Path | None] = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._logs()

    @classmethod
    def new(cls, path: Path, params: dict[str, Any] = TINY) -> Study:
        """A fresh clone of this repository as it stands, with other params.yaml."""
        origin = path.with_name(f"{path.name}-origin")
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            source, target = REPOSITORY / name, origin / name
            if source.is_file() and not name.startswith(("results/", "dvc.lock")):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        (origin / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        study = cls(origin)
        study.git("init", "--quiet", "--initial-branch", "main")
        study.commit()
        made = study.clone(path)
        if cls.described is not None:
            made._describe(cls.described)
        return made

    def share(self, remote: Path) -> None:
        """Commit and push everything, to a folder as DVC's remote."""
        self.dvc("remote", "add", "--default", "shelf", str(remote))
        self.commit()
        self.dvc("push")

    def clone(self, path: Path) -> Study:
        subprocess.run(
            ["git", "clone", "--quiet", self.path, path], check=True, env=clean_environment()
        )
        return Study(path)

    def copy(self, path: Path) -> Study:
        """The whole folder, with results and everything that the tools remember."""
        subprocess.run(["cp", "-a", self.path, path], check=True)
        return Study(path)

    def snakemake(self, *arguments: str, **options: Any) -> str:
        return self.run(_snakemake(*arguments), **options)

    def dvc(self, *arguments: str, **options: Any) -> str:
        return self.run(["dvc", *arguments], **options)

    def record(self) -> None:
        """Finish the study and record it with DVC, like `dvc repro` but in a third of its time."""
        self.snakemake()
        for arguments in (["resolve"], ["verify", *STAGES]):
            self.run(["python", "-m", "kdsteps", *arguments])
        self.dvc("commit", "--force")

    def git(self, *arguments: str) -> str:
        return self.run(["git", *arguments])

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "The study as it stands")

    def run(self, command: list[str], status: int = 0, **environment: str) -> str:
        """What a command says; its exit status must be `status`."""
        found, said = self.attempt(command, **environment)
        assert found == status, f"{' '.join(command)}: {found}\n{said}"
        return said

    def attempt(self, command: list[str], **environment: str) -> tuple[int, str]:
        """The exit status of a command, and what it says."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=clean_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        return done.returncode, done.stdout

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Snakemake in a process group of its own, going on while the test does."""
        return subprocess.Popen(
            _snakemake(*arguments),
            cwd=self.path,
            env=clean_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def planned(self) -> Counter[str]:
        """How many jobs of each rule snakemake would run."""
        text = self.snakemake("--dry-run")
        rows = re.findall(r"^(\w+) +(\d+)$", text, flags=re.MULTILINE)
        return Counter(
            {rule: int(count) for rule, count in rows if rule not in ("total", "default")}
        )

    def executed(self) -> dict[str, str]:
        """The jobs whose commands ran since the last call, by their logs, and what these say.

        A job's log is emptied when its command starts, whoever started it.
        """
        logs = self._logs()
        fresh = [name for name, stamp in logs.items() if self._seen.get(name) != stamp]
        self._seen = logs
        return {name: (self.path / "logs" / f"{name}.txt").read_text() for name in fresh}

    def change(self, **sections: Any) -> None:
        """Replace whole sections of params.yaml."""
        content = self.params() | sections
        (self.path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def params(self) -> dict[str, Any]:
        content = yaml.safe_load((self.path / "params.yaml").read_text())
        assert isinstance(content, dict)
        return content

    def bytes_of(self, pattern: str) -> dict[str, bytes]:
        """The content of all files that a pattern names."""
        files = [path for path in self.path.glob(pattern) if path.is_file()]
        return {str(path.relative_to(self.path)): path.read_bytes() for path in files}

    def _describe(self, described: Path) -> None:
        """Describe kdsteps, which takes seconds, or have that from a study that did."""
        own = self.path / ".kdsteps"
        if described.exists():
            shutil.copytree(described, own)
            return
        if self.attempt(_snakemake("--dry-run"))[0]:
            return  # a study that is not complete yet
        draft = described.with_name(f"described-{os.getpid()}")
        shutil.copytree(own, draft)
        with suppress(OSError):  # another process was first
            draft.rename(described)

    def _logs(self) -> dict[str, tuple[int, int]]:
        folder = self.path / "logs"
        return {
            str(path.relative_to(folder).with_suffix("")): (
                path.stat().st_mtime_ns,
                path.stat().st_ctime_ns,
            )
            for path in folder.rglob("*.txt")
        }
