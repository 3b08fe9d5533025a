"""What users of a study live through, with the real snakemake, dvc and git in fresh clones.

Counted is which commands ran, by the logs they leave, not what a program says it would do.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from _study import TINY, Study

from kdsteps.jobs import graph
from kdsteps.study.loading import parse_study

pytestmark = [pytest.mark.stories, pytest.mark.slow]

KD = {"distil/pair/kd/0", "evaluate/students/pair/kd/0", "evaluate/latency/pair", "report"}
STUDENTS = "results/distil/**/student.safetensors"
WARMER: dict[str, Any] = {**TINY["methods"], "kd": {"temperature": 2.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stories")


@pytest.fixture(scope="module")
def built(folder: Path) -> Study:
    """A study that plain snakemake has finished."""
    study = Study.new(folder / "built")
    study.snakemake()
    return study


@pytest.fixture(scope="module")
def shared(built: Study, folder: Path) -> Study:
    """The same after `dvc repro`, a commit and a push."""
    study = built.copy(folder / "shared")
    study.dvc("repro")
    study.share(folder / "remote")
    return study


@pytest.fixture
def study(built: Study, tmp_path: Path) -> Study:
    return built.copy(tmp_path / "study")


@pytest.fixture
def recorded(shared: Study, tmp_path: Path) -> Study:
    return shared.copy(tmp_path / "study")


@pytest.fixture
def clone(shared: Study, tmp_path: Path) -> Study:
    """What a colleague has: a clone and what they pulled."""
    theirs = shared.clone(tmp_path / "theirs")
    theirs.dvc("pull")
    return theirs


def test_the_first_build_runs_every_job_once_and_leaves_every_file(built: Study):
    described = parse_study(built.params())
    wanted = {path for stage in graph.STAGES for path in graph.all_outputs(described, stage)}
    files = (built.path / "results").rglob("*")
    found = {str(path.relative_to(built.path)) for path in files if path.is_file()}
    made = {path for path in found if path.endswith(".provenance.json")}
    assert found - made == wanted
    num_jobs = sum(len(graph.jobs(described, rule)) for rule in graph.OUTPUTS)
    assert len(list((built.path / "logs").rglob("*.txt"))) == num_jobs


def test_a_finished_study_has_nothing_to_do(study: Study):
    study.snakemake()
    assert study.executed() == {}


def test_dvc_adopts_what_snakemake_made_and_computes_nothing(built: Study, shared: Study):
    assert shared.executed() == {}
    made = {f"results/settings/{stage}.json" for stage in graph.STAGES}
    assert shared.bytes_of("results/settings/*").keys() == made
    before, after = (found.bytes_of("results/**/*.*") for found in (built, shared))
    assert {name: after[name] for name in after.keys() - made} == before
    assert "up to date" in shared.dvc("status")
    assert shared.git("status", "--porcelain") == ""


def test_methods_and_seeds_are_not_confused(study: Study):
    study.change(methods={"labels": {}}, seeds=[0, 1])
    study.snakemake()
    new = {"distil/pair/labels/1", "evaluate/students/pair/labels/1", "evaluate/latency/pair"}
    assert set(study.executed()) == {*new, "report"}
    students = study.bytes_of(STUDENTS)
    assert len(students) == 4
    assert len(set(students.values())) == 4


def changed(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A change of params.yaml: `section__key=value` each."""

    def change(params: dict[str, Any]) -> dict[str, Any]:
        sections = {name: dict(params[name]) for name in {key.split("__")[0] for key in values}}
        for key, value in values.items():
            section, _, name = key.partition("__")
            sections[section][name] = value
        return sections

    return change


ALL_RUNS = {"distil": 3, "evaluate": 3, "report": 1}
ONE_RUN = {"distil": 1, "evaluate": 1, "evaluate_latency": 1, "report": 1}
ASKED = {"train_check": 1, "evaluate_teacher": 1, "cache": 1, "cache_outputs": 1}
AFTER_TEACHER = ASKED | {"score": 1, "build": 1, "evaluate_latency": 1, "report": 1}


@pytest.mark.parametrize(
    ("change", "jobs"),
    [
        (changed(methods__kd={"temperature": 2.0}), ONE_RUN),
        (changed(methods__dkd={}), ONE_RUN),
        (changed(methods__again={"method": "labels"}), ONE_RUN),
        (lambda params: {"seeds": [0, 7]}, ALL_RUNS),
        (changed(train__epochs=2), {"train": 1, "distil": 2, "evaluate": 2} | AFTER_TEACHER),
        (changed(cache__images=50), {"cache": 1, "score": 1, "build": 1} | ONE_RUN),
        (changed(score__num_layers=2), {"score": 1, "build": 1} | ONE_RUN),
        (changed(build__projector="three_layer"), {"build": 1} | ONE_RUN),
        (changed(evaluate__latency_runs=3), {"evaluate_latency": 1, "report": 1}),
        (
            changed(evaluate__calibration_bins=10),
            {"evaluate": 3, "evaluate_teacher": 1, "report": 1},
        ),
        (changed(train__teacher_check="stop"), {"train_check": 1, "report": 1}),
        (
            changed(train__teacher_check="stop", methods__kd={"temperature": 2.0}),
            {"train_check": 1} | ONE_RUN,
        ),
        (
            changed(train__teacher_check="stop", methods__again={"method": "dkd"}),
            {"train_check": 1} | ONE_RUN,
        ),
        (changed(report__title="Another"), {"report": 1}),
        (changed(distil__checkpoint_minutes=1.0), {"report": 1}),
    ],
)
def test_a_change_reaches_exactly_the_jobs_that_depend_on_it(
    built: Study, change: Callable[[dict[str, Any]], dict[str, Any]], jobs: dict[str, int]
):
    before = built.params()
    try:
        built.change(**change(before))
        assert built.planned() == Counter(jobs)
    finally:
        built.change(**before)


def test_two_values_that_change_places_are_noticed(study: Study):
    study.change(distil=TINY["distil"] | {"learning_rate": 5e-4, "weight_decay": 0.05})
    assert study.planned() == Counter(ALL_RUNS | {"evaluate_latency": 1})


def test_a_changed_value_runs_its_jobs_and_the_old_one_is_restored_without_training(study: Study):
    before = study.bytes_of(STUDENTS)
    study.run(["find", "results", "-exec", "touch", "--date", "2 days", "{}", "+"])
    study.change(methods=WARMER, loggers={"dvclive": None})
    study.snakemake()
    assert set(study.executed()) == KD
    live = study.path / "logs/live/dvclive"
    assert [str(path.relative_to(live)) for path in live.rglob("metrics.json")] == [
        "distil/pair/kd/0/metrics.json"
    ]
    assert study.bytes_of(STUDENTS)[f"results/{min(KD)}/student.safetensors"] not in before.values()
    study.change(methods=TINY["methods"])
    study.snakemake()
    said = study.executed()
    assert set(said) == KD
    anew = {"report", "evaluate/latency/pair"}  # the latter depends on the machine
    assert {name for name, text in said.items() if "restored from .jobcache" not in text} == anew
    assert study.bytes_of(STUDENTS) == before


def test_dvc_runs_the_jobs_of_a_changed_value_and_git_brings_the_old_results_back(recorded: Study):
    before = recorded.bytes_of("results/**/*.*")
    recorded.change(methods=WARMER)
    recorded.dvc("repro")
    assert set(recorded.executed()) == KD
    recorded.snakemake()
    assert recorded.executed() == {}
    recorded.commit()
    recorded.git("checkout", "--quiet", "HEAD~1")
    recorded.dvc("checkout")
    recorded.snakemake()
    recorded.dvc("repro")
    assert recorded.executed() == {}
    assert recorded.bytes_of("results/**/*.*") == before


def test_a_colleague_who_pulls_computes_nothing(shared: Study, clone: Study):
    ages = random.Random(0)
    for path in (clone.path / "results").rglob("*"):
        os.utime(path, (0, ages.randrange(10**9)))
    clone.snakemake()
    clone.dvc("repro")
    assert clone.executed() == {}
    assert clone.bytes_of("results/**/*.*") == shared.bytes_of("results/**/*.*")
    assert clone.git("status", "--porcelain") == ""


def test_a_colleague_who_changes_a_value_runs_its_jobs_alone(clone: Study):
    clone.change(methods=WARMER)
    assert clone.planned() == Counter(ONE_RUN)


def test_results_of_unknown_origin_are_refused_and_dvc_heals_them(recorded: Study):
    recorded.run(["rm", "-r", ".snakemake"])
    recorded.snakemake()
    assert recorded.executed() == {}, "the results say how they were made"
    recorded.run(["rm", "-r", ".snakemake"])
    for path in recorded.path.glob("results/**/*.provenance.json"):
        path.unlink()
    said = recorded.snakemake(status=2)
    assert "no records of how it was made" in said
    assert "dvc checkout" in said
    assert "Traceback" not in said
    recorded.dvc("checkout")
    recorded.snakemake()
    assert recorded.executed() == {}


def test_files_of_other_values_are_not_recorded_under_these(recorded: Study, clone: Study):
    recorded.change(methods=WARMER)
    recorded.snakemake()
    folder = f"results/{min(KD)}"
    for path in (clone.path / folder).iterdir():
        (recorded.path / folder / path.name).write_bytes(path.read_bytes())
        os.utime(recorded.path / folder / path.name, (0, 0))
    recorded.run(["python", "-m", "kdsteps", "resolve"])
    said = recorded.run(["python", "-m", "kdsteps", "verify", "distil"], status=2)
    assert re.search(r"kd/0/student.safetensors: was made with options.temperature: 4.0", said)
    recorded.executed()
    recorded.dvc("repro")
    assert set(recorded.executed()) & KD, "Snakemake notices it, too"


def test_after_an_interrupted_pull_the_rest_is_pulled_rather_than_computed(clone: Study):
    for path in list(clone.path.glob("results/distil/**/*.*"))[::2]:
        path.unlink()
    said = clone.snakemake("--dry-run")
    assert re.search(r"results/distil: has \d+ of the \d+ files .*dvc.lock.*`dvc pull`", said)
    assert said.strip().splitlines()[-1].startswith("results/distil: has"), "below the plan"
    clone.dvc("pull")
    assert clone.planned() == {}


LAST_FILES = {  # that a job of each rule writes
    "prepare": "results/prepare/digits/digest.json",
    "train": "results/train/digits/big/digest.json",
    "train_check": "results/train/digits/big/check.json",
    "cache": "results/cache/digits/big/digest.json",
    "cache_outputs": "results/cache/digits/big/outputs_plain_batch256.json",
    "score": "results/score/digits/big/scores.parquet",
    "build": "results/build/pair/feature_only/plan.json",
    "distil": "results/distil/pair/kd/0/digest.json",
    "evaluate": "results/evaluate/students/pair/kd/0/predictions.parquet",
    "evaluate_latency": "results/evaluate/latency/pair/latency.json",
    "report": "results/report/metrics.json",
}
KILLER = '''
"""Kill this process and all around it when a certain file is written but not yet in its place."""
import os, signal
_replace = os.replace
def replace(source, target, **options):
    if str(target).endswith(os.environ["KILL_AT"]):
        os.killpg(0, signal.SIGKILL)
    _replace(source, target, **options)
os.replace = replace
'''


@pytest.mark.parametrize("rule", LAST_FILES)
def test_a_run_killed_while_a_job_writes_goes_on_to_the_same_files(
    built: Study, study: Study, tmp_path: Path, rule: str
):
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    file = LAST_FILES[rule]
    described = parse_study(built.params())
    jobs = [graph.outputs(rule, names).values() for names in graph.jobs(described, rule)]
    (outputs,) = (list(paths) for paths in jobs if file in paths)
    study.run(["rm", "-r", "-f", ".jobcache", *outputs])
    victim = study.start(file, KILL_AT=file, PYTHONPATH=str(tmp_path))
    assert victim.wait(120) == -signal.SIGKILL
    assert not (study.path / file).exists(), "what was being written has no name yet"
    study.snakemake(file)
    assert len(study.executed()) == 1, "what the dead run had written of the job is not relied on"
    for path in outputs:
        ours, theirs = ((s.path / path).read_bytes() for s in (study, built))
        assert Path(path).suffix not in (".npy", ".safetensors") or ours == theirs
        # the others hold seconds and milliseconds


def test_a_study_that_probes_the_images_it_trains_on_is_complete_after_a_run(study: Study):
    study.change(methods={"labels": {}}, probe={"dataset": "digits"})
    study.snakemake()
    probes = {"evaluate/probes/students/pair/labels/0", "evaluate/probes/untrained/pair/0"}
    assert probes <= set(study.executed())
    assert study.planned() == Counter()


BROKEN = """
from kdsteps.errors import KdstepsError
from kdsteps.methods.kd import KD


class Broken(KD):
    def terms(self, batch):
        raise KdstepsError("this method is broken; repair it")
"""


def test_one_failing_job_leaves_the_others_running_and_shows_the_end_of_its_log(study: Study):
    (study.path / "broken.py").write_text(BROKEN)
    broken = {"method": "./broken.py:Broken"}
    study.change(methods={"labels": {}, "broken": broken, "fitnet": {}})
    said = study.snakemake(status=1)
    done = set(study.executed())
    assert {
        "distil/pair/broken/0",
        "distil/pair/fitnet/0",
        "evaluate/students/pair/fitnet/0",
    } == done
    assert "log: logs/distil/pair/broken/0.txt" in said
    log = (study.path / "logs/distil/pair/broken/0.txt").read_text().splitlines()
    assert log[-1] in said
    assert log[-1] == "kdsteps distil: this method is broken; repair it"
    assert said.rstrip().endswith("distil pair broken 0 failed: this method is broken; repair it")
    assert "Traceback" not in said


@contextmanager
def endless_run(study: Study) -> Iterator[subprocess.Popen[Any]]:
    """A run whose student trains until it is stopped."""
    study.change(methods={"labels": {"distil": {"epochs": 10**6}}})
    run = study.start()
    try:
        log = study.path / "logs/distil/pair/labels/0.txt"
        while not log.exists() or f"of {10**6}" not in log.read_text():
            assert run.poll() is None
            time.sleep(0.1)
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


SECOND = [  # what a user may start while a run goes on
    "snakemake --cores 2",
    "snakemake prepare_all --cores 2",
    "snakemake --dry-run",
    "python -m kdsteps prepare --dataset digits",
    "python -m kdsteps accept",
    "dvc repro",
]


def test_whatever_is_started_during_a_run_says_so_and_ends(study: Study):
    with endless_run(study) as run:
        for command in SECOND:
            status, said = study.attempt(command.split())
            assert status == (255 if command.startswith("dvc") else 2)  # which is DVC's own
            assert f"another run is using this folder (process {run.pid} since" in said, command
            assert "--unlock" not in said and "Traceback" not in said
            assert run.poll() is None
    study.change(methods={"labels": {}})
    study.executed()
    study.snakemake()  # nobody has to unlock what the dead have locked
    assert "distil/pair/labels/0" in study.executed()


def test_jobs_of_a_killed_run_end_and_the_next_run_has_its_own_results(study: Study):
    """Of a run, only the main process is killed: at 9ae8822 an old job wrote its result later."""
    with endless_run(study) as run:
        run.kill()
        run.wait()
        study.executed()
        study.change(methods={"labels": {}})
        study.snakemake()
    made = study.path / "results/distil/pair/labels/0/student.provenance.json"
    assert json.loads(made.read_text())["settings"]["distil"]["epochs"] == 1
    assert study.planned() == {}


DAMAGED = [
    "results/prepare/digits/images.npy",
    "results/prepare/digits/index.parquet",
    "results/train/digits/big/teacher.safetensors",
    "results/distil/pair/kd/0/student.safetensors",
    "results/distil/pair/kd/0/history.parquet",
    "results/evaluate/students/pair/kd/0/measures.json",
    "results/evaluate/students/pair/kd/0/predictions.parquet",
    "results/score/digits/big/scores.parquet",
    "results/build/pair/feature_only/plan.json",
]


def test_damage_is_named_and_running_again_heals_it(built: Study, study: Study):
    """One bit of each file flips while its reader has to run; nothing else is known of it."""
    random_ = random.Random(0)
    for name in DAMAGED:
        path = study.path / name
        content = bytearray(path.read_bytes())
        content[random_.randrange(len(content) // 2, len(content))] ^= 1
        path.write_bytes(content)
        os.utime(path, (0, 0))  # no newer than its reader's result: nothing is planned
    study.run(["rm", "-r", "results/report", "results/evaluate/students/pair/labels"])
    command = ["snakemake", "--cores", "2", "--resources", "gpu=1"]
    for _ in DAMAGED:
        status, said = study.attempt(command)
        assert "Traceback" not in said
        if status == 0:
            break
        assert "snakemake makes the file again" in said
    assert study.planned() == {}
    for pattern in ("results/prepare/**/images.npy", "results/**/*.safetensors"):
        assert study.bytes_of(pattern) == built.bytes_of(pattern)
    assert not list(study.path.glob("results/**/*.damaged"))
    study.run(["python", "-m", "kdsteps", "verify", *graph.STAGES])


def test_a_study_next_to_a_read_only_clone_needs_no_home(tmp_path: Path):
    clone = Study.new(tmp_path / "clone").path
    study, home = tmp_path / "study", tmp_path / "home"
    study.mkdir()
    home.mkdir()
    (study / "params.yaml").write_text(yaml.safe_dump(TINY | {"methods": {"labels": {}}}))
    for path in (home, clone, *clone.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    # A superuser may write everywhere unless this capability is taken away.
    command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    command = command if os.geteuid() == 0 else []
    profile = f"{clone}/profiles/default"
    command += ["snakemake", "-s", f"{clone}/Snakefile", "--workflow-profile", profile]
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    Study(study).run([*command, "--cores", "2"], PYTHONPATH=str(clone), **places)
    assert (study / "results/report/index.html").is_file()
    for path in (clone, *clone.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)  # so that it can be deleted


def test_settings_that_cannot_be_end_snakemake_with_one_sentence(study: Study):
    study.change(distil={"epochs": -1})
    said = study.snakemake(status=2).strip().splitlines()
    assert said[-1].startswith("params.yaml: distil.epochs is -1;")
    assert not any("Traceback" in line or "Error" in line for line in said)
    study.change(distil=TINY["distil"])
    said = study.snakemake("--config", "seeds=3", status=2).strip().splitlines()
    assert said[-1] == "--config: seeds would have no effect; change the values in params.yaml"
