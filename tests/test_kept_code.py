"""Digests of kdsteps' own code are kept while it does not change, and found again otherwise."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _edits import PACKAGE
from _study import TINY

from kdsteps.errors import KdstepsError
from kdsteps.files.digests import folder_digest
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.identity.digests import Code
from kdsteps.jobs.identity.kept import FILE, KeptDigests
from kdsteps.jobs.planned_code import PlannedCode
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

ROOTS = ("kdsteps.stages.tune:_choose",)
FOUND = (code_identity.digest, code_identity._code, code_identity._kept, code_identity._known)


@pytest.fixture(scope="module")
def study() -> Study:
    return parse_study(TINY)


@pytest.fixture
def package(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package, of which the digests are."""
    copy = tmp_path / "copy/kdsteps"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    monkeypatch.setattr(code_identity, "_PACKAGE", copy)
    anew()
    yield copy
    anew()


def anew() -> None:
    """Forget what was found, as in a new process."""
    for found in FOUND:
        found.cache_clear()


def codes(study: Study) -> dict[str, str]:
    """The digests of all jobs in a new process."""
    anew()
    code_identity.read_code(study)
    return {
        " ".join([rule, *names.values()]): code_identity.code(study, rule, names)
        for rule in graph.OUTPUTS
        for names in graph.jobs(study, rule)
    }


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The roots from which code is followed."""
    found: list[tuple[str, ...]] = []
    digest = Code.digest

    def noted(self: Code, roots: tuple[str, ...]) -> str:
        found.append(roots)
        return digest(self, roots)

    monkeypatch.setattr(Code, "digest", noted)
    return found


def test_code_that_did_not_change_is_followed_once(
    study: Study, package: Path, followed: list[tuple[str, ...]]
):
    first = codes(study)
    assert followed
    followed.clear()
    assert codes(study) == first
    assert followed == []


def test_a_temporary_experiment_has_the_digests_of_its_study(
    study: Study,
    package: Path,
    followed: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
):
    first = codes(study)
    followed.clear()
    experiment = Path(".dvc/tmp/exps/tmpabc")
    experiment.mkdir(parents=True)
    monkeypatch.chdir(experiment)
    assert codes(study) == first
    assert followed == []
    assert not FILE.exists()


@pytest.mark.parametrize("name", ["methods/kd.py", "report/templates/page.js", "methods/new.py"])
def test_any_edit_of_the_package_has_all_of_it_followed_again(
    study: Study, package: Path, followed: list[tuple[str, ...]], name: str
):
    first = codes(study)
    followed.clear()
    file = package / name
    before = file.stat() if file.exists() else None
    text = file.read_text() if before else ""
    file.write_text(f"{text[:-1]} " if text else "x = 1\n")  # as long as before
    if before:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = codes(study)
    assert followed
    changed = {job for job in first if first[job] != second[job]}
    assert changed == ({"report"} if name.startswith("report") else set())


def test_what_python_writes_while_it_imports_does_not_count(package: Path):
    roots = ("kdsteps.stages.report:run",)
    first = Code(package).digest(roots), folder_digest(package)
    cache = package / "report/templates/__pycache__"
    cache.mkdir()
    (cache / "page.cpython-311.pyc.140031").write_bytes(b"half of it")
    assert (Code(package).digest(roots), folder_digest(package)) == first


def test_what_a_method_does_counts_although_digests_are_kept(study: Study, package: Path):
    first = codes(study)
    file = package / "methods/kd.py"
    file.write_text(file.read_text().replace("temperature**2", "temperature**3"))
    second = codes(study)
    assert {job for job in first if first[job] != second[job]} == {"distil pair kd 0"}


def test_the_users_code_is_followed_each_time(package: Path, followed: list[tuple[str, ...]]):
    Path("mine.py").write_text("from kdsteps.methods.kd import KD\n\nclass Mine(KD):\n    x = 1\n")
    own, job = ("./mine.py:Mine",), (*ROOTS, "./mine.py:Mine")
    first = [code_identity.digest(roots) for roots in (ROOTS, own, job)]
    code_identity._kept().save(code_identity._code())
    Path("mine.py").write_text(Path("mine.py").read_text().replace("1", "2"))
    anew()
    followed.clear()
    second = [code_identity.digest(roots) for roots in (ROOTS, own, job)]
    assert followed == [own, job]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, False]


def test_a_damaged_file_is_not_used(package: Path):
    code_identity.digest(ROOTS)
    code_identity._kept().save(code_identity._code())
    content, digest = FILE.read_bytes(), KeptDigests(package).find(ROOTS)
    assert digest is not None
    draws, unused = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        FILE.write_bytes(damaged)
        found = KeptDigests(package).find(ROOTS)
        assert found in (None, digest)
        unused += found is None
    assert unused > 40
    for cut in (b"", b"{", b"[]", b"{}", content[:-9]):
        FILE.write_bytes(cut)
        assert KeptDigests(package).find(ROOTS) is None


def test_nothing_is_kept_of_code_that_changed_meanwhile(
    package: Path, monkeypatch: pytest.MonkeyPatch
):
    digest = Code.digest

    def edited(self: Code, roots: tuple[str, ...]) -> str:
        (package / "methods/kd.py").write_text("")
        return digest(self, roots)

    monkeypatch.setattr(Code, "digest", edited)
    code_identity.digest(ROOTS)
    code_identity._kept().save(code_identity._code())
    assert not FILE.exists()


def test_a_folder_that_cannot_be_written_costs_time_alone(study: Study, package: Path):
    first = codes(study)
    shutil.rmtree(".kdsteps")
    Path(".kdsteps").write_text("a file where the folder should be")
    assert codes(study) == first


def test_a_job_refuses_other_code_also_if_digests_are_kept(
    study: Study,
    package: Path,
    followed: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
):
    """And only where it imports what changed: see `PlannedCode.check`."""
    code_identity.read_code(study)
    roots = ("kdsteps.stages.score:run",)
    planned = code_identity.digest(roots)
    anew()
    followed.clear()
    code = PlannedCode({json.dumps(roots): ["as in --code"]}, planned)
    code.check_before()
    code.check()
    assert followed == []
    late = package / "scores/quality.py"
    late.write_text(late.read_text().replace("sqrt", "exp"))
    code.check()  # not imported by now
    monkeypatch.syspath_prepend(late.parent)
    importlib.import_module("quality")
    try:
        with pytest.raises(KdstepsError, match="the code of kdsteps was changed after this run"):
            code.check()
    finally:
        sys.modules.pop("quality")
