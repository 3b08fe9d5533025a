"""The command `kdsteps`: what it asks for, what it tells, and how it ends."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _commands import DATA, STUDY, TEACHER, command, files_in, write_study

from kdsteps.cli.calls import call_of
from kdsteps.cli.commands import COMMANDS
from kdsteps.cli.main import main
from kdsteps.jobs import graph
from kdsteps.study.entries import Pair, Params
from kdsteps.study.loading import load_study, parse_study
from kdsteps.study.settings import Export

Said = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the command runs: a folder with a study and nothing made yet."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDSTEPS_JOB_CACHE", raising=False)
    yield tmp_path
    logging.captureWarnings(False)  # as it was before `main`


@pytest.fixture
def refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command that must end with 2, whether by us or by argparse; gives its sentence."""

    def run(*arguments: str) -> str:
        before = files_in(folder)
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        assert (status, said.out, said.err.count("\n")) == (2, "", 1)
        assert files_in(folder) == before
        return said.err.removesuffix("\n")

    return run


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that `prepare` is given, which then writes empty files instead of working."""
    seen: list[Any] = []
    monkeypatch.setattr("kdsteps.stages.prepare.run", lambda job: seen.append(job) or empty(job))
    return seen


def empty(job: Any) -> None:
    """Write every output of a job but its digests, which the command itself writes."""
    for path in (path for name, path in job.outputs.items() if name != "digest"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def settings() -> str:
    return graph.settings_text(parse_study(STUDY), "prepare", {"dataset": "digits"})


# mistakes on the command line


@pytest.mark.parametrize(
    ("arguments", "place", "remedy"),
    [
        (["distill"], "kdsteps: there is no command 'distill'", "did you mean 'distil'?"),
        ([], "kdsteps: missing: command", "`kdsteps --help`"),
        (
            ["prepare", "--frob", "1"],
            "kdsteps prepare: there is no option --frob;",
            "`kdsteps prepare --help`",
        ),
        (["check", "frob"], "kdsteps check: unexpected argument frob", "`kdsteps check --help`"),
        (["train"], "kdsteps train: --dataset and --teacher are missing", "which job"),
        (
            ["distil", "--pair", "pair", "--method", "kd"],
            "kdsteps distil: --seed is missing",
            "which job",
        ),
        (
            ["distil", "--pair", "pairr", "--method", "kd", "--seed", "0"],
            "kdsteps distil: --pair: this study has no distil job for 'pairr'",
            "did you mean 'pair'?",
        ),
        (
            ["distil", "--pair", "pair", "--method", "kdd", "--seed", "0"],
            "kdsteps distil: --method: this study has no distil job for 'kdd'",
            "did you mean 'kd'?",
        ),
        (
            ["train", *TEACHER, "--pair", "pair"],
            "kdsteps train: --pair: not an option of this job",
            "--dataset and --teacher",
        ),
        (
            ["prepare", *DATA, "--threads", "many"],
            "kdsteps prepare: --threads: is 'many'",
            "a whole number",
        ),
        (
            ["train", *TEACHER, "--gpus", "-1"],
            "kdsteps train: --gpus: is '-1'",
            "a whole number",
        ),
        (["check", "--cores", "0"], "kdsteps check: --cores: is '0'", "from 1"),
        (["status", "--cores", "0"], "kdsteps status: --cores: is '0'", "from 1"),
        (["prepare", "--settings", "{"], "kdsteps prepare: --settings: is not JSON (", "quote it"),
        (
            ["prepare", "--settings", "[1]"],
            "kdsteps prepare: --settings: is [1]",
            "`key: value` entries",
        ),
        (
            ["prepare", "--settings", "{}"],
            "kdsteps prepare: --settings: kind is missing",
            "(and 2 more)",
        ),
        (
            ["train", "--settings", '{"model": {}, "train": {"epochs": -1}}'],
            "kdsteps train: --settings: model.family is missing",
            "(and 2 more)",
        ),
        (
            ["prepare", "--settings", settings()],
            "kdsteps prepare: --outputs: 'images' is missing",
            "`--help`",
        ),
        (
            ["prepare", "--settings", settings(), "--outputs", "images"],
            "kdsteps prepare: --outputs: 'images'",
            "NAME=PATH",
        ),
        (
            ["prepare", "--settings", settings(), "--inputs", "images=nowhere.npy"],
            "kdsteps prepare: nowhere.npy: not found (input 'images')",
            "snakemake",
        ),
        (
            ["prepare", *DATA, "--params", "nowhere.yaml"],
            "kdsteps prepare: nowhere.yaml: not found",
            "`kdsteps init`",
        ),
        (
            ["train", *TEACHER],
            "kdsteps train: results/prepare/digits/images.npy: not found",
            "snakemake",
        ),
        (
            ["verify", "prepare"],
            "kdsteps verify: results/prepare/digits/images.npy: not found",
            "snakemake",
        ),
        (["verify", "prepar"], "kdsteps verify: stage: invalid choice: 'prepar'", "prepare"),
        (
            ["resolve", "--params", "nowhere.yaml"],
            "kdsteps resolve: nowhere.yaml: not found",
            "`kdsteps init`",
        ),
        (
            ["layers", "bigg"],
            "kdsteps layers: params.yaml: 'bigg' is not under models",
            "did you mean 'big'?",
        ),
        (
            ["layers", "vgh:"],
            "kdsteps layers: vgh:.family: there is no model family 'vgh'",
            "did you mean 'vgg'?",
        ),
        (
            ["layers", "cifar_resnet:x"],
            "kdsteps layers: cifar_resnet:x: name is an unknown key",
            "depth, widths",
        ),
        (["layers", "big", "--image", "3,32"], "kdsteps layers: --image: '3,32'", "3,32,32"),
        (
            ["layers", "big", "--image", "3,0,32"],
            "kdsteps layers: --image: '3,0,32' has a 0",
            "above 0",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(refusal, arguments, place, remedy):
    found = refusal(*arguments)
    assert found.startswith(place)
    assert remedy in found.removeprefix(place)


# what a job is given


def test_a_job_by_name_is_the_job_by_file(folder, jobs):
    assert main(["prepare", *DATA, "--threads", "1", "--gpus", "0"]) == 0
    outputs = graph.outputs("prepare", {"dataset": "digits"})
    named = [f"{name}={path}" for name, path in outputs.items()]
    arguments = ["--settings", settings(), "--outputs", *named, "--threads", "1", "--gpus", "0"]
    assert main(["prepare", *arguments]) == 0
    by_name, by_file = jobs
    assert by_name == by_file


def test_a_name_that_comes_again_gives_a_list_for_the_report(monkeypatch):
    jobs: list[Any] = []
    monkeypatch.setattr("kdsteps.stages.report.run", lambda job: jobs.append(job) or empty(job))
    Path("a").touch()
    Path("b").touch()
    text = graph.settings_text(parse_study(STUDY), "report", {})
    given = ["--inputs", "layer_scores=a", "layer_scores=b", "plans=a", "--outputs", "page=c"]
    assert main(["report", "--settings", text, *given]) == 0
    assert jobs[0].lists == {"layer_scores": [Path("a"), Path("b")], "plans": [Path("a")]}


def test_no_input_stays_newer_than_the_result(monkeypatch):
    """Snakemake would delete the result, if a clock was ahead when the input was written."""
    monkeypatch.setattr("kdsteps.stages.report.run", empty)
    ahead = time.time() + 3600
    for name in ("a", "b"):
        Path(name).touch()
    os.utime("b", (ahead, ahead))
    text = graph.settings_text(parse_study(STUDY), "report", {})
    given = ["--inputs", "layer_scores=a", "layer_scores=b", "--outputs", "page=c"]
    assert main(["report", "--settings", text, *given]) == 0
    times = [Path(name).stat().st_mtime for name in ("a", "b", "c")]
    assert max(times) == times[2] < ahead


def test_no_job_gets_more_threads_than_there_are_cores(jobs):
    assert main(["prepare", *DATA, "--threads", "4096"]) == 0
    assert jobs[0].threads <= (os.cpu_count() or 1)


# how it ends


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_anywhere_is_a_sentence(refusal, monkeypatch, code):
    def full(job: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("kdsteps.stages.prepare.run", full)
    assert refusal("prepare", *DATA) == (
        "kdsteps prepare: the disk is full; free some space and run again (finished results are "
        "safe)"
    )


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch):
    def broken(job: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("kdsteps.stages.prepare.run", broken)
    with pytest.raises(OSError, match="Input/output error"):
        main(["prepare", *DATA])


def test_an_interrupt_ends_without_traceback(monkeypatch, capsys):
    def interrupted(job: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdsteps.stages.prepare.run", interrupted)
    assert main(["prepare", *DATA]) == 130
    assert capsys.readouterr().err == "kdsteps prepare: stopped\n"


def test_an_interrupt_during_imports_has_no_traceback():
    code = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "pydantic":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["kdsteps", "resolve"]
runpy.run_module("kdsteps", run_name="__main__", alter_sys=True)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")


def test_an_interrupt_that_a_library_swallows_has_no_traceback():
    """As torch does where it imports numpy; what is half imported then fails later."""
    code = """
import os, runpy, signal, sys, time

class Swallow:
    def find_spec(self, name, *_):
        if name == "kdsteps.models.listing":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                raise AttributeError("half imported")

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Swallow())
sys.argv = ["kdsteps", "layers", "timm:resnet18"]
runpy.run_module("kdsteps", run_name="__main__", alter_sys=True)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "kdsteps layers: stopped\n")


def test_a_missing_package_ends_in_one_sentence(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert refusal("status") == "kdsteps status: yaml is not installed; run `pip install kdsteps`"


def test_a_package_that_the_users_code_lacks_keeps_its_traceback(monkeypatch):
    def run(job: Any) -> None:
        import lacking  # noqa: F401

    monkeypatch.setattr("kdsteps.stages.prepare.run", run)
    with pytest.raises(ModuleNotFoundError):
        main(["prepare", *DATA])


def test_the_end_of_a_process_is_skipped_only_after_success_and_loses_no_output():
    code = """
import os, runpy, sys

class Last:
    write = staticmethod(os.write)
    def __del__(self):
        self.write(2, b"taken apart")

last = Last()
runpy.run_module("kdsteps", run_name="__main__", alter_sys=True)
"""

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    ended, failed = ran("schema"), ran("lock")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)
    assert failed.returncode == 2
    assert failed.stderr.endswith("taken apart")


# what it tells


@pytest.mark.parametrize("stage", graph.STAGES)
def test_the_help_of_a_stage_tells_its_files(capsys, stage):
    with pytest.raises(SystemExit) as ended:
        main([stage, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    rules = [rule for rule in graph.OUTPUTS if graph.stage_of(rule) == stage]
    for name in (name for rule in rules for name in graph.OUTPUTS[rule]):
        assert name in text


@pytest.mark.parametrize("stage", graph.STAGES)
def test_the_help_of_a_stage_describes_every_key_of_its_section(capsys, stage):
    with pytest.raises(SystemExit):
        main([stage, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    section = type(Params.model_fields[stage].default or Export())
    for name, info in section.model_fields.items():
        assert info.description
        shown = f" {name}: {json.dumps(info.default)} ("
        assert shown in text, shown
        assert " ".join(info.description.split()) in text


@pytest.mark.parametrize("stage", ["build", "tune", "distil"])
def test_the_help_of_stages_of_pairs_describes_every_key_of_a_pair(capsys, stage):
    with pytest.raises(SystemExit):
        main([stage, "--help"])
    text = " ".join(capsys.readouterr().out.split("each entry of the section `pairs`")[1].split())
    assert text.index(" teacher: ") < text.index(" combine: ")
    assert ' combine: "mean" (mean | median | confidence)' in text
    assert " distil: null (keys of the section `distil`)" in text
    for name, info in Pair.model_fields.items():
        assert f" {name}: " in text
        assert " ".join((info.description or "nothing").split()) in text


def test_the_help_says_where_the_names_of_a_job_come_from(capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--trial TRIAL the number of a trial, from 1 " in text
    assert "--seed SEED one of `seeds`; of a trial, one of `tune.seeds` " in text


def test_the_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {name} " in text for name in COMMANDS)


@pytest.mark.parametrize(
    "code",
    [
        "from kdsteps.cli.main import main; atexit.register(show); main(['--help'])",
        "import kdsteps.jobs.starting; show()",
    ],
    ids=["commands", "planning"],
)
def test_commands_and_planning_begin_without_large_libraries(code):
    """Every job and every start of Snakemake would wait for them."""
    large = {"torch", "numpy", "pandas", "pyarrow", "scipy", "PIL", "onnxruntime", "rich"}
    assert not large & modules_of(code)


def test_a_command_begins_without_the_modules_of_others():
    """Every job would wait for them, and `predict` runs where most packages are not installed."""
    begin = "from kdsteps.cli.main import main; atexit.register(show); main([{!r}, '--help'])"
    shown = modules_of(begin.format("distil"))
    assert "kdsteps.cli.stages" in shown
    assert not {"kdsteps.cli.check", "kdsteps.cli.init", "kdsteps.cli.status"} & shown
    alone = modules_of(begin.format("predict"))
    assert {name for name in alone if name.startswith("kdsteps.cli.")} == {
        f"kdsteps.cli.{name}" for name in ("commands", "main", "predict", "whole_numbers")
    }
    assert not {"pydantic", "yaml"} & alone


def modules_of(code: str) -> set[str]:
    """The modules that a program has imported where it calls `show`."""
    begin = "import atexit, sys\nshow = lambda: print('', *sys.modules, sep='\\n')\n"
    command = [sys.executable, "-c", begin + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def test_help_comes_without_torch(folder):
    (folder / "torch.py").write_text("raise RuntimeError('torch was imported')")
    environment = {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[1])])}
    done = command(folder, "distil", "--help", environment=environment)
    assert done.returncode == 0, done.stderr
    assert "student.safetensors" in done.stdout


def test_layers_of_the_users_own_code_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes: int, in_channels: int, width: int = 4):\n"
        "    first, second = nn.Conv2d(in_channels, width, 3), nn.Conv2d(width, 6, 3)\n"
        "    end = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)\n"
        "    return nn.Sequential(first, nn.ReLU(), second, *end)\n"
    )
    assert main(["layers", "./net.py:net"]) == 0
    assert "for images of 3 x 32 x 32; set --image to the shape" in capsys.readouterr().out
    assert main(["layers", "./net.py:net", "--image", "1,8,8", "--classes", "3"]) == 0
    listed = capsys.readouterr().out
    assert "4 x 6 x 6" in listed and "6 x 4 x 4" in listed and "head" in listed


@pytest.mark.parametrize("shape", [[], ["--image", "1,8,8"]], ids=["of the study", "given"])
def test_layers_are_listed_with_shapes_and_costs(capsys, shape):
    assert main(["layers", "big", *shape]) == 0
    text = capsys.readouterr().out
    assert "layer3.0" in text
    assert "2 x 2 x 2" in text  # 2 channels; the 8 x 8 pixels halved twice
    assert ("for images of 1 x 8 x 8, as in the data set digits" in text) == (not shape)


@pytest.mark.parametrize("command", ["schema", "jobcache"])  # more than a pipe takes, and one line
def test_a_reader_that_stops_early_is_no_error(command):
    root = Path(__file__).parents[1]
    program = [sys.executable, "-m", "kdsteps", command]
    with subprocess.Popen(program, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as it:
        assert it.stdout is not None and it.stderr is not None
        it.stdout.close()
        assert it.stderr.read() == b""
        assert it.wait(timeout=60) == 0


def test_a_dataset_is_prepared_with_the_digests_of_its_files(folder):
    assert main(["prepare", *DATA]) == 0
    made = {file.name: file for file in (folder / "results/prepare/digits").iterdir()}
    summary = json.loads(made["summary.json"].read_text())
    assert sum(summary["images"].values()) == 1797
    digests = json.loads(made.pop("digest.json").read_text())
    del made["images.provenance.json"]
    assert digests == {
        name: hashlib.blake2b(file.read_bytes(), digest_size=20).hexdigest()
        for name, file in made.items()
    }
    assert not list(folder.rglob("*.part"))


def resolved(folder: Path, **sections: Any) -> dict[str, bytes]:
    """What `kdsteps resolve` writes for the small study with some sections replaced."""
    write_study(folder, **sections)
    assert main(["resolve"]) == 0
    return files_in(folder / "results/settings")


def test_resolve_writes_what_each_job_of_each_stage_reads(folder):
    files = resolved(folder)
    assert set(files) == {f"{stage}.json" for stage in graph.STAGES}
    study = parse_study(STUDY)
    jobs = json.loads(files["distil.json"])["jobs"]
    assert len(jobs) == len(graph.jobs(study, "distil"))
    names = {"pair": "pair", "method": "kd", "seed": "1"}
    found = jobs["distil pair kd 1"]
    assert found["settings"] == json.loads(graph.settings_text(study, "distil", names))
    assert found["code"]


def test_resolve_gives_the_same_for_a_section_left_out_and_its_defaults_written_out(folder):
    left_out = resolved(folder)
    params = parse_study(STUDY).params
    off = {"probe", "loggers"}  # by default
    names = (params.model_fields_set ^ type(params).model_fields.keys()) - off
    assert {"prepare", "score"} <= names
    written = {name: getattr(params, name).model_dump(mode="json") for name in names - {"export"}}
    assert resolved(folder, **written) == left_out
    assert resolved(folder, **written | {"score": {"num_layers": 2}}) != left_out


def test_a_changed_value_changes_the_resolved_settings_of_its_stages_alone(folder):
    before = resolved(folder)
    after = resolved(folder, methods=STUDY["methods"] | {"kd": {"temperature": 2.0}})
    differing = {name for name in before if before[name] != after[name]}
    assert differing == {"distil.json", "report.json"}


def results_in(folder: Path) -> dict[str, bytes]:
    """The results, without the times in what says how they were made."""
    found = files_in(folder / "results")
    return {name: text for name, text in found.items() if "provenance" not in name}


def test_results_made_before_are_taken_from_the_job_cache(folder, monkeypatch):
    assert main(["prepare", *DATA]) == 0
    assert main(["train", *TEACHER]) == 0
    first = results_in(folder)
    shutil.rmtree(folder / "results/train")
    monkeypatch.setattr("kdsteps.stages.train.run", lambda job: pytest.fail("it trained again"))
    assert main(["train", *TEACHER]) == 0
    assert results_in(folder) == first


def test_a_report_by_hand_lists_methods_as_one_by_snakemake_does(folder):
    """Their order decides which of two methods with equal accuracy comes first."""
    by_hand = call_of(load_study(), "report", {})
    settings = json.loads(by_hand.settings.as_text())["study"]  # as in the option --settings
    by_snakemake = graph.inputs(parse_study(settings), "report", {})
    assert [str(path) for path in by_hand.lists["measures"]] == by_snakemake["measures"]
