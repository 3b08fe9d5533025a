"""The digest of the code behind a job: changed by what decides numbers, by nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from _study import TINY

from kdsteps.jobs import code_identity
from kdsteps.study.study import Study, parse_study

RUN = {"pair": "pair", "seed": "0"}
TEACHER = {"dataset": "digits", "teacher": "big"}


@pytest.fixture
def study() -> Study:
    return parse_study({**TINY, "methods": {"labels": {}, "kd": {}, "uld": {}}})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that a test may change."""
    copy = tmp_path / "kdsteps"
    shutil.copytree(code_identity._PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_identity, "_PACKAGE", copy)
    forget()
    yield copy
    monkeypatch.undo()
    forget()


def forget() -> None:
    for cached in ("digest", "_imports", "_shape_of_module", "_tree", "_content"):
        getattr(code_identity, cached).cache_clear()


def digests(study: Study) -> dict[str, str]:
    forget()
    jobs = {method: ("distil", {**RUN, "method": method}) for method in study.methods}
    others = {"train": ("train", TEACHER), "prepare": ("prepare", {"dataset": "digits"})}
    return {name: code_identity.code(study, *job) for name, job in (jobs | others).items()}


def touched(study: Study, package: Path, module: str, change: Callable[[str], str]) -> set[str]:
    """The jobs whose digest a change of one module changes."""
    before = digests(study)
    file = package / module
    file.write_text(change(file.read_text()))
    after = digests(study)
    return {name for name in before if before[name] != after[name]}


def with_a_statement(text: str) -> str:
    return f"{text}\n_CHANGED = 1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "jobs"),
    [
        ("methods/kd.py", {"kd"}),
        ("methods/uld.py", {"uld"}),
        ("methods/labels.py", {"labels", "train"}),  # a teacher learns from labels, too
        ("training/loop.py", {"labels", "kd", "uld", "train"}),
        ("models/families/cifar_resnet.py", {"labels", "kd", "uld", "train"}),
        ("models/families/vgg.py", set()),
        ("data/kinds/digits.py", {"prepare"}),
        ("data/kinds/folder.py", set()),
        ("stages/prepare.py", {"prepare"}),
        ("stages/report.py", set()),
        ("study/settings.py", set()),
        ("files/text.py", set()),
        ("__main__.py", set()),
    ],
)
def test_code_counts_for_the_jobs_that_run_it(
    study: Study, package: Path, module: str, jobs: set[str]
):
    assert touched(study, package, module, with_a_statement) == jobs


@pytest.mark.parametrize(
    "change",
    [
        lambda text: f"# a remark\n{text}",
        lambda text: text.replace('"""', '"""Another word. ', 1),
        lambda text: text.replace("\n\n\n", "\n\n\n\n\n"),
    ],
    ids=["comment", "docstring", "layout"],
)
def test_words_about_code_do_not_count(study: Study, package: Path, change: Callable[[str], str]):
    assert touched(study, package, "training/loop.py", change) == set()


def test_a_changed_number_counts(study: Study, package: Path):
    assert "4.0" in (package / "methods/kd.py").read_text()
    assert touched(study, package, "methods/kd.py", lambda text: text.replace("4.0", "4.5")) == {
        "kd"
    }


def test_what_a_function_imports_when_called_counts(study: Study, package: Path):
    method = package / "methods/kd.py"
    method.write_text(
        method.read_text() + "\n\ndef late():\n    from kdsteps.models.families import vgg\n"
    )
    assert touched(study, package, "models/families/vgg.py", with_a_statement) == {"kd"}


def test_the_family_of_a_teacher_counts_for_its_students_and_not_for_labels(package: Path):
    models = {**TINY["models"], "big": {"family": "vgg", "depth": 8}}
    study = parse_study({**TINY, "models": models, "methods": {"labels": {}, "kd": {}}})
    assert touched(study, package, "models/families/vgg.py", with_a_statement) == {"kd", "train"}


def test_relative_imports_are_refused_since_they_would_be_overlooked(study: Study, package: Path):
    with pytest.raises(ValueError, match="imports are absolute"):
        touched(study, package, "methods/kd.py", lambda text: f"{text}\nfrom . import labels\n")


def test_templates_and_tables_count_for_the_report_alone(study: Study, package: Path):
    def report() -> str:
        forget()
        return code_identity.code(study, "report", {})

    found = [report()]
    for name in ("published.csv", "templates/page.html.j2"):
        file, before = package / "report" / name, digests(study)
        file.write_text(file.read_text() + "\n")
        found.append(report())
        assert digests(study) == before
    assert len(set(found)) == 3


@pytest.mark.parametrize("family", ["simkd", "vgg"])
def test_what_a_method_adds_to_its_student_counts_when_that_is_evaluated(
    package: Path, family: str
):
    models = {**TINY["models"], "big": {"family": "vgg", "depth": 8}}
    study = parse_study({**TINY, "models": models, "methods": {"kd": {}, "simkd": {}}})

    def evaluations() -> dict[str, str]:
        forget()
        return {
            m: code_identity.code(study, "evaluate", {**RUN, "method": m}) for m in study.methods
        }

    before, file = evaluations(), package / "models/families" / f"{family}.py"
    file.write_text(with_a_statement(file.read_text()))
    after = evaluations()
    assert {method for method in before if before[method] != after[method]} == {"simkd"}
