"""A study in a folder of its own, from the wheel: begun, run, recorded, changed, and upgraded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from _installed import Installed
from PIL import Image

from kdsteps.jobs.version_lock import lock_text

pytestmark = [pytest.mark.stories, pytest.mark.slow]

RUN = ("snakemake", "--cores", "2", "--resources", "gpu=1")
LOCK_TEXT = "from kdsteps.jobs.version_lock import lock_text; print(lock_text(), end='')"
COLORS = {"apple": (200, 40, 40), "leaf": (40, 180, 60), "sky": (60, 90, 200)}


def write_photos(root: Path) -> None:
    """Sixty little photos of three classes that a network tells apart in a few steps."""
    draws = np.random.default_rng(0)
    for name, base in COLORS.items():
        (root / name).mkdir(parents=True)
        for number in range(20):
            height, width = draws.integers(16, 30, 2)
            pixels = np.array(base) + draws.normal(0, 40, (height, width, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / name / f"{number}.png")


class Shell:
    """Commands in one folder, as a user types them, and the jobs that they ran."""

    def __init__(self, installed: Installed, folder: Path) -> None:
        self.installed, self.folder = installed, folder
        self._seen: dict[Path, int] = {}
        self.ran()

    def run(self, *command: str) -> str:
        return self.installed.run(self.folder, *command)

    def attempt(self, *command: str) -> tuple[int, str]:
        return self.installed.attempt(self.folder, *command)

    def ran(self) -> list[str]:
        """The jobs whose commands ran since the last call, by their logs."""
        found = {log: log.stat().st_mtime_ns for log in self.folder.glob("logs/**/*.txt")}
        fresh = [log for log, time in found.items() if self._seen.get(log) != time]
        self._seen = found
        return sorted(str(log.relative_to(self.folder / "logs").with_suffix("")) for log in fresh)

    def shorten(self) -> None:
        """Make the proposed study as small as it can be."""
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        content["methods"] = {"labels": {}, "kd": {}}
        content["seeds"] = [0]
        content["train"] |= {"epochs": 4, "teacher_check": "warn"}
        content["distil"] |= {"epochs": 1}
        content["evaluate"] = {"latency_runs": 2}
        path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment whose job cache all studies share."""
    found = Installed.new(tmp_path_factory.mktemp("wheel"))
    return replace(found, variables={"KDSTEPS_JOB_CACHE": str(found.folder / "jobs")})


@pytest.fixture(scope="module")
def home(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and a study of them, which snakemake has finished."""
    home = tmp_path_factory.mktemp("home")
    write_photos(home / "photos")
    said = installed.run(home, "kdsteps", "init", "study", "--images", "photos")
    assert said.endswith(
        "    cd study && kdsteps check\n    snakemake --cores 4 --resources gpu=1\n"
    )
    shell = Shell(installed, home / "study")
    shell.shorten()
    assert "its report is results/report/index.html" in shell.run(*RUN)
    return home


@pytest.fixture
def study(installed: Installed, home: Path) -> Shell:
    return Shell(installed, home / "study")


def test_the_study_ends_with_a_report_and_dvc_only_records_it(study: Shell):
    assert "<html" in (study.folder / "results/report/index.html").read_text()
    assert "Nothing to be done" in study.run(*RUN)
    study.ran()
    study.run("dvc", "repro")
    assert study.ran() == []
    assert "up to date" in study.run("dvc", "status")
    assert study.run("dvc", "repro").count("Running stage") == 0
    study.run("dvc", "plots", "show")


def test_a_changed_value_reruns_what_depends_on_it(study: Shell):
    path = study.folder / "params.yaml"
    path.write_text(path.read_text().replace("kd: {}", "kd: {temperature: 2}"))
    study.run("dvc", "repro")
    students = [job for job in study.ran() if job.startswith(("train", "distil", "cache", "prep"))]
    assert students == ["distil/photos/kd/0"]
    assert "Nothing to be done" in study.run(*RUN)


def test_a_second_study_takes_its_networks_from_the_job_cache(installed: Installed, home: Path):
    installed.run(home, "kdsteps", "init", "second", "--images", "photos")
    second = Shell(installed, home / "second")
    second.shorten()
    second.run("snakemake", "distil_all", *RUN[1:])
    logs = [second.folder / "logs" / f"{job}.txt" for job in second.ran() if "distil" in job]
    assert len(logs) == 2
    assert all("restored from" in log.read_text() for log in logs)


def test_a_study_can_change_a_rule(study: Shell):
    """What the workflow does not know, such as more threads, is one rule in the Snakefile."""
    file = study.folder / "Snakefile"
    before = file.read_text()
    file.write_text(f"{before}\n\nuse rule distil from study as distil with:\n    threads: 2\n")
    try:
        assert "Nothing to be done" in study.run(*RUN, "--dry-run")
    finally:
        file.write_text(before)


def test_another_version_is_refused_until_the_study_is_moved_to_it(study: Shell):
    lock = study.folder / "kdsteps.lock"
    before = lock.read_text()
    lock.write_text(re.sub("version: .*", 'version: "0.0.1"', before))
    status, said = study.attempt(*RUN)
    assert status == 2
    assert "kdsteps 0.0.1" in said and "`kdsteps lock`" in said
    study.run("kdsteps", "lock")
    assert lock.read_text() == before
    assert "Nothing to be done" in study.run(*RUN)


def test_an_upgrade_that_changes_no_job_records_only(study: Shell):
    study.run("dvc", "repro")
    study.ran()
    file = study.installed.packages / "kdsteps/errors.py"
    source = file.read_text()
    try:
        file.write_text(f"{source}# a comment\n")
        assert "kdsteps.lock: updated" in study.run(*RUN)
        assert "kdsteps.lock" in study.run("dvc", "status")
        assert study.run("dvc", "repro").count("Running stage") == 1  # resolve
        assert study.ran() == []
    finally:
        file.write_text(source)
        study.run("kdsteps", "lock")


def test_beginning_it_again_is_refused(installed: Installed, home: Path):
    before = (home / "study/params.yaml").read_bytes()
    status, said = installed.attempt(home, "kdsteps", "init", "study", "--images", "photos")
    assert status == 2
    assert "already has params.yaml" in said
    assert (home / "study/params.yaml").read_bytes() == before


def test_a_clone_and_its_wheel_agree_on_the_lock(installed: Installed, home: Path):
    assert installed.run(home, "python", "-c", LOCK_TEXT) == lock_text()
