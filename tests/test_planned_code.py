"""The code of a job has to be the code that it was planned with when Python imports it."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _edits import PACKAGE

from kdsteps.cli import running
from kdsteps.cli.calls import Call
from kdsteps.errors import KdstepsError
from kdsteps.jobs import code_identity
from kdsteps.jobs.cache import job_cache
from kdsteps.jobs.identity.digests import Code
from kdsteps.jobs.planned_code import PlannedCode
from kdsteps.jobs.settings import JobSettings

FIRST = "class Mine:\n    weight = 1\n"
OTHER = "class Mine:\n    weight = 2\n"
ROOT = "./mine.py:Mine"
REFUSED = r"\./mine\.py:Mine: was changed after this run began"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's file, which jobs can import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for found in (code_identity.digest, code_identity._code, code_identity._kept):
        found.cache_clear()  # as in a new process
    Path("mine.py").write_text(FIRST)
    yield Path("mine.py")
    sys.modules.pop("mine", None)


def planned(root: str = ROOT) -> PlannedCode:
    return PlannedCode({root: [code_identity.digest((root,))], "ticket": ["an input"]}, None)


def replace_by(file: Path, text: str) -> None:
    """Put an older file in the place of another, as `mv` and `rsync -a` do."""
    other = Path("other.py")
    other.write_text(text)
    os.utime(other, (0, 0))
    other.replace(file)


def test_a_job_refuses_code_of_the_user_that_changed_before_it(mine: Path):
    code = planned()
    replace_by(mine, FIRST.replace("1", "1  # as planned"))
    code.check_before()
    replace_by(mine, "class Mine(\n")
    code.check_before()  # Python says what is wrong with it
    replace_by(mine, OTHER)
    with pytest.raises(KdstepsError, match=REFUSED):
        code.check_before()


def test_a_job_refuses_code_that_changed_while_it_was_imported(mine: Path):
    code = planned()
    code.check_before()
    replace_by(mine, OTHER)
    assert importlib.import_module("mine").Mine.weight == 2
    with pytest.raises(KdstepsError, match=REFUSED):
        code.digest((ROOT,))  # nothing is saved for code that was not imported
    with pytest.raises(KdstepsError, match=REFUSED):
        code.check()


@pytest.mark.parametrize("text", ["class Mine(\n", None])
def test_code_that_is_half_written_or_gone_at_the_end_is_refused(mine: Path, text: str | None):
    code = planned()
    code.check_before()
    mine.unlink() if text is None else mine.write_text(text)
    with pytest.raises(KdstepsError, match="the code of this job was changed after this run began"):
        code.check()


def test_code_may_be_edited_once_a_training_has_imported_it(mine: Path):
    code = planned()
    code.check_before()
    importlib.import_module("mine")
    assert code.digest((ROOT,)) == code_identity.digest((ROOT,))
    mine.write_text(OTHER)
    code.check()
    with pytest.raises(KdstepsError, match=REFUSED):
        pickle.loads(pickle.dumps(code)).check()  # another process, which has to import it


def test_code_that_is_imported_later_is_compared_again(mine: Path):
    Path("late.py").write_text("WEIGHT = 1\n")
    mine.write_text("class Mine:\n    def weight(self):\n        import late\n")
    mine.write_text(mine.read_text() + "        return late.WEIGHT\n")
    code = planned()
    code.check_before()
    module = importlib.import_module("mine")
    code.check()
    replace_by(Path("late.py"), "WEIGHT = 2\n")
    code.check()  # not imported
    try:
        assert module.Mine().weight() == 2
        with pytest.raises(KdstepsError, match=REFUSED):
            code.check()
    finally:
        sys.modules.pop("late", None)


def test_a_job_refuses_code_of_kdsteps_that_is_not_the_planned_one():
    roots = ["kdsteps.stages.build:run"]
    expected = {json.dumps(roots): ["as in --code"]}
    PlannedCode(expected, code_identity.digest(tuple(roots))).check()
    PlannedCode(expected, None).check()  # not known
    with pytest.raises(KdstepsError, match="the code of kdsteps was changed after this run began"):
        PlannedCode(expected, "another").check_before()


def test_a_job_during_which_its_code_changed_leaves_nothing(
    mine: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(job: Any) -> None:
        replace_by(mine, OTHER)
        job.outputs["scores"].write_text("made with other code")

    monkeypatch.setattr(running, "import_module", lambda name: SimpleNamespace(run=run))
    expected, made = {ROOT: [code_identity.digest((ROOT,))]}, Path("out/scores.parquet")
    made.parent.mkdir()
    call = Call("score", JobSettings(), {}, {"scores": made}, "its code", {}, expected)
    with pytest.raises(KdstepsError, match=REFUSED):
        running.run_call(call)
    assert not list(made.parent.iterdir())
    assert not job_cache().exists()


@pytest.mark.parametrize("name", ["methods/kd.py", "report/templates/page.js"])
def test_code_is_outdated_if_a_file_of_it_has_other_contents(tmp_path: Path, name: str):
    package = tmp_path / "kdsteps"
    shutil.copytree(PACKAGE, package)
    code = Code(package)
    code.digest(["kdsteps.methods.kd:KD", "kdsteps.stages.report:run"])
    assert not code.is_outdated()
    file = package / name
    time = file.stat().st_mtime
    file.write_bytes(file.read_bytes() + b"\n")
    os.utime(file, (time, time))
    assert code.is_outdated()
