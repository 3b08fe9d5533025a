"""The report shows the images that networks get wrong, the classes behind them, and the files."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from _results import Look, make_results, make_study, render_page
from PIL import Image

from kdsteps.data.hashes import pixel_hash
from kdsteps.errors import KdstepsError
from kdsteps.files.arrays import write_array
from kdsteps.files.columns import INDEX, PREDICTIONS
from kdsteps.files.tables import read_table, write_table
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs.job import Job
from kdsteps.report import figures
from kdsteps.report.classes import class_table
from kdsteps.report.mistakes import confused_pairs, groups, matrices
from kdsteps.report.page import render
from kdsteps.report.predicted import PairPredictions, Predicted, pair_predictions
from kdsteps.report.results import Results, load_results
from kdsteps.report.tables import PairTable, pair_tables
from kdsteps.report.thumbnails import SIDE, thumbnails
from kdsteps.study.loading import parse_study

MIB = 2**20
HOSTILE = tuple(f"<b onclick=\"x('{k}')\">{k}</b>" for k in range(7))


def predicted(classes: list[int], confidence: list[float] | None = None) -> Predicted:
    sure = [0.9] * len(classes) if confidence is None else confidence
    return Predicted(np.array(classes), np.array(sure))


FOUND = PairPredictions(
    images=np.array([10, 11, 12, 13, 14, 15]),
    labels=np.array([0, 0, 1, 1, 2, 2]),
    num_classes=3,
    teacher=predicted([0, 1, 1, 1, 2, 0], [0.9, 0.6, 0.9, 0.9, 0.9, 0.8]),
    students={
        "kd": {
            0: predicted([0, 0, 2, 1, 1, 2], [0.9, 0.9, 0.7, 0.9, 0.5, 0.9]),
            1: predicted([0, 0, 2, 1, 1, 2], [0.9, 0.9, 0.9, 0.9, 0.7, 0.9]),
            2: predicted([0, 0, 1, 1, 1, 0], [0.9, 0.9, 0.5, 0.9, 0.6, 0.9]),
        },
        "labels": {0: predicted([0, 1, 1, 1, 2, 2])},
    },
)
"""Three seeds of `kd` and one of `labels`; image 12 is wrong in two seeds, and image 14 in all."""


def test_the_seeds_of_a_method_vote_and_the_surest_mistakes_come_first():
    ours, teachers, errors = groups(FOUND, "kd", "big", ["a", "b", "c"], most=9)
    assert ours.title == "kd right, big wrong"
    assert [card.row for card in ours.cards] == [11, 15]  # by votes
    assert teachers.title == "big right, kd wrong"
    assert [card.row for card in teachers.cards] == [14, 12]  # by votes, then confidence
    assert errors.count == 2
    unanimous, split = errors.cards
    assert (unanimous.label, unanimous.student.name, unanimous.student.votes) == ("c", "b", 3)
    assert unanimous.student.confidence == pytest.approx(0.6)
    assert (split.student.votes, split.student.seeds) == (2, 3)
    assert split.student.confidence == pytest.approx(0.8)  # of the two seeds that predict it
    assert split.others == ["labels"]
    assert unanimous.teacher is not None
    assert unanimous.teacher.right


def test_a_gallery_has_at_most_so_many_images_and_says_how_many_there_are():
    errors = groups(FOUND, "kd", "big", ["a", "b", "c"], most=1)[-1]
    assert (len(errors.cards), errors.count) == (1, 2)


def test_without_a_teacher_there_are_only_errors():
    alone = replace(FOUND, teacher=None)
    assert len(groups(alone, "kd", "big", ["a", "b", "c"], most=9)) == 1
    assert confused_pairs(alone, "kd", [], ["a", "b", "c"])[0].teacher is None


def test_confused_classes_are_counted_over_seeds_and_compared():
    found = confused_pairs(FOUND, "kd", ["labels"], ["a", "b", "c"])
    assert [(pair.label, pair.predicted) for pair in found] == [("c", "b"), ("b", "c"), ("c", "a")]
    assert [pair.images for pair in found] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [pair.of for pair in found] == [2, 2, 2]
    assert [pair.teacher for pair in found] == [0, 0, 1]
    assert found[0].others == {"labels": 0}


def test_a_confusion_matrix_has_fractions_of_each_class():
    ours, labels, teacher = matrices(FOUND, ["kd", "labels"], "big", ["a", "b", "c"])
    assert np.array(ours.fractions) == pytest.approx(
        np.array([[1, 0, 0], [0, 2 / 3, 1 / 3], [1 / 6, 1 / 2, 1 / 3]])
    )
    assert labels.fractions[0] == [0.5, 0.5, 0.0]
    assert teacher.who == "big, teacher"
    *_, teacher = matrices(FOUND, ["kd"], "teacher", ["a", "b", "c"])  # as `kdsteps init` names it
    assert teacher.who == "teacher"
    assert ours.rest == []


def test_with_many_classes_a_matrix_has_the_confused_ones_and_the_rest():
    labels = np.arange(100)
    guesses = labels.copy()
    guesses[[3, 50]] = [4, 51]
    names = [f"class {k}" for k in labels]
    found = PairPredictions(labels, labels, 100, None, {"kd": {0: Predicted(guesses, None)}})
    (matrix,) = matrices(found, ["kd"], "", names)
    assert [number for number, _ in matrix.classes] == [3, 4, 50, 51]
    assert matrix.fractions[0] == [0, 1, 0, 0]
    assert matrix.rest == [0, 0, 0, 0]


def compared(job: Job) -> tuple[Results, list[PairTable]]:
    """The results that a report job reads, and its comparison of methods."""
    study = parse_study(job.settings.study)
    results = load_results(job.lists, study)
    return results, pair_tables(results, study.references, 0.95)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Job:
    """A small study of color images that are not square, with classes that are markup."""
    look = Look(shape=(3, 24, 16), classes=HOSTILE, num_test=210)
    study = make_study(seeds=2, methods=("labels", "kd"))
    return make_results(tmp_path_factory.mktemp("study"), study, {"kd": -0.05}, look)


@pytest.fixture(scope="module")
def page(hostile) -> str:
    return render_page(hostile)


def test_class_accuracies_are_those_of_the_predictions(hostile):
    results, (table,) = compared(hostile)
    found = pair_predictions(results, table, ["kd"])
    assert found is not None
    classes = class_table(found, table, HOSTILE)
    assert classes.compared == ("labels", "kd")
    means = results.class_accuracy["resnet20-resnet8", "kd"]
    assert [row.methods["kd"] for row in classes.rows] == pytest.approx(list(means))
    assert [row.images for row in classes.rows] == [30] * 7
    assert found.students["labels"][0].confidence is None  # its logits were not needed


def test_a_class_differs_only_if_it_does_after_correction():
    labels = np.repeat(np.arange(40), 10)
    right = Predicted(labels, None)
    students: dict[str, dict[int, Predicted]] = {"kd": {}, "labels": {}}
    for seed in range(4):
        students["kd"][seed] = right
        worse = labels.copy()
        worse[: 5 + seed % 2] = 1  # class 0: always far below
        worse[10 : 10 + (seed == 0)] = 0  # class 1: one image in one seed
        students["labels"][seed] = Predicted(worse, None)
    found = PairPredictions(np.arange(400), labels, 40, None, students)
    accuracies = {
        method: {seed: float((each.classes == labels).mean()) for seed, each in seeds.items()}
        for method, seeds in students.items()
    }
    from test_report import table_of

    names = [str(k) for k in range(40)]
    classes = class_table(found, table_of(accuracies, 400), names)
    verdicts = {row.name: row.verdict for row in classes.rows}
    assert (verdicts["0"], verdicts["1"]) == ("better", "undecided")
    lost = {"kd": accuracies["kd"] | {9: None}, "labels": accuracies["labels"] | {9: None}}
    selected = class_table(found, table_of(lost, 400), names)  # of the runs that did not diverge
    assert {row.verdict for row in selected.rows} <= {"undecided", "equal"}
    assert len(classes.rows) == 25  # those with the largest differences
    assert classes.total == 40


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def test_class_names_are_text_wherever_they_are_shown(page):
    shown = section(page, "mistakes")
    assert "<b onclick" not in page
    assert HOSTILE[3] in unescape(shown)


def test_the_gallery_shows_the_images_that_are_wrong_in_the_files(hostile, page):
    shown = section(page, "mistakes")
    paths = [path for path in hostile.lists["predictions"] if "/labels/" in str(path)]
    both = [read_table(path, PREDICTIONS).to_pandas() for path in paths]
    wrong = np.sum([table["predicted"] != table["label"] for table in both], axis=0)
    always = set(np.flatnonzero(wrong == 2).tolist())
    errors = re.split(r"Most confident errors of labels: \d+ images?", shown)[1].split("<h4>")[0]
    rows = set(map(int, re.findall(r'aria-label="image (\d+)"', errors)))
    assert always
    assert always <= rows
    assert rows <= set(np.flatnonzero(wrong).tolist())
    sheets = re.findall(r"url\(data:image/png;base64,([^)]+)\)", page)
    assert len(sheets) == 1
    everything = set(map(int, re.findall(r'aria-label="image (\d+)"', shown)))
    picture = Image.open(io.BytesIO(base64.b64decode(sheets[0])))
    assert picture.mode == "RGB"
    assert picture.width * picture.height / (24 * 16) >= len(everything)


def prepared(folder: Path, images: np.ndarray, names: list[str] | None = None) -> tuple[Path, Path]:
    """images.npy and index.parquet of some images."""
    count = len(images)
    write_array(folder / "images.npy", images)
    rows = {
        "image": range(count),
        "label": [0] * count,
        "split": ["test"] * count,
        "source": names or [f"{row}.png" for row in range(count)],
        "hash": [pixel_hash(image) for image in images],
    }
    write_table(folder / "index.parquet", rows, INDEX)
    return folder / "images.npy", folder / "index.parquet"


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_thumbnails_of_small_images_are_these_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 12, 8), dtype=np.uint8)
    found = thumbnails(*prepared(tmp_path, images), [7, 3, 30, 7], MIB)
    assert set(found.places) == {3, 7, 30}
    assert (found.width, found.height) == (8 * (SIDE // 12), 12 * (SIDE // 12))
    assert found.pixelated
    scale, sheet = SIDE // 12, np.asarray(opened(found.uri))
    for row, (left, top) in found.places.items():
        cut = sheet[top // scale :, left // scale :][:12, :8]
        assert np.array_equal(cut, images[row, 0])
    assert found.names[30] == "30.png"


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [((3, 512, 384), "RGB", (84, 112)), ((1, 512, 512), "L", (112, 112)),
     ((3, 8, 8), "RGB", (112, 112)), ((3, 16, 512), "RGB", (112, 4))],
)  # fmt: skip
def test_thumbnails_fit_into_a_square_of_the_page(tmp_path, shape, mode, size):
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    found = thumbnails(*prepared(tmp_path, images), range(5), MIB)
    assert opened(found.uri).mode == mode
    assert (found.width, found.height) == size
    assert len(set(found.places.values())) == 5
    right = max(left + found.width for left, _ in found.places.values())
    assert right <= found.sheet[0]


def test_thumbnails_become_coarser_until_they_fit(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 128, 128), dtype=np.uint8)
    paths = prepared(tmp_path, images)
    sizes = [
        len(base64.b64decode(thumbnails(*paths, range(60), budget).uri.split(",")[1]))
        for budget in (MIB, 100_000)
    ]
    assert sizes[0] > 100_000 > sizes[1]


def test_only_images_that_are_shown_are_read_and_a_damaged_one_is_refused(tmp_path):
    images = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    images[:] = np.arange(4)[:, None, None, None]
    file, index = prepared(tmp_path, images)
    images[2, 0, 3, 3] = 99
    write_array(file, images)
    assert set(thumbnails(file, index, [0, 1, 3], MIB).places) == {0, 1, 3}
    with pytest.raises(KdstepsError, match=r"images\.npy: image 2 \(2\.png\) does not match"):
        thumbnails(file, index, [0, 2], MIB)


def test_images_that_do_not_match_the_index_are_a_sentence(tmp_path):
    file, index = prepared(tmp_path, np.zeros((4, 1, 8, 8), dtype=np.uint8))
    write_array(file, np.zeros((3, 1, 8, 8), dtype=np.uint8))
    with pytest.raises(KdstepsError, match=r"shape \(3, 1, 8, 8\) for 4 rows"):
        thumbnails(file, index, [0], MIB)


@pytest.mark.slow
def test_the_page_of_a_thousand_classes_and_64_runs_stays_below_5_mb(tmp_path):
    classes = [f"n{k:08d}, a class with a name" for k in range(1000)]
    look = Look(shape=(3, 96, 64), classes=classes, num_test=600, epochs=5)
    study = make_study(16, ("labels", "kd", "dkd", "simkd"))
    job = make_results(tmp_path, study, {"labels": -0.6, "kd": -0.6}, look)
    page = render_page(job)
    assert len(page.encode()) < 5e6
    assert page.count('class="sheet0"') > 100
    assert "Of 1,000 classes, the 12 that" in page
    assert "The 25 of 600 classes with the largest differences" in page


def test_a_study_too_large_for_one_page_has_its_findings_without_charts(hostile, monkeypatch):
    results, tables = compared(hostile)
    assert figures.detail(tables * 20).charts
    assert not figures.detail(tables * 80).charts
    assert not figures.detail(tables * 200).tables
    monkeypatch.setattr(figures, "_BYTES", 0)
    page = render(results, tables, parse_study(hostile.settings.study))
    assert "This study is large" in page
    assert 'id="mistakes"' not in page
    assert "<table" in section(page, "data")
    assert tables[0].best.method in section(page, "verdict")


def test_damaged_predictions_are_told_by_their_path(tmp_path):
    job = make_results(tmp_path, make_study(seeds=1, methods=("labels", "kd")))
    path = job.lists["predictions"][0]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(KdstepsError, match=r"predictions\.parquet"):
        compared(job)


def test_a_run_that_diverged_is_in_no_gallery(tmp_path):
    job = make_results(tmp_path, make_study(seeds=2, methods=("labels", "kd")))
    lost = next(path for path in job.lists["measures"] if "/kd/1/" in str(path))
    names = ("accuracy", "top5_accuracy", "nll", "ece", "agreement", "kl_to_teacher")
    nothing = dict.fromkeys((*names, "accuracy_per_class")) | {"diverged": True}
    write_json(lost, read_json(lost) | nothing)
    results, (table,) = compared(job)
    found = pair_predictions(results, table, ["kd"])
    assert found is not None
    assert {name: list(seeds) for name, seeds in found.students.items()} == {
        "labels": [0, 1],
        "kd": [0],
    }


def test_predictions_of_unlabeled_images_have_no_gallery(tmp_path):
    job = make_results(tmp_path, make_study(seeds=1, methods=("labels",)))
    (path,) = job.lists["predictions"]
    predictions: pd.DataFrame = read_table(path, PREDICTIONS).to_pandas()
    write_table(path, predictions.assign(label=-1).to_dict("list"), PREDICTIONS, {})
    results, (table,) = compared(job)
    assert pair_predictions(results, table, ["labels"]) is None


def test_five_classes_have_no_top_5_accuracy_and_students_without_a_teacher_have_errors(tmp_path):
    study = make_study(seeds=1, methods=("labels",))
    look = Look(classes=("a", "b", "c", "d", "e"), num_test=100)
    page = render_page(make_results(tmp_path, study, look=look))
    assert "top-5" not in page.split('id="origin"')[0]
    shown = section(page, "mistakes")
    assert "Most confident errors of labels" in shown
    assert "teacher" not in re.sub(r"<p.*?</p>", "", shown, flags=re.DOTALL)
