"""Kubernetes, as far as it can be tried without a cluster: the plan, and a bucket as storage."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from _study import REPOSITORY, TINY, Study
from test_remotes import Remote, s3_server

from kdsteps.jobs import graph

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


def test_the_profile_names_rules_that_exist():
    content = yaml.safe_load((REPOSITORY / PROFILE / "config.yaml").read_text())
    named = {entry.partition("=")[0] for entry in content["set-threads"]}
    assert named <= graph.OUTPUTS.keys()


def test_a_study_is_planned_for_kubernetes(bucket: Remote, tmp_path: Path):
    study = Study.new(tmp_path / "study", PARAMS)
    options = ["--workflow-profile", PROFILE, *stored_in(bucket)]
    plan = study.run(["snakemake", "--dry-run", *options], **keys(bucket))
    for rule in ("prepare", "distil", "evaluate", "evaluate_latency", "report"):
        assert f"\n{rule} " in plan


def test_a_study_runs_with_a_bucket_as_storage(bucket: Remote, tmp_path: Path):
    study = Study.new(tmp_path / "study", PARAMS)
    shared = ("persistence", "software-deployment", "sources", "source-cache")
    options = [*stored_in(bucket), "--shared-fs-usage", *shared]
    study.snakemake(*options, **keys(bucket))
    assert not (study.path / "results").exists()
    assert "Nothing to be done" in study.snakemake("--dry-run", *options, **keys(bucket))
