"""Before anything runs: compare results with what they were made from, and tell Snakemake.

Each result has a file that says how it was made (`kdsteps.jobs.provenance`). Snakemake's records
are rewritten where they are lost, damaged or say otherwise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdsteps.files.damaged import set_aside
from kdsteps.files.digests import digest_if_any
from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.earlier_versions import adopt_records
from kdsteps.jobs.provenance import (
    Provenance,
    input_digests,
    is_damaged,
    lost_files,
    provenance_file,
    provenance_of_job,
    read_provenance,
)
from kdsteps.jobs.snakemake_records import write_records
from kdsteps.study.study import Study


def restore_records(study: Study) -> list[str]:
    """Bring Snakemake's records in line with the results, and move damaged files aside.

    Returns:
        What was found to be wrong, each one sentence.
    """
    found: dict[str, Provenance] = {}
    said = []
    for node, outputs, known in known_results(study):
        there = [path for path in outputs.values() if os.path.isfile(path)]
        if known is None:
            if len(there) == len(outputs):
                said.append(f"{there[0]}: no record of how it was made; its job will run again")
                write_records(there, node.rule, [], [], {})
            continue
        damaged = [path for path in there if is_damaged(Path(path), known)]
        said += [f"{path}: was damaged or changed; its job will run again" for path in damaged]
        if damaged and node.rule == "report":  # files in git, which `git checkout` changes alone
            write_records(there, node.rule, [], [], {})
            continue
        if lost := lost_files(node.rule, outputs, known):
            said += [f"{path}: is missing or was changed; its job will run again" for path in lost]
            write_records(there, node.rule, [], [], {})
            continue
        for path in damaged:
            set_aside(Path(path))
        found |= dict.fromkeys(outputs.values(), known)
        changed = changed_inputs(node, known, found)
        same = known.inputs.keys() == node.watched
        read = node.declared if same and not changed else known.inputs.keys() - changed
        params, times = [known.settings, known.code], (known.started, known.ended)
        write_records(there, node.rule, params, sorted(read), known.inputs, times)
    return said


def known_results(
    study: Study,
) -> Iterator[tuple[graph.JobNode, Mapping[str, str], Provenance | None]]:
    """Every job of a study whose results exist, its files, and what they were made from.

    Jobs come after those whose files they read. What is known from Snakemake's records alone, as of
    earlier versions, is written next to the results; with KDSTEPS_TRUST_RESULTS=1, results of
    unknown origin are taken for those of the study.
    """
    trust = os.environ.get("KDSTEPS_TRUST_RESULTS") == "1"
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            outputs = graph.outputs(rule, names)
            first = next(iter(outputs.values()))
            if not os.path.isfile(first):
                continue
            node = graph.node(study, rule, names)
            known = read_provenance(provenance_file(outputs))
            known = known or adopt_records(node, outputs)
            if known is None and trust and all(map(os.path.isfile, outputs.values())):
                code, now = code_identity.code(study, rule, names), time.time()
                read = input_digests(rule, node.inputs)
                known = provenance_of_job(rule, node.text, code, read, outputs, now, now)
                known.write(outputs)
            yield node, outputs, known


def changed_inputs(
    node: graph.JobNode, known: Provenance, found: Mapping[str, Provenance]
) -> set[str]:
    """Inputs that are not what a result was made from.

    Args:
        found: What results were made from, by path; of other files, the content is read.
    """
    return {
        path
        for path in node.watched & known.inputs.keys()
        if (now := _digest_now(path, found)) and now != known.inputs[path]
    }


def _digest_now(path: str, found: Mapping[str, Provenance]) -> str:
    """The digest of a file that exists; otherwise "".

    Args:
        found: What results were made from, by path; of other files, the content is read.
    """
    if path not in found:
        return digest_if_any(path)
    return found[path].files.get(os.path.basename(path), "") if os.path.isfile(path) else ""
