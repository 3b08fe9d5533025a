"""The workflow as text: rules, stages and files agree, and the tools find nothing to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from _study import REPOSITORY, Study, clean_environment

from kdsteps.jobs import graph
from kdsteps.jobs.provenance import provenance_file
from kdsteps.study.loading import load_study

STAGES: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
FILES = (
    "Snakefile",
    "workflow/Snakefile",
    *(f"workflow/rules/{n}.smk" for n in ("common", "teacher", "student", "tune", "export")),
    *(f"workflow/rules/{n}.smk" for n in ("probe", "report")),
)


def run(*command: str, folder: Path = REPOSITORY) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone with the params.yaml that is shipped."""
    shipped = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    return Study.new(tmp_path_factory.mktemp("workflow") / "study", shipped).path


def paths_of(entries: list[Any]) -> set[str]:
    """The paths of outs, metrics or plots, with or without flags behind them."""
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def outs_of(stage: str) -> set[str]:
    kinds = ("outs", "metrics", "plots")
    return {path for kind in kinds for path in paths_of(STAGES[stage].get(kind, []))}


def test_rules_are_formatted():
    run("snakefmt", "--check", *FILES)


def test_the_linter_asks_for_environments_of_single_rules_and_for_nothing_else(fresh: Path):
    """All rules share the environment that `make` sets up from one lock."""
    command = ["snakemake", "--lint"]
    done = subprocess.run(
        command,
        cwd=fresh,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    said = set(re.findall(r"^ +\* (.*)$", done.stdout + done.stderr, flags=re.MULTILINE))
    assert said == {"Specify a conda environment or container for each rule.:"}


def test_the_shipped_study_plans_every_job(fresh: Path):
    said = run("snakemake", "--dry-run", "--cores", "4", "--resources", "gpu=1", folder=fresh)
    rows = dict(re.findall(r"^(\w+) +(\d+)$", said, flags=re.MULTILINE))
    study = load_study(fresh / "params.yaml")
    for rule in graph.OUTPUTS:
        assert int(rows.get(rule, 0)) == len(graph.jobs(study, rule)), rule


def test_dvc_reads_its_stages_in_the_order_of_the_pipeline(fresh: Path):
    assert tuple(STAGES) == ("resolve", *graph.STAGES)
    run("dvc", "dag", folder=fresh)


def test_dvc_keeps_every_file_of_every_stage_and_what_it_was_made_from():
    for rule, outputs in graph.OUTPUTS.items():
        kept = outs_of(graph.stage_of(rule))
        for path in outputs.values():
            assert any(path == out or path.startswith(f"{out}/") for out in kept), path
        made = str(provenance_file(outputs))
        assert any(made == out or made.startswith(f"{out}/") for out in kept), made


def test_dvc_leaves_finished_jobs_in_place():
    for stage in graph.STAGES:
        for kind in ("outs", "metrics", "plots"):
            for out in STAGES[stage].get(kind, []):
                assert next(iter(out.values()))["persist"] is True, (stage, out)


def test_dvc_follows_what_the_jobs_of_a_stage_read():
    study = load_study(REPOSITORY / "params.yaml")
    for rule in graph.OUTPUTS:
        stage = graph.stage_of(rule)
        for names in graph.jobs(study, rule):
            inputs = graph.inputs(study, rule, names).values()
            for path in (
                p for given in inputs for p in (given if isinstance(given, list) else [given])
            ):
                folder = "/".join(Path(path).parts[:2])
                assert folder in STAGES[stage]["deps"] or folder == f"results/{stage}", (
                    stage,
                    path,
                )


def test_each_stage_follows_the_settings_of_its_jobs_and_these_follow_params_and_code():
    files = {stage: f"results/settings/{stage}.json" for stage in graph.STAGES}
    resolve = STAGES["resolve"]
    assert resolve["cmd"] == "python -m kdsteps resolve"
    assert resolve["deps"] == ["kdsteps"]
    assert resolve["params"] == [{"params.yaml": None}]  # as a whole
    assert resolve["outs"] == list(files.values())
    for stage, file in files.items():
        followed = [dep for dep in STAGES[stage]["deps"] if dep.startswith("results/settings")]
        assert followed == [file]
        assert "params" not in STAGES[stage]


def test_every_stage_is_verified_and_made_by_snakemake():
    for stage in graph.STAGES:
        entry = STAGES[stage]
        target = "" if stage == "report" else f" {stage}_all"
        made = f"snakemake{target} $SNAKEMAKE_ARGS"
        assert entry["cmd"] == f'python -m kdsteps verify {stage} --make "{made}"'
        assert {"Snakefile", "workflow"} <= set(entry["deps"])


def test_git_has_what_is_compared_from_commit_to_commit_and_dvc_the_rest(fresh: Path):
    report = [*STAGES["report"]["outs"], *STAGES["report"]["metrics"]]
    assert {"results/report/metrics.json", "results/report/plots/accuracy.csv"} <= {
        path for out in report for path, flags in out.items() if flags.get("cache") is False
    }
    for out in report:
        ((path, flags),) = out.items()
        assert ignored(fresh, path) == flags.get("cache", True), path
    assert ignored(fresh, "results/distil/pair/kd/0/student.safetensors")


def ignored(folder: Path, path: str) -> bool:
    command = ["git", "check-ignore", "--quiet", path]
    return subprocess.run(command, cwd=folder, check=False).returncode == 0


def test_profiles_agree_on_what_decides_whether_a_job_runs_again():
    default, *others = (
        yaml.safe_load((REPOSITORY / f"profiles/{name}/config.yaml").read_text())
        for name in ("default", "slurm", "kubernetes")
    )
    for key in ("rerun-triggers", "max-checksum-file-size", "rerun-incomplete", "keep-going"):
        assert [other[key] for other in others] == [default[key]] * len(others), key


def test_a_clone_runs_its_own_code_and_not_the_installed_one(fresh: Path):
    (fresh / "kdsteps/cli/schema.py").write_text("raise SystemExit('run by the clone')\n")
    done = subprocess.run(
        [sys.executable, "-m", "kdsteps", "schema"],
        cwd=fresh,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "run by the clone\n"
    (fresh / "kdsteps/errors.py").write_text("raise SystemExit('parsed by the clone')\n")
    done = subprocess.run(
        ["snakemake", "--dry-run"],
        cwd=fresh,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "parsed by the clone" in done.stderr
