"""The stage `export` on a small study: the best student as files, and what export.json says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _commands import NET, write_study

from kdsteps.cli.calls import call_of
from kdsteps.cli.main import main
from kdsteps.cli.running import run_call
from kdsteps.cli.verify import verify
from kdsteps.data.prepared import load_prepared
from kdsteps.errors import KdstepsError
from kdsteps.export import checking
from kdsteps.export.checking import pixels
from kdsteps.export.onnx_files import run as run_onnx
from kdsteps.export.record import CARD, FILES, RECORD, Record, read_record
from kdsteps.export.session import open_session
from kdsteps.export.timm_folder import load_timm
from kdsteps.files.columns import HISTORY, PREDICTIONS
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs import graph
from kdsteps.jobs.job import Job
from kdsteps.jobs.provenance import lost_files, provenance_file, read_provenance
from kdsteps.jobs.restoring import restore_records
from kdsteps.report.exports import export_view
from kdsteps.stages import export
from kdsteps.study.loading import load_study
from kdsteps.study.study import Study

pytestmark = pytest.mark.slow

PAIRS = {
    "own": {"dataset": "digits", "teacher": "big", "student": "small"},
    "zoo": {"dataset": "digits", "teacher": "big", "student": "tiny"},
}
RUNS = [(method, seed) for method in ("plain", "smooth") for seed in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two pairs whose students are trained, evaluated, and the best exported."""
    folder = tmp_path_factory.mktemp("study")
    write_study(
        folder,
        datasets={"digits": {"kind": "digits", "size": 16}},
        models={"big": NET, "small": NET, "tiny": {"family": "timm", "name": "test_resnet"}},
        pairs=PAIRS,
        # in an order that is not that of the alphabet
        methods={
            "smooth": {"method": "labels", "label_smoothing": 0.1},
            "plain": {"method": "labels"},
        },
        distil={"epochs": 1, "batch_size": 128},
        evaluate={"latency_runs": 3},
        export={"formats": ["onnx", "safetensors", "timm"], "int8": True},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("KDSTEPS_JOB_CACHE", raising=False)
        command("prepare", "--dataset", "digits")
        for pair in PAIRS:
            for method, seed in RUNS:
                names = ("--pair", pair, "--method", method, "--seed", str(seed))
                command("distil", *names)
                command("evaluate", *names)
            command("export", "--pair", pair, "--student", "best")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("KDSTEPS_JOB_CACHE", raising=False)


def command(*arguments: str) -> None:
    assert main([*arguments, "--threads", "1", "--gpus", "0"]) == 0


def study() -> Study:
    return load_study("params.yaml")


def place(pair: str) -> Path:
    return Path("results/export", pair, "best")


def record_of(pair: str) -> Record:
    return read_record(place(pair) / "export.json")


def evaluated(record: Record) -> dict[str, Path]:
    names = {"pair": record.pair, "method": record.method, "seed": str(record.seed)}
    return {name: Path(path) for name, path in graph.outputs("evaluate", names).items()}


def job_of(pair: str, outputs: Path, **lists: list[Path]) -> Job[Any]:
    """The job that exports the best student of a pair, with its files in a folder."""
    node = graph.node(study(), "export", {"pair": pair, "student": "best"})
    given = {name: found for name, found in node.inputs.items() if name in graph.LISTS}
    return Job(
        settings=node.settings,
        inputs={n: Path(path) for n, path in node.inputs.items() if n not in graph.LISTS},
        lists={name: list(map(Path, paths)) for name, paths in given.items()} | lists,
        outputs={"record": outputs / "export.json"}
        | {name: outputs / file for name, file in {**FILES, "card": CARD}.items()},
    )


@pytest.fixture
def shown() -> np.ndarray:
    files = graph.outputs("prepare", {"dataset": "digits"})
    data = load_prepared(files["images"], files["index"], files["summary"], torch.device("cpu"))
    return pixels(data, data.rows("test"))


# what is exported


@pytest.mark.parametrize("pair", PAIRS)
def test_the_best_run_is_that_with_the_highest_validation_accuracy_after_the_last_epoch(pair):
    reached = {}
    for method, seed in RUNS:
        names = {"pair": pair, "method": method, "seed": str(seed)}
        table = read_table(graph.outputs("distil", names)["history"], HISTORY).to_pylist()
        rows = {row["name"]: row["value"] for row in table}  # of the only epoch
        reached[f"{pair}/{method}/{seed}"] = rows["validation_accuracy"], -rows["validation_loss"]
    record = record_of(pair)
    assert record.run == max(reached, key=lambda run: reached[run])
    assert "validation" in record.chosen
    found = {each.run: each.validation_accuracy for each in record.candidates}
    assert found == {run: accuracy for run, (accuracy, _) in reached.items()}


@pytest.mark.parametrize("pair", PAIRS)
def test_every_file_makes_the_decisions_of_the_evaluation(pair):
    record = record_of(pair)
    measures = read_json(evaluated(record)["measures"])
    assert record.metrics["accuracy"] == measures["accuracy"]
    assert record.seeds[str(record.seed)] == measures["accuracy"]
    written = [file for file in record.files if file.name is not None]
    assert [file.format for file in record.files] == list(FILES)
    for file in written:
        path = place(pair) / str(file.name)
        assert file.latency_ms > 0 and file.images_per_second > 0
        if file.format != "timm":
            assert file.bytes == path.stat().st_size
        if file.format != "int8":
            assert (file.accuracy, file.agreement) == (measures["accuracy"], 1.0)
            assert file.max_difference < 1e-5
        else:
            assert file.agreement > 0.9
    found = {path.name for path in place(pair).iterdir()}
    assert found == {file.name for file in written} | {RECORD, CARD, "export.provenance.json"}
    assert f"# `{record.student}`" in (place(pair) / CARD).read_text()


def test_onnx_and_timm_files_predict_what_the_evaluation_did(shown: np.ndarray):
    record = record_of("zoo")
    expected = read_table(evaluated(record)["predictions"], PREDICTIONS)["logits"].to_pylist()
    opened = open_session((place("zoo") / "model.onnx").read_bytes())
    assert run_onnx(opened, shown) == pytest.approx(np.array(expected), abs=1e-4)
    config = json.loads((place("zoo") / "config.json").read_text())["pretrained_cfg"]
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    images = (torch.from_numpy(shown).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        found = load_timm(place("zoo"))(images).numpy()
    assert found == pytest.approx(np.array(expected), abs=1e-4)


def test_a_student_that_is_no_network_of_timm_has_no_folder_for_it_and_says_why():
    record = record_of("own")
    assert record.file("timm") is None
    assert "cifar_resnet" in record.files[-1].reason
    assert not (place("own") / "config.json").exists()
    assert record_of("zoo").file("timm") is not None


def test_the_record_has_what_a_model_card_needs():
    record = record_of("own")
    assert record.class_names == [str(digit) for digit in range(10)]
    assert (record.student, record.teacher, record.dataset) == ("small", None, "digits")
    assert (record.algorithm, sum(record.num_images.values())) == ("labels", 1797)
    assert len(record.accuracy_per_class) == 10
    low, high = record.accuracy_interval
    assert low < record.metrics["accuracy"] < high
    assert record.metrics["ece"] is not None
    assert record.seeds_mean == pytest.approx(np.mean([*record.seeds.values()]))
    assert {"onnx", "onnxruntime", "torch"} <= record.provenance["versions"].keys()


def test_the_report_shows_each_file_and_why_one_is_missing():
    view = export_view(record_of("own"))
    assert view.folder == str(place("own"))
    assert [file.name for _, file in view.rows] == list(FILES.values())[:3]
    ((label, reason),) = view.missing
    assert "timm" in label and "cifar_resnet" in reason
    page = rendered([view])
    for text in ("model.int8.onnx", "own/", view.chosen, "onnxruntime", reason):
        assert text in page


def rendered(views: list[Any]) -> str:
    """The section of the page, as `render` sets it up."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from kdsteps.report import formats

    environment = Environment(loader=PackageLoader("kdsteps.report"), undefined=StrictUndefined)
    environment.globals |= {name: getattr(formats, name) for name in ("percent", "number")}
    environment.globals |= {"with_code": formats.with_code}
    return environment.get_template("exports.html.j2").render(exports=views)


# the files as results


def test_files_come_back_from_the_job_cache(caplog: pytest.LogCaptureFixture):
    before = {path.name: path.read_bytes() for path in place("own").iterdir()}
    for name in ("model.onnx", "export.json"):
        (place("own") / name).unlink()
    (place("own") / "config.json").write_text("of an earlier student")
    caplog.set_level("INFO", "kdsteps")
    command("export", "--pair", "own", "--student", "best")
    assert "restored" in caplog.text
    after = {path.name: path.read_bytes() for path in place("own").iterdir()}
    assert {**after, "export.provenance.json": b""} == {**before, "export.provenance.json": b""}


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"damaged")])
def test_a_file_that_is_deleted_or_changed_is_noticed(change, tmp_path: Path):
    kept = shutil.copy(place("zoo") / "model.onnx", tmp_path / "kept")
    assert verify(study(), "export") == 2
    try:
        change(place("zoo") / "model.onnx")
        with pytest.raises(KdstepsError, match=r"zoo/best/model.onnx"):
            verify(study(), "export")
        assert any("model.onnx" in finding for finding in restore_records(study()))
    finally:
        shutil.copy(kept, place("zoo") / "model.onnx")


def test_provenance_has_the_digest_of_each_file_that_was_written():
    outputs = graph.outputs("export", {"pair": "own", "student": "best"})
    known = read_provenance(provenance_file(outputs))
    assert known is not None
    names = {RECORD, CARD, "model.onnx", "model.int8.onnx", "model.safetensors"}
    assert known.files.keys() == names
    assert lost_files("export", outputs, known, thorough=True) == []


def test_a_declared_file_that_is_not_written_is_empty(tmp_path: Path):
    """As where results are in storage, and a missing file would be an error."""
    call = call_of(study(), "export", {"pair": "own", "student": "best"})
    files = {name: tmp_path / file for name, file in FILES.items()}
    run_call(replace(call, outputs={"record": tmp_path / "export.json"} | files), 1, 0)
    assert files["onnx"].read_bytes() == (place("own") / "model.onnx").read_bytes()
    assert files["timm"].read_bytes() == b""
    known = read_provenance(tmp_path / "export.provenance.json")
    assert known is not None and "config.json" not in known.files


# what cannot be exported


def test_a_file_with_other_logits_is_not_accepted(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checking, "TOLERANCE", 1e-12)
    job = job_of("own", tmp_path)
    export.run(replaced(job, formats=("onnx",), int8=True))
    record = read_record(tmp_path / "export.json")
    onnx, int8 = record.files
    assert onnx.name is None and "differ from those of torch" in onnx.reason
    assert int8.name is None and "no ONNX file" in int8.reason
    assert {path.name for path in tmp_path.iterdir()} == {RECORD, CARD}


def test_weights_are_not_left_for_a_folder_that_timm_cannot_load(tmp_path: Path):
    export.run(replaced(job_of("own", tmp_path), formats=("timm",), int8=False))
    (folder,) = read_record(tmp_path / "export.json").files
    assert (folder.format, folder.name) == ("timm", None)
    assert {path.name for path in tmp_path.iterdir()} == {RECORD, CARD}


def replaced(job: Job[Any], **settings: Any) -> Job[Any]:
    return replace(job, settings=job.settings.model_copy(update=settings))


def test_students_that_diverged_are_exported_as_a_reason_alone(tmp_path: Path):
    job = job_of("own", tmp_path)
    lost = []
    for number, path in enumerate(job.lists["measures"]):
        found = read_json(path) | {"diverged": True, "accuracy": None, "accuracy_per_class": None}
        lost.append(tmp_path / f"{number}.json")
        write_json(lost[-1], found)
    export.run(job_of("own", tmp_path, measures=lost))
    record = read_record(tmp_path / "export.json")
    assert record.diverged and record.accuracy_interval is None
    assert "all diverged" in record.chosen
    assert all(file.name is None and "diverged" in file.reason for file in record.files)
    assert "diverged" in rendered([export_view(record)])


def test_without_validation_images_the_best_run_is_unknown(tmp_path: Path):
    from kdsteps.files.tables import write_table

    job = job_of("own", tmp_path)
    rows = {"epoch": [1], "name": ["total"], "value": [0.5]}
    for number in range(len(job.lists["histories"])):
        write_table(tmp_path / f"{number}.parquet", rows, HISTORY)
    histories = [tmp_path / f"{number}.parquet" for number in range(len(job.lists["histories"]))]
    with pytest.raises(KdstepsError, match=r"export.runs is best.*prepare.validation"):
        export.run(job_of("own", tmp_path, histories=histories))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "student.safetensors"),
        (b"\x00" * 500, "student.safetensors"),
        (b"\xff" * 8 + b"{}", "student.safetensors"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_a_sentence(tmp_path: Path, capsys, content, problem):
    record = record_of("own")
    names = {"pair": "own", "method": record.method, "seed": str(record.seed)}
    student = Path(graph.outputs("distil", names)["model"])
    kept = shutil.copytree(student.parent, tmp_path / "kept")
    try:
        student.write_bytes(content)
        shutil.rmtree(student.parent / "student.provenance.json", ignore_errors=True)
        (student.parent / "student.provenance.json").unlink()
        status = main(["export", "--pair", "own", "--student", "best", "--threads", "1"])
        said = capsys.readouterr().err
        assert status == 2 and problem in said
        assert "Traceback" not in said
    finally:
        shutil.copytree(kept, student.parent, dirs_exist_ok=True)


def test_a_damaged_record_is_a_sentence(tmp_path: Path):
    content = read_json(place("own") / "export.json")
    for number, changed in enumerate(
        [content | {"format": 2}, {**content, "files": [{}]}, {"format": 1}]
    ):
        write_json(tmp_path / f"{number}.json", changed)
        with pytest.raises(KdstepsError, match=f"{number}.json"):
            read_record(tmp_path / f"{number}.json")
