"""Jobs on machines without a shared folder, whose files are in storage such as an S3 bucket.

Snakemake downloads the files that a job declares into a folder, where they have the same paths as
in the study's folder, and uploads the results from there. So a job declares everything that it
reads, including the provenance of its inputs and the user's images and checkpoints.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from kdsteps.jobs import graph
from kdsteps.jobs.provenance import provenance_file
from kdsteps.places import shipped
from kdsteps.study.study import Study

DECLARED = frozenset({"provenance", "own"})
"""Names of files that are only declared for storage; a job finds them next to the others."""


def expect_own_rules() -> None:
    """Do not let Snakemake warn that it sends no rules of kdsteps, which other machines have."""
    log = logging.getLogger("snakemake.logging")
    if not any(isinstance(each, _OtherSources) for each in log.filters):
        log.addFilter(_OtherSources())


class _OtherSources(logging.Filter):
    """Keeps warnings about the user's own files outside of the study's folder."""

    def filter(self, record: logging.LogRecord) -> bool:
        found = re.match(r"Ignoring source file (.*?)! ", record.getMessage())
        rules = shipped("workflow").resolve()
        return found is None or not Path(found[1]).resolve().is_relative_to(rules)


def declared(study: Study, node: graph.JobNode) -> dict[str, list[str]]:
    """What a job reads besides its inputs, by name.

    Returns:
        `provenance`: of its inputs; `own`: images and checkpoints of the user in the study's
        folder. Those outside of it have to exist on every machine.
    """
    makers = [made for path in sorted(node.read) if (made := graph.maker(study, path)) is not None]
    beside = [str(provenance_file(graph.outputs(made.rule, made.names))) for made in makers]
    found = graph.own_inputs(study)
    own = [path for entry in _entries(study, node) for path in found[entry].paths]
    relative = [os.path.normpath(path) for path in own if not os.path.isabs(path)]
    return {
        "provenance": list(dict.fromkeys(beside)),
        "own": [path for path in relative if not path.startswith(os.pardir)],
    }


def with_stored_files(node: graph.JobNode) -> graph.JobNode:
    """A job as it runs where its files are in storage.

    Logits are not cached in a file, which no other job could read. What was accepted concerns
    results in the study's folder.
    """
    inputs, hints = dict(node.inputs), dict(node.hints)
    if node.rule == "cache_outputs":
        hints |= {"keep": "never" if hints["keep"] == "never" else "auto", "passes": 0}
    if node.rule == "report":
        inputs["accepted"] = []
    return replace(node, inputs=inputs, hints=hints)


def root_of(path: str, path_in_study: str) -> str:
    """The folder in which a file has the path that it has in the study's folder."""
    assert path.endswith(f"/{path_in_study}"), (path, path_in_study)
    return path.removesuffix(f"/{path_in_study}")


@contextmanager
def files_below(root: Path | None) -> Iterator[None]:
    """Let what is in a folder, except results, be found in the current one during the block.

    What the current folder has stays as it is.
    """
    links = [] if root is None else list(_links(root, Path()))
    made = []
    try:
        for link, target in links:
            with suppress(FileExistsError):  # another job was faster
                link.symlink_to(target)
                made.append(link)
        yield
    finally:
        for link in made:
            link.unlink(missing_ok=True)


def _links(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """The links to create in `target`, and where they lead."""
    for entry in os.scandir(source):
        link = target / entry.name
        if link == Path("results"):
            continue
        if not os.path.lexists(link):
            yield link, Path(entry.path).absolute()
        elif entry.is_dir() and link.is_dir():
            yield from _links(Path(entry.path), link)


def _entries(study: Study, node: graph.JobNode) -> Iterator[str]:
    """The entries of params.yaml whose images or checkpoints a job reads."""
    names = node.names
    if node.rule == "prepare":
        yield f"datasets.{names['dataset']}"
    pair = study.pairs.get(names.get("pair", ""))
    if node.rule in ("tune", "distil"):
        yield f"methods.{names['method']}"
    models: dict[str, tuple[str, ...]] = {}
    for teacher in [names["teacher"]] if "teacher" in names else pair.teacher_names if pair else ():
        models[teacher] = ("train",)
    if pair is not None:
        models[pair.student] = ("tune", "distil", "evaluate_probe_untrained")
    for model, start_from_it in models.items():
        # other jobs build the network of a `local-dir:` from the folder, and need no checkpoint
        if node.rule in start_from_it or "checkpoint" not in study.models[model].options:
            yield f"models.{model}"
