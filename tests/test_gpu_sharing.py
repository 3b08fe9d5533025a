"""How the jobs of a run share GPUs and cores: in numbers, and with the real snakemake."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from _fake_cuda import number_of
from _machines import REPOSITORY, Machine, fake_machine

from kdsteps.data.device_memory import allowed_bytes, free_bytes
from kdsteps.errors import KdstepsError
from kdsteps.jobs import resources
from kdsteps.jobs.resources import Sharing

CARD = "NVIDIA H100 80GB HBM3"

SNAKEFILE = f"""
include: "{REPOSITORY}/workflow/rules/common.smk"

rule all:
    input:
        expand("out/small_{{number}}", number=range(6)),
        expand("out/large_{{number}}", number=range(2)),

rule small:
    output:
        "out/small_{{number}}",
    threads: sharing.cores_of_one_of_many
    resources:
        gpu=gpu_claim,
        gpu_slots=1,
        jobs_per_gpu=sharing.jobs_per_gpu,
        cores=cores_used,
    shell:
        "python job.py {{output}} {{threads}} {{resources.gpu}} {{resources.jobs_per_gpu}}"

rule large:
    output:
        "out/large_{{number}}",
    threads: sharing.cores_per_gpu
    resources:
        gpu=gpu_claim,
        gpu_slots=sharing.jobs_per_gpu,
        cores=cores_used,
    shell:
        "python job.py {{output}} {{threads}} {{resources.gpu}} 1"
"""

JOB = """
import json, os, sys, time
from pathlib import Path
from kdsteps.jobs.gpu_slots import given_gpus

path, threads, gpus, jobs_per_gpu = sys.argv[1:]
asked = time.time()
with given_gpus(int(gpus), int(jobs_per_gpu)):
    began = time.time()
    time.sleep(0.5)
    job = {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "began": began, "ended": time.time()}
job |= {"waited": began - asked, "threads": int(threads), "name": Path(path).name}
Path(path).write_text(json.dumps(job))
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return fake_machine(monkeypatch, tmp_path)


def snakemake(
    machine: Machine, folder: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run small and large jobs; what happened, and what each job was given, and when."""
    folder.mkdir(exist_ok=True)
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "job.py").write_text(JOB)
    done = subprocess.run(
        ["snakemake", "--scheduler", "greedy", *arguments],
        cwd=folder,
        env=machine.environment(folder / "site"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done, [json.loads(path.read_text()) for path in sorted(folder.glob("out/*"))]


def at_once(jobs: list[dict[str, Any]]) -> int:
    """The largest number of jobs that ran at the same time."""
    return max(sum(a["began"] <= b["began"] < a["ended"] for a in jobs) for b in jobs)


# numbers


def test_cores_are_divided_among_the_jobs_that_run_at_the_same_time():
    alone, shared = Sharing(16, 2, 1), Sharing(16, 2, 4)
    assert (alone.slots, alone.cores_per_gpu, alone.cores_of_one_of_many) == (2, 8, 8)
    assert (shared.slots, shared.cores_per_gpu, shared.cores_of_one_of_many) == (8, 8, 2)
    assert Sharing(16, 1, 1).cores_of_one_of_many == 16


def test_a_job_has_at_least_one_core():
    assert Sharing(4, 8, 8).cores_of_one_of_many == Sharing(4, 8, 8).cores_per_gpu == 1


def test_without_a_gpu_there_is_one_job_per_real_core(monkeypatch):
    monkeypatch.setattr(resources, "cores_there", lambda: 8)
    assert Sharing(8, 0, 4).cores_of_one_of_many == 1
    assert Sharing(32, 0, 1).cores_of_one_of_many == 4
    assert Sharing(8, 0, 4).cores_per_gpu == 8


@pytest.mark.parametrize("given", [0, 33])
def test_jobs_per_gpu_out_of_range_is_refused(given):
    with pytest.raises(KdstepsError, match=rf"jobs_per_gpu is {given}; .* from 1 to 32"):
        Sharing(4, 1, given)


def test_what_a_job_stores_on_a_shared_gpu_fits_its_fraction_and_what_is_free(monkeypatch):
    gpu, gib = torch.device("cuda"), 1 << 30
    used = {"allocated": 5 * gib, "free": 60 * gib}
    properties = SimpleNamespace(total_memory=80 * gib)
    fake = {
        "get_device_properties": lambda device: properties,
        "get_per_process_memory_fraction": lambda device=None: (number_of(device), 0.25)[1],
        "memory_allocated": lambda device: used["allocated"],
        "mem_get_info": lambda device: (used["free"], 80 * gib),
    }
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert (allowed_bytes(gpu), free_bytes(gpu)) == (20 * gib, 15 * gib)
    used["free"] = 2 * gib
    assert free_bytes(gpu) == 2 * gib


def sharing(jobs: int | None = None, max_threads: int | None = None, **limits: int) -> Sharing:
    """How the rules share 16 cores, of a machine with 2 GPUs or of one of a cluster's `jobs`."""
    rules = (REPOSITORY / "workflow/rules/common.smk").read_text()
    workflow = SimpleNamespace(
        global_resources={name: SimpleNamespace(value=value) for name, value in limits.items()},
        resource_settings=SimpleNamespace(max_threads=max_threads),
        register_resource=lambda name, value: None,
        is_main_process=True,
        executor_plugin=None,  # while the workflow is read
        local_exec=True,
        cores=16,
        nodes=jobs,
    )
    known: dict[str, Any] = {"workflow": workflow, "Sharing": Sharing, "replace": replace}
    known |= {"gpus_there": lambda: 2, "doubt": lambda: None, "KdstepsError": KdstepsError}
    for name in ("limit_of", "sharing_of_run", "submits"):
        found = re.search(rf"^def {name}\(.*?^(?=\S)", rules, re.DOTALL | re.MULTILINE)
        assert found is not None
        exec(found[0], known)
    return known["sharing_of_run"]()


def test_jobs_on_one_machine_share_its_cores_and_gpus():
    assert sharing() == Sharing(16, 2, 1)
    assert sharing(gpu=1, max_threads=8) == Sharing(16, 1, 1, max_threads=8)
    assert sharing(gpu=4, jobs_per_gpu=4) == Sharing(16, 2, 4)


def test_each_job_on_a_cluster_has_the_cores_of_the_profile_and_all_memory_of_its_gpu():
    assert sharing(5) == Sharing(80, 5, 1, max_threads=16, jobs=5)  # any number of GPUs
    assert sharing(5, gpu=3, jobs_per_gpu=4) == Sharing(80, 3, 1, max_threads=16, jobs=5)
    assert sharing(5, gpu=0, max_threads=8) == Sharing(40, 0, 1, max_threads=8, jobs=5)


# the real snakemake


@pytest.mark.slow
def test_two_gpus_are_two_jobs_at_a_time_on_different_gpus(machine, tmp_path):
    machine.add_cards(CARD, CARD)
    done, jobs = snakemake(machine, tmp_path / "study", "--cores", "16", "--resources", "gpu=2")
    assert done.returncode == 0, done.stderr
    assert {job["threads"] for job in jobs} == {8}
    assert {job["gpu"] for job in jobs} == {"0", "1"}
    assert at_once(jobs) == 2
    for gpu in ("0", "1"):
        assert at_once([job for job in jobs if job["gpu"] == gpu]) == 1


@pytest.mark.slow
def test_small_jobs_share_a_gpu_and_large_ones_have_it_alone(machine, tmp_path):
    machine.add_cards(CARD, CARD)
    arguments = ("--cores", "16", "--resources", "gpu=1", "jobs_per_gpu=4")
    done, jobs = snakemake(machine, tmp_path / "study", *arguments)
    assert done.returncode == 0, done.stderr
    small, large = ([job for job in jobs if size in job["name"]] for size in ("small", "large"))
    assert {job["threads"] for job in small} == {4}
    assert {job["threads"] for job in large} == {16}
    assert 2 <= at_once(small) <= 4
    for job in large:
        assert at_once([job, *small]) <= 4
        assert not [s for s in small if s["began"] < job["ended"] and job["began"] < s["ended"]]
    assert {job["gpu"] for job in jobs} == {"0"}  # the second GPU was not given to this run


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("gpu=0",), ("gpu=1", "jobs_per_gpu=4")])
def test_jobs_without_a_gpu_run_on_the_cpu(machine, tmp_path, arguments):
    """Either the user wants that, or there is no GPU."""
    if arguments == ("gpu=0",):
        machine.add_cards(CARD)
    done, jobs = snakemake(machine, tmp_path / "study", "--cores", "4", "--resources", *arguments)
    assert done.returncode == 0, done.stderr
    assert {job["gpu"] for job in jobs} == {""}


def test_a_wrong_number_of_jobs_per_gpu_is_said_before_the_first_job(machine, tmp_path):
    arguments = ("--cores", "4", "--resources", "gpu=1", "jobs_per_gpu=0")
    done, jobs = snakemake(machine, tmp_path / "study", *arguments)
    assert (done.returncode, jobs) == (2, [])
    assert "--resources: jobs_per_gpu is 0; it should be from 1 to 32" in done.stderr


def test_a_driver_that_is_too_old_is_said_before_the_first_job(machine, tmp_path):
    """A warning, since results that are complete can be used without a GPU."""
    machine.add_cards(CARD).add_driver("535.183.01")
    done, _ = snakemake(machine, tmp_path / "study", "--cores", "4", "--dry-run")
    assert done.returncode == 0
    assert done.stderr.count("jobs may be unable to use the GPU: torch ") == 1


# the rules


def test_every_rule_that_claims_a_gpu_claims_slots_and_passes_on_what_it_claimed():
    text = "".join((REPOSITORY / f"workflow/rules/{n}.smk").read_text() for n in RULE_FILES)
    rules = {part.partition(":")[0]: part for part in text.split("\nrule ")[1:]}
    kinds = Counter()
    for name, rule in rules.items():
        # those of a training are functions, since it may have several GPUs
        rule = rule.replace(f'gpus_of("{name}")', "gpu_claim")
        rule = rule.replace(f'gpu_slots_of("{name}", alone=False)', "1")
        rule = rule.replace(f'gpu_slots_of("{name}", alone=True)', "sharing.jobs_per_gpu")
        rule = rule.replace(f'shared_by_jobs("{name}")', "sharing.jobs_per_gpu")
        claims, shares = "gpu=gpu_claim" in rule, "jobs_per_gpu=sharing" in rule
        kinds[claims, shares] += 1
        assert ("--gpus {resources.gpu}" in rule) == claims, name
        assert ("--gpus 0" in rule) != claims, name
        assert ("gpu_slots=1," in rule) == shares, name
        assert ("gpu_slots=sharing.jobs_per_gpu" in rule) == (claims and not shares), name
        assert ("--jobs-per-gpu {resources.jobs_per_gpu}" in rule) == shares, name
    assert kinds == {(True, True): 5, (True, False): 4, (False, False): 4}
    assert "threads: sharing.most_cores" in rules["evaluate_latency"]


RULE_FILES = ("teacher", "student", "report")


def test_the_default_profile_has_one_gpu_for_one_job():
    profile = yaml.safe_load((REPOSITORY / "profiles/default/config.yaml").read_text())
    assert profile["resources"] == {"gpu": 1, "jobs_per_gpu": 1}
