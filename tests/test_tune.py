"""Tuning: what is tried, on which images, what is chosen, and how students get the choice."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from _commands import STUDY
from _prepared import with_noise_for_testing
from _results import make_results, make_study
from _study import Study as Folder

from kdsteps.cli.calls import call_of
from kdsteps.cli.main import main
from kdsteps.cli.running import run_call
from kdsteps.data.prepared import load_prepared
from kdsteps.errors import KdstepsError
from kdsteps.evaluation.trials import edges, ranked, trials_of
from kdsteps.files.checkpoints import read_checkpoint_header
from kdsteps.files.columns import HISTORY
from kdsteps.files.tables import read_table
from kdsteps.files.text import read_json, write_json
from kdsteps.jobs import graph
from kdsteps.jobs.job import Job
from kdsteps.report.page import render
from kdsteps.report.results import load_results
from kdsteps.report.tables import pair_tables
from kdsteps.report.tuning import tuning_of
from kdsteps.stages import tune as tune_stage
from kdsteps.study.loading import load_study, parse_study
from kdsteps.study.study import Study

GRID = {"temperature": [2, 8], "distil.learning_rate": [0.2, 0.4]}


def study(tune: Any = GRID, section: dict[str, Any] | None = None, **kd: Any) -> Study:
    methods = {"labels": {}, "kd": kd | {"tune": tune}}
    return parse_study(STUDY | {"methods": methods, "tune": section or {}})


def tried(*given: Any, **more: Any) -> list[dict[str, Any]]:
    return list(study(*given, **more).methods["kd"].trials)


# What is tried


def test_a_grid_is_every_combination_with_values_as_the_students_would_have_them():
    assert tried() == [
        {"distil.learning_rate": rate, "temperature": temperature}
        for rate in (0.2, 0.4)
        for temperature in (2.0, 8.0)
    ]
    assert all(isinstance(values["temperature"], float) for values in tried())


def test_values_that_mean_the_same_are_tried_once():
    assert tried({"temperature": [1, 1.0, 2]}) == [{"temperature": 1.0}, {"temperature": 2.0}]


RANGES = {
    "temperature": {"low": 1, "high": 8},
    "weight": {"low": 0.5, "high": 2.0},
    "distil.learning_rate": {"low": 0.001, "high": 1.0, "log": True},
    "distil.nesterov": [True, False],
}


def test_random_values_are_within_their_ranges_and_the_same_each_time():
    section = {"search": "random", "trials": 60}
    found = tried(RANGES, section)
    assert len(found) == 60 and found == tried(RANGES, section)
    assert {values["temperature"] for values in found} == set(range(1, 9))
    assert all(0.5 <= values["weight"] <= 2 for values in found)
    rates = sorted(values["distil.learning_rate"] for values in found)
    assert rates[0] >= 0.001 and rates[-1] <= 1
    assert 10 < sum(rate < 0.01 for rate in rates) < 30  # a third of the orders of magnitude
    assert {values["distil.nesterov"] for values in found} == {True, False}
    assert found != tried(RANGES, section | {"seed": 1})


def test_more_random_trials_begin_with_the_same_and_keys_do_not_depend_on_each_other():
    few, many = (tried(RANGES, {"search": "random", "trials": count}) for count in (5, 9))
    assert many[:5] == few
    one = {"weight": RANGES["weight"]}
    alone = tried(one, {"search": "random", "trials": 5})
    assert [values["weight"] for values in alone] == [values["weight"] for values in few]


@pytest.mark.parametrize("search", ["grid", "random"])
def test_the_report_knows_every_job_whatever_the_order_of_the_keys(search):
    """The stage `report` reads the study as JSON with sorted keys."""
    given = study(GRID, {"search": search, "trials": 4, "seeds": [7, 8], "halving": 2})
    again = parse_study(json.loads(json.dumps(given.described, sort_keys=True)))
    for rule in set(graph.OUTPUTS) - {"report"}:
        jobs, others = (sorted(map(str, graph.jobs(each, rule))) for each in (given, again))
        assert jobs == others
        for names in graph.jobs(given, rule):
            text = graph.settings_text(given, rule, names)
            assert text == graph.settings_text(again, rule, names)


def test_a_random_search_in_few_values_tries_each_once():
    found = tried({"temperature": {"low": 1, "high": 4}}, {"search": "random", "trials": 20})
    assert sorted(values["temperature"] for values in found) == [1, 2, 3, 4]


RANDOM = {"search": "random"}


@pytest.mark.parametrize(
    ("tune", "section", "said"),
    [
        ({"temprature": [1]}, {}, ("kd.tune.temprature", "'temperature'?")),
        ({"temperature": [1, -2]}, {}, ("kd.tune.temperature", "-2", "above 0")),
        ({"temperature": 3}, {}, ("kd.tune.temperature", "3", "a list")),
        ({"temperature": []}, {}, ("kd.tune.temperature", "[]", "at least 1")),
        ({}, {}, ("kd.tune", "empty", "list values")),
        ({"distil": {"momentum": [0]}}, {}, ("kd.tune has distil", "`distil.momentum: ")),
        ({"distil.momntum": [0]}, {}, ("kd.tune.distil.momntum", "'momentum'?")),
        ({"distil.momentum": [1.5]}, {}, ("kd.tune.distil.momentum", "1.5", "below 1")),
        ({"distil.epochs": [1, 2]}, {}, ("kd.tune.distil.epochs", "same budget", "leave it out")),
        ({"distil.gpus": [1, 2]}, {}, ("kd.tune.distil.gpus", "leave it out")),
        ({"build.cuts": ["stages"]}, {}, ("kd.tune.build.cuts", "options", "several entries")),
        ({"method": ["kd", "dkd"]}, {}, ("kd.tune.method", "several entries")),
        ({"distil.batch_size": [64]}, {}, ("kd.tune: distil.batch_size: 64", "logits", "two")),
        ({"distil.mixup": [0, 1.0]}, {}, ("kd.tune: distil.mixup: 1.0", "logits", "two")),
        (
            {"distil.nesterov": [True], "distil.momentum": [0.9, 0]},
            {},
            ("methods.kd (distil.momentum: 0, distil.nesterov: true)", "momentum is 0"),
        ),
        (GRID, {"trials": 3}, ("kd.tune: has 4 combinations", "tune.trials is 3", "to 4")),
        (RANGES, {}, ("kd.tune.temperature is a range", "'grid'", "random")),
        ({"temperature": {"low": 2}}, RANDOM, ("temperature.high is missing",)),
        ({"temperature": {"low": 2, "high": 1}}, RANDOM, ("low is 2 and high is 1",)),
        ({"temperature": {"low": 0, "high": 1, "log": True}}, RANDOM, ("low is 0", "above 0")),
        (GRID, {"seeds": [100, 1]}, ("tune.seeds has 1", "under seeds", "others")),
        (GRID, {"seeds": [100, 100]}, ("tune.seeds has 100 twice",)),
        (GRID, {"halving": 1}, ("tune.halving is 1", "above 1")),
        (GRID, {"halving": 2, "seeds": [7]}, ("tune.halving is 2", "one seed", "two seeds")),
    ],
)
def test_what_cannot_be_tuned_is_said_while_planning(tune, section, said):
    with pytest.raises(KdstepsError) as raised:
        study(tune, section)
    for text in ("params.yaml: ", *said):
        assert text in str(raised.value)


def test_a_value_that_decides_whether_the_classifier_is_needed_is_refused():
    methods = {"fitnet": {"tune": {"kd_weight": [0, 1]}}}
    with pytest.raises(KdstepsError, match=r"fitnet\.tune: kd_weight: 0 .*classifier"):
        parse_study(STUDY | {"methods": {"fitnet": {"kd_weight": 1} | methods["fitnet"]}})


def test_batch_sizes_can_be_tuned_where_no_logits_are_cached():
    methods = {"labels": {"tune": {"distil.batch_size": [64, 128]}}}
    assert len(parse_study(STUDY | {"methods": methods}).methods["labels"].trials) == 2


# The job graph


def nodes(chosen: Study) -> dict[tuple[str, ...], tuple[Any, str]]:
    """Files and settings of every job but the report, which shows the study as it is written."""
    return {
        (rule, *names.values()): (node.inputs, node.text)
        for rule in graph.OUTPUTS.keys() - {"report"}
        for names in graph.jobs(chosen, rule)
        for node in [graph.node(chosen, rule, names)]
    }


def test_tuning_adds_jobs_and_changes_those_of_the_students_that_are_tuned():
    plain = parse_study(STUDY | {"methods": {"labels": {}, "kd": {}}})
    before, after = nodes(plain), nodes(study())
    assert "tune" not in plain.described and not any("tune" in job[0] for job in before)
    added = {"tune": 4, "tune_choose": 1}
    assert Counter(job[0] for job in after.keys() - before.keys()) == added
    choice = "results/tune/pair/kd/choice.json"
    for job, (inputs, text) in before.items():
        if job[0] == "distil" and job[2] == "kd":  # run again, also when nothing is tuned any more
            assert after[job][0] == inputs | {"choice": choice}
            assert json.loads(after[job][1]) == json.loads(text) | {"tuned": sorted(GRID)}
        else:
            assert after[job] == (inputs, text)


def test_a_study_with_tuning_reads_back_from_its_description():
    chosen = study(RANGES, {"search": "random", "seeds": [7, 8], "halving": 2})
    assert nodes(parse_study(chosen.described)) == nodes(chosen)


def test_a_trial_has_the_settings_of_a_student_with_its_values_and_what_it_reads():
    chosen = study()
    names = {"pair": "pair", "method": "kd", "trial": "2", "seed": "100"}
    trial = graph.node(chosen, "tune", names)
    values = {"temperature": 8.0, "distil": {"learning_rate": 0.2}}
    written = parse_study(STUDY | {"methods": {"kd": values}, "seeds": [100]})
    student = graph.node(written, "distil", {"pair": "pair", "method": "kd", "seed": "100"})
    own = {"values": {"temperature": 8.0, "distil.learning_rate": 0.2}, "survivors": None}
    assert json.loads(trial.text) == json.loads(student.text) | own
    assert trial.inputs == student.inputs


def test_after_each_seed_the_best_fraction_goes_on_under_successive_halving():
    chosen = study(GRID, {"seeds": [7, 8, 9], "halving": 2})
    found = [graph.node(chosen, "tune", names) for names in graph.jobs(chosen, "tune")]
    survivors = [json.loads(node.text)["survivors"] for node in found]
    assert survivors == [None] * 4 + [2] * 4 + [1] * 4
    assert [len(node.inputs.get("earlier", ())) for node in found] == [0] * 4 + [4] * 4 + [8] * 4
    assert chosen.num_trainings("kd") == len(STUDY["seeds"]) + 4 + 2 + 1
    assert chosen.num_trainings("labels") == len(STUDY["seeds"])


# The choice


def result(value: float, accuracy: float, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    found = {"trained": True, "values": {"temperature": value}, "seed": 100, "diverged": None}
    found |= {"num_images": 216, "validation_accuracy": [0.1, accuracy]}
    return found | {"validation_loss": [2.0, loss]} | more


def order(*results: dict[str, Any]) -> list[float]:
    return [trial.values["temperature"] for trial in ranked(trials_of(results))]


def test_the_highest_mean_accuracy_after_the_last_epoch_wins():
    again = [result(1, 0.9, seed=101), result(2, 0.5, seed=101)]
    assert order(result(1, 0.7), result(2, 0.8), *again) == [1, 2]


def test_equal_accuracies_are_equal_although_their_means_round_differently():
    """As in docs/findings.md: three times 208 of 216, and 207, 208 and 209 of 216."""
    same = [result(1, 208 / 216, 0.155, seed=seed) for seed in (10, 11, 12)]
    spread = [result(2, n / 216, 0.135, seed=seed) for n, seed in ((207, 10), (208, 11), (209, 12))]
    assert order(*same, *spread) == [2, 1]
    assert order(result(1, 0.5), result(2, 0.5)) == [1, 2]  # the first
    assert order(result(1, 0.5, None), result(2, 0.5, 9.0)) == [2, 1]  # infinite loss


def test_a_trial_that_diverged_or_was_left_out_is_behind_the_others():
    diverged = result(1, 0.9, diverged={"term": "kd", "epoch": 2, "step": 3})
    assert order(diverged, result(2, 0.2)) == [2, 1]
    # a survivor of halving that diverges with the next seed does not hide one that did not
    assert order(result(1, 0.9), result(2, 0.2), diverged | {"seed": 101}) == [2, 1]
    left_out = {"trained": False, "values": {"temperature": 1.0}, "seed": 101}
    assert order(result(1, 0.9), result(2, 0.2), left_out, result(2, 0.2, seed=101)) == [2, 1]


def test_a_number_at_an_edge_of_what_was_tried_is_named():
    def edge(chosen: Any, *others: Any) -> dict[str, Any]:
        tried = trials_of([result(value, 0.5) for value in (chosen, *others)])
        return edges(tried[0], tried)

    assert edge(1, 2, 3) == {"temperature": "lowest"}
    assert edge(3, 2, 1) == {"temperature": "highest"}
    assert edge(2, 1, 3) == edge(1) == edge(True, False) == edge("a", "b") == {}


# A study, in this process

TUNED = STUDY | {
    "methods": {
        "labels": {"tune": {"distil.learning_rate": [0.3, 1e6]}},  # the latter diverges
        "kd": {"tune": {"temperature": [2, 8], "distil.learning_rate": [0.1, 0.4]}},
        "fitnet": {},
    },
    "seeds": [0],
    "tune": {"seeds": [100, 101], "halving": 2},
    "train": {"epochs": 1, "batch_size": 256, "teacher_check": "warn"},
    "distil": {"epochs": 2, "batch_size": 128},
}
MADE = ("trial.json", "choice.json", "trials.json")
BEFORE = ("prepare", "train", "train_check", "cache_outputs", "build", "tune", "tune_choose")


def run_jobs(*rules: str) -> Study:
    chosen = load_study()
    for rule in rules:
        for names in graph.jobs(chosen, rule):
            run_call(call_of(chosen, rule, names), threads=1)
    return chosen


def tuned_files(folder: Path) -> dict[str, bytes]:
    files = (file for name in MADE for file in folder.glob(f"results/tune/**/{name}"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose students are trained with what was tuned."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "params.yaml").write_text(yaml.safe_dump(TUNED, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_jobs(*BEFORE, "distil")
    return folder


@pytest.fixture(autouse=True)
def in_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "folder" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("folder"))


def trial_of(method: str, trial: int, seed: int) -> dict[str, Any]:
    return read_json(f"results/tune/pair/{method}/{trial}/{seed}/trial.json")


def test_tuning_again_makes_the_same_bytes(folder: Path, tmp_path: Path, monkeypatch):
    first = tuned_files(folder)
    assert len(first) == 4 + 8 + 4
    shutil.copytree(folder, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    shutil.rmtree("results/tune")
    shutil.rmtree(".jobcache")
    run_jobs("tune", "tune_choose")
    assert tuned_files(Path.cwd()) == first


def test_a_trial_is_what_a_student_with_its_values_reaches_on_the_validation_images(
    folder: Path, tmp_path: Path
):
    rates = {"kd": {"temperature": 2, "distil": {"learning_rate": 0.4}}}
    written = parse_study(TUNED | {"methods": rates, "seeds": [100]})
    call = call_of(written, "distil", {"pair": "pair", "method": "kd", "seed": "100"})
    outputs = {name: tmp_path / path.name for name, path in call.outputs.items()}
    run_call(replace(call, outputs=outputs), threads=1)
    rows = read_table(outputs["history"], HISTORY).to_pylist()
    for name in ("validation_accuracy", "validation_loss"):
        expected = [row["value"] for row in rows if row["name"] == name]
        assert trial_of("kd", 3, 100)[name] == expected
        assert len(expected) == 2


def test_no_image_and_no_label_for_testing_is_read(folder: Path, tmp_path: Path):
    """With noise instead of the test images, and with other labels, a trial is the same bytes."""
    chosen = load_study()
    names = {"pair": "pair", "method": "kd", "trial": "2", "seed": "100"}
    changed = with_noise_for_testing(Path("results/prepare/digits"), tmp_path)
    inputs = call_of(chosen, "tune", names).inputs
    job = Job(
        settings=graph.settings(chosen, "tune", names),
        inputs=inputs | changed,
        outputs={"trial": tmp_path / "trial.json"},
        keep="never",  # without the teacher's logits that are cached for these images
    )
    tune_stage.run(job)
    made = Path(graph.outputs("tune", names)["trial"])
    assert (tmp_path / "trial.json").read_bytes() == made.read_bytes()
    read = [job.inputs[name] for name in ("images", "index", "summary")]
    data = load_prepared(*read, torch.device("cpu"))
    with pytest.raises(KdstepsError, match="does not match its hash"):
        data.part("test")  # so that whoever read these images would have noticed


def test_only_the_better_half_is_trained_with_the_next_seed(folder: Path):
    first = [trial_of("kd", number, 100) for number in (1, 2, 3, 4)]
    best = [trial.values for trial in ranked(trials_of(first))[:2]]
    for number, before in enumerate(first, start=1):
        again = trial_of("kd", number, 101)
        assert again["trained"] == (before["values"] in best)
        assert ("validation_accuracy" in again) == again["trained"]


def test_a_trial_that_diverges_is_not_chosen(folder: Path):
    assert trial_of("labels", 2, 100)["diverged"]["epoch"] in (1, 2)
    assert read_json("results/tune/pair/labels/choice.json") == {
        "values": {"distil.learning_rate": 0.3}
    }


def test_where_every_trial_diverges_none_is_chosen(folder: Path, tmp_path: Path):
    paths = [Path(f"results/tune/pair/labels/2/{seed}/trial.json") for seed in (100, 101)]
    outputs = {name: tmp_path / f"{name}.json" for name in ("choice", "trials")}
    settings = graph.settings(load_study(), "tune_choose", {"pair": "pair", "method": "labels"})
    with pytest.raises(KdstepsError, match=r"diverged in all 1 trials.*learning_rate"):
        tune_stage.run(Job(settings, inputs={}, lists={"results": paths}, outputs=outputs))
    assert not outputs["choice"].exists()


def test_students_are_those_of_a_study_that_has_the_chosen_values_written_down(
    folder: Path, tmp_path: Path
):
    values = read_json("results/tune/pair/kd/choice.json")["values"]
    rate = values.pop("distil.learning_rate")
    written = parse_study(TUNED | {"methods": {"kd": values | {"distil": {"learning_rate": rate}}}})
    call = call_of(written, "distil", {"pair": "pair", "method": "kd", "seed": "0"})
    outputs = {name: tmp_path / path.name for name, path in call.outputs.items()}
    run_call(replace(call, outputs=outputs), threads=1)
    student = Path("results/distil/pair/kd/0/student.safetensors")
    assert student.read_bytes() == outputs["model"].read_bytes()
    used = read_checkpoint_header(student)["settings"]
    assert (used["options"]["temperature"], used["distil"]["learning_rate"]) == (
        values["temperature"],
        rate,
    )


def test_by_name_one_trial_or_the_choice_is_run(folder: Path, capsys):
    names = ["--pair", "pair", "--method", "kd"]
    before = tuned_files(folder)
    assert main(["tune", *names, "--trial", "1", "--seed", "100"]) == 0
    assert main(["tune", *names]) == 0
    assert tuned_files(folder) == before
    assert main(["tune", *names, "--trial", "5", "--seed", "100"]) == 2
    assert "--trial: this study has no tune job for '5'" in capsys.readouterr().err


def test_without_validation_images_nothing_can_be_tuned(folder: Path, tmp_path: Path):
    names = {"pair": "pair", "method": "kd", "trial": "1", "seed": "100"}
    call = call_of(load_study(), "tune", names)
    table = pq.read_table(call.inputs["index"])
    table = table.filter(pa.compute.not_equal(table["split"], "validation"))
    pq.write_table(table, tmp_path / "index.parquet")
    inputs = call.inputs | {"index": tmp_path / "index.parquet"}
    outputs = {"trial": tmp_path / "trial.json"}
    with pytest.raises(KdstepsError, match=r"no validation images.*prepare\.validation"):
        tune_stage.run(Job(call.settings, inputs=inputs, outputs=outputs))


# The report


def test_the_report_says_what_was_tried_what_was_chosen_and_where_it_is_at_an_edge(tmp_path: Path):
    grid = {"temperature": [1, 2, 4], "distil.learning_rate": [0.1, 0.4]}
    methods = {"labels": {}, "kd": {"tune": grid}}
    section = {"trials": 8, "seeds": [100, 101], "halving": 2}
    chosen = make_study(3, methods, tune=section)
    job = make_results(tmp_path, chosen)
    rows = [
        {
            "values": values,
            "seeds": [100],
            "validation_accuracy": 0.9,
            "validation_loss": 0.3,
            "accuracy_of_seed": [0.9],
            "diverged": False,
        }
        for values in chosen.methods["kd"].trials
    ]
    rows[4] |= {"seeds": [100, 101], "validation_accuracy": 0.9321}
    rows[0] |= {"diverged": True, "validation_accuracy": None, "validation_loss": None}
    found = {"num_images": 217, "best": 4, "trials": rows}
    names = {"pair": "resnet20-resnet8", "method": "kd"}
    edge = {"edges": {"distil.learning_rate": "highest"}, "settings": {}}
    write_json(tmp_path / graph.outputs("tune_choose", names)["trials"], found | edge)
    results = load_results(job.lists, chosen)
    tables = pair_tables(results, chosen.references, 0.95)
    page = " ".join(render(results, tables, chosen).split())
    for text in (
        "On 217 validation images, before",
        "up to 8 trials, all combinations of the listed values, seeds 100, 101; after each seed",
        "<td><code>temperature</code></td><td>1, 2, 4</td> <td><b>2</b></td>",
        '<td><b>0.4</b> <span class="tag warning">highest tried</span></td>',
        '<td class="n">93.21</td>',
        "6 trials, 7 trainings of 240 epochs",
        "Fewer than 8 trials: kd (6). Not tuned: labels.",
        "The best trial, of those that were trained with the most seeds, has the highest",
        "in total, including teachers, without the trials of tuning.",
        '<span class="tag worse">diverged</span>',
    ):
        assert text in page, text
    assert 'href="#tuning"' in page
    assert tuning_of(make_study(3), []) is None


# The real snakemake


@pytest.mark.slow
def test_snakemake_tunes_before_it_trains_and_a_longer_grid_runs_only_what_is_new(tmp_path: Path):
    methods = {"labels": {"tune": {"distil.learning_rate": [0.1, 0.2]}}}
    params = TUNED | {"methods": methods, "tune": {}}
    folder = Folder.new(tmp_path / "study", params)
    folder.snakemake("distil_all")
    first = folder.executed()
    assert {job.split("/")[0] for job in first} == {"prepare", "tune", "distil"}
    assert "tune/pair/labels" in first and len(first) == 5
    choice = folder.bytes_of("results/tune/pair/labels/choice.json")
    methods = {"labels": {"tune": {"distil.learning_rate": [0.1, 0.2, 1e-6]}}}
    folder.change(methods=methods)
    folder.snakemake("distil_all")
    ran = folder.executed()
    assert set(ran) == {"tune/pair/labels/3/100", "tune/pair/labels", "distil/pair/labels/0"}
    assert "restored from" in ran["distil/pair/labels/0"]  # the choice is the same
    assert folder.bytes_of("results/tune/pair/labels/choice.json") == choice
