"""Whether the jobs that will run can write their files, before Snakemake plans."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kdsteps.files.atomic import check_places, may_write_into, nearest_folder, replace_by_copy
from kdsteps.jobs import graph
from kdsteps.jobs.job_states import LOGS
from kdsteps.jobs.outputs import optional_outputs
from kdsteps.jobs.upgrades import statuses
from kdsteps.study.study import Study


def let_jobs_write(study: Study) -> None:
    """Replace files that this user may not write to by copies, where jobs will write new ones.

    They are links into DVC's cache, which are read-only, or files of another user. Snakemake would
    refuse to run the jobs, although these only rename new files.

    Raises:
        KdstepsError: The files of a job that will run are in a read-only folder.
    """
    nodes = [graph.node(study, rule, n) for rule in graph.OUTPUTS for n in graph.jobs(study, rule)]
    files = [path for node in nodes for path in files_of(node)]
    folders = {nearest_folder(folder) for folder in {path.parent for path in files}}
    if all(map(may_write_into, folders)) and not any(map(_is_read_only, files)):
        return
    for status in statuses(study):
        for path in files_of(status.node) if status.stale else ():
            check_places([path])
            if _is_read_only(path):
                replace_by_copy(path)


def files_of(node: graph.JobNode) -> Iterator[Path]:
    """The files that a job writes, and at last its log."""
    outputs = graph.outputs(node.rule, node.names)
    yield from map(Path, outputs.values())
    yield from optional_outputs(node.rule, outputs).values()
    yield Path(LOGS[node.rule].format(**node.names))


def _is_read_only(file: Path) -> bool:
    return not os.access(file, os.W_OK) and file.exists()
