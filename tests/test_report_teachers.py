"""The report shows the check of each teacher, and its problems before anything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from _results import CHECK, SUMMARY, make_results, make_study

from kdsteps.files.text import write_json
from kdsteps.report.formats import with_code
from kdsteps.stages import report

PROBLEM = "its validation accuracy is 29.2%, but 97.8% with `normalize: <none>`"
WARNING = "its weights are from elsewhere and the test images were drawn at random"
NOTE = "images are normalized with the data set's mean and std"


def page_of(folder: Path, duplicates: Sequence[dict[str, Any]] = (), **check: Any) -> str:
    """The page of a small study whose teacher's check differs."""
    job = make_results(folder, make_study(seeds=1, methods=("labels", "kd")))
    write_json(job.lists["summaries"][0], SUMMARY | {"duplicates": list(duplicates)})
    write_json(job.lists["teacher_checks"][0], CHECK | check)
    report.run(job)
    return job.outputs["page"].read_text()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def section(page: str) -> str:
    """What the section about teachers says."""
    return text_of(page.split('<section id="teachers">')[1].split("</section>")[0])


def test_a_teacher_that_passed_is_shown_beside_chance_and_nothing_is_at_the_top(tmp_path):
    page = page_of(tmp_path, expected_accuracy=0.97, notes=[NOTE])
    assert "card alerts" not in page
    shown = section(page)
    assert "98.2 95.3 to 99.3, 217 images 10.1 97.0 0.93 1.1 0.5 passed" in shown
    assert NOTE in shown.replace("&#39;", "'")


@pytest.mark.parametrize(
    ("check", "headline", "tag"),
    [
        ({"problems": [PROBLEM], "warnings": [WARNING]}, "1 problem and 1 warning", "problem"),
        ({"warnings": [WARNING]}, "1 warning", "warning"),
    ],
)
def test_problems_and_warnings_are_at_the_top(tmp_path, check, headline, tag):
    page = page_of(tmp_path, **check)
    top = page[: page.index('<article class="card verdict">')]
    assert headline in text_of(top)
    assert "resnet20 on digits" in text_of(top)
    for sentence in (*check.get("problems", []), *check["warnings"]):
        assert str(with_code(sentence)) in top
    assert section(page).rstrip().endswith(tag)


def test_a_teacher_that_was_not_checked_has_dashes(tmp_path):
    nothing = dict.fromkeys(("accuracy", "chance", "temperature", "ece", "confident_errors"))
    unchecked = "it was not checked, since there are no validation images"
    shown = section(page_of(tmp_path, **nothing, warnings=[unchecked]))
    assert "digits – – – – – – warning" in shown


def test_settings_in_a_sentence_are_code_and_the_rest_is_escaped():
    assert with_code("set `a: <b>` & go") == "set <code>a: &lt;b&gt;</code> &amp; go"


@pytest.mark.parametrize(
    ("splits", "warns"),
    [(["train", "test"], True), (["test", "test"], False), (["train", "validation"], False)],
)
def test_test_images_that_are_also_in_another_split_are_a_warning_at_the_top(
    tmp_path, splits, warns
):
    entry = {"splits": splits, "images": 3, "of_other_class": 0, "examples": []}
    page = page_of(tmp_path, duplicates=[entry])
    top = text_of(page[: page.index('<article class="card verdict">')])
    assert ("Warning 3 images of digits are in both the train and the test split" in top) == warns
    assert ("card alerts" in page) == warns
