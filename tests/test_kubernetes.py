"""Kubernetes, as far as it can be tried without a cluster: the plan, and a bucket as storage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from _kubernetes import kubernetes
from _study import TINY, Study, clean_environment
from test_remotes import Remote, s3_server
from test_stories import BROKEN

pytestmark = [pytest.mark.stories, pytest.mark.slow]

PROFILE = "profiles/kubernetes"
PARAMS: dict[str, Any] = TINY | {"methods": {"labels": {}}}


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Remote]:
    if None in map(
        find_spec, ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_s3")
    ):
        pytest.skip("needs pip install 'kdsteps[kubernetes]'")
    with s3_server(tmp_path) as remote:
        yield remote


def stored_in(bucket: Remote) -> list[str]:
    """The options for a bucket as storage."""
    server = ["--storage-s3-endpoint-url", bucket.options["endpointurl"]]
    return ["--default-storage-provider", "s3", "--default-storage-prefix", bucket.url, *server]


def keys(bucket: Remote) -> dict[str, str]:
    return {
        f"SNAKEMAKE_STORAGE_S3_{what}_KEY": bucket.environment[name]
        for what, name in (("ACCESS", "AWS_ACCESS_KEY_ID"), ("SECRET", "AWS_SECRET_ACCESS_KEY"))
    }


def test_a_study_is_planned_for_kubernetes(bucket: Remote, tmp_path: Path):
    study = Study.new(tmp_path / "study", PARAMS)
    options = ["--workflow-profile", PROFILE, *stored_in(bucket)]
    plan = study.run(["snakemake", "--dry-run", *options], **keys(bucket))
    for rule in ("prepare", "distil", "evaluate", "evaluate_latency", "report"):
        assert f"\n{rule} " in plan


def test_every_job_runs_in_a_pod_that_has_nothing_but_the_bucket(bucket: Remote, tmp_path: Path):
    study = Study.new(tmp_path / "study", PARAMS)
    options = ["--workflow-profile", PROFILE, *stored_in(bucket)]
    with kubernetes(tmp_path / "pods", clean_environment()) as cluster:
        study.run(
            ["snakemake", *options, "--seconds-between-status-checks", "1"],
            **keys(bucket),
            KUBECONFIG=str(cluster.config),
        )
    containers = cluster.containers()
    limits = [container["resources"]["limits"] for container in containers]
    assert len(limits) == 5
    assert all({"cpu", "memory", "ephemeral-storage"} <= limit.keys() for limit in limits)
    cores = [limit["cpu"] for limit in limits]
    assert sorted(cores) == ["1000m", *["8000m"] * 4], "the report needs one"
    gpus = [limit.get("nvidia.com/gpu", "0") for limit in limits]
    assert sorted(gpus) == ["0", "0", "1", "1", "1"], "prepare and report need none"
    assert not (study.path / "results").exists()
    assert "Nothing to be done" in study.run(["snakemake", "--dry-run", *options], **keys(bucket))


def test_a_job_that_fails_is_named_and_the_others_run_on(bucket: Remote, tmp_path: Path):
    broken = {"method": "./broken.py:Broken"}
    study = Study.new(tmp_path / "study", TINY | {"methods": {"fitnet": {}, "broken": broken}})
    (study.path / "broken.py").write_text(BROKEN)
    study.run(["git", "add", "broken.py"])
    options = ["--workflow-profile", PROFILE, *stored_in(bucket), "--retries", "0"]
    with kubernetes(tmp_path / "pods", clean_environment()) as cluster:
        said = study.run(
            ["snakemake", *options, "--seconds-between-status-checks", "1"],
            status=1,
            **keys(bucket),
            KUBECONFIG=str(cluster.config),
        )
    assert "Rule: evaluate)" in said, "the other student is evaluated"
    named = (
        r"^distil pair broken 0: Kubernetes job (\S+) failed; its log in the storage, and (\S+), "
        "say why$"
    )
    ((job, log),) = re.findall(named, said, re.MULTILINE)
    assert job in cluster.jobs
    assert "Error in rule distil" in Path(log).read_text()
