"""The report says where the students are, and how to cite and repeat the study."""

from __future__ import annotations

import csv
import html
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from _results import make_results, make_study, render_page

from kdsteps.files.text import read_json, write_json
from kdsteps.methods.base import Method
from kdsteps.report.citation import (
    PAPERS,
    SOFTWARE,
    bibtex,
    commands,
    results_digest,
    student_files,
)
from kdsteps.report.results import load_results
from kdsteps.report.tables import pair_tables
from kdsteps.study import registry
from kdsteps.study.loading import parse_study

REPOSITORY = Path(__file__).parent.parent


def papers() -> dict[str, dict[str, str]]:
    with PAPERS.open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_every_method_that_names_a_paper_has_a_bibtex_entry():
    for name in registry.names("methods"):
        module = import_module(f"kdsteps.methods.{name}")
        (method,) = (
            found
            for _, found in inspect.getmembers(module, inspect.isclass)
            if issubclass(found, Method) and found.__module__ == module.__name__
            and not found.__name__.startswith("_")
        )  # fmt: skip
        named = re.findall(r"arXiv:(\d{4}\.\d{4,5})", inspect.getdoc(method) or "")
        if named:
            assert papers()[name]["arxiv"] == named[0], name


def test_papers_have_all_that_a_reference_needs():
    rows = list(papers().values())
    assert all(all(row.values()) for row in rows)
    assert len({row["key"] for row in rows}) == len({row["title"] for row in rows}) == len(rows)
    assert set(papers()) <= set(registry.names("methods"))


def test_the_software_is_cited_as_in_the_citation_file():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    (author,) = cited["authors"]
    assert {"title": cited["title"], "author": f"{{{author['name']}}}"} == SOFTWARE


def test_bibtex_has_the_papers_of_the_methods_in_the_study_and_no_others():
    text = bibtex({"hot": "kd", "mine": "./mine.py:Mine", "labels": "labels"})
    assert re.findall(r"@(\w+)\{(\w+),", text) == [
        ("software", "kdsteps"),
        ("misc", "hinton2015distilling"),
    ]
    assert "eprint = {1503.02531}" in text
    assert text.count("{") == text.count("}")


def test_the_commands_start_from_the_commit_without_its_mark():
    assert commands(["abc123+", "def"], "0.1.0")[:2] == [
        "git checkout abc123",
        "# with kdsteps 0.1.0 and its extra `workflow` installed",
    ]
    assert commands([], None) == ["snakemake --cores 4 --resources gpu=1  # or: dvc repro"]


def test_the_page_has_the_whole_study_with_the_defaults_of_all_options(tmp_path):
    job = make_results(tmp_path, make_study(seeds=2, methods=("labels", "kd")))
    shown = render_page(job).split("params.yaml with all defaults")[1].split("<pre>")[1]
    found = yaml.safe_load(html.unescape(shown.split("</pre>")[0]))
    assert found["methods"]["kd"]["temperature"] == 4
    study, again = parse_study(job.settings.study), parse_study(found)
    assert (again.methods, again.models, again.datasets) == (
        study.methods,
        study.models,
        study.datasets,
    )


def test_the_digest_depends_on_predictions_and_not_on_times(tmp_path):
    study = make_study(seeds=2, methods=("labels", "kd"))
    job = make_results(tmp_path, study)

    def digest() -> str:
        return results_digest(load_results(job.lists, study))

    first = digest()
    path = job.lists["measures"][0]
    measures = read_json(path)
    write_json(path, measures | {"provenance": measures["provenance"] | {"seconds": 99.0}})
    assert digest() == first
    write_json(path, measures | {"nll": measures["nll"] + 1e-9})
    assert digest() != first


def test_the_students_of_the_best_method_are_linked_from_where_the_page_is(tmp_path):
    job = make_results(tmp_path, make_study(seeds=2, methods=("labels", "kd")))
    results = load_results(job.lists, parse_study(job.settings.study))
    (table,) = pair_tables(results, {"labels": "labels"}, 0.95)
    first, second = student_files(table, results.runs)
    assert first.link == "../distil/resnet20-resnet8/kd/0/student.safetensors"
    assert first.path == "results/distil/resnet20-resnet8/kd/0/student.safetensors"
    assert [file.highest for file in (first, second)].count(True) == 1
    best = max((first, second), key=lambda file: file.validation or 0)
    assert best.highest


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({"labels": -0.3, "kd": 0.05}, "which won"),
        ({"labels": 0.0, "kd": 0.0}, "is not shown to be better than every other method"),
    ],
)
def test_the_files_are_those_of_a_winner_only_if_there_is_one(tmp_path, gains, words):
    page = render_page(make_results(tmp_path, make_study(3, ("labels", "kd")), gains))
    cite = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split('<section id="cite">')[1]))
    assert words in cite
    assert ("won:" in page.split("<nav")[0]) == (words == "which won")
    assert "git checkout 0a1b2c3d4e5f" in cite
    assert "@misc{hinton2015distilling" in cite
