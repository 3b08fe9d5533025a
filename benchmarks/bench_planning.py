"""What planning a large study costs: 20 pairs, all shipped methods, 5 seeds."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _finished import PROGRAMS, call, finish, write_study
from _timing import Row, table

from kdsteps.jobs import code_identity, graph
from kdsteps.study import registry
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

_PAIRS, _SEEDS = 20, 5
_LIMIT_S, _LIMIT_MIB, _OWN_LIMIT_S = 12, 350, 2


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    yield _own()
    if shutil.which("snakemake", path=PROGRAMS) is None:
        yield Row("snakemake -n, a large study", "-", None, "not installed here", "<= 12 s", None)
        return
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder), large_study())
        first = call(Path(folder), "snakemake", "-n", "--quiet")
        yield Row(
            "the first `snakemake -n` in a folder, which imports all parts once",
            "-",
            None,
            f"{first.processor_s:.1f} s of CPU time, {first.peak_mib:.0f} MiB",
            "-",
            None,
        )
        yield _row("`snakemake -n`", Path(folder), study, "snakemake", "-n", "--quiet")
        finish(Path(folder), study)
        yield _row("`snakemake` with nothing to do", Path(folder), study, "snakemake")


def _own() -> Row:
    """CPU seconds of everything that the Snakefile calls, for every job."""
    started = time.process_time()
    study = parse_study(large_study())
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            node = graph.node(study, rule, names)
            assert node.text and node.covered is not None
            code_identity.code(study, rule, names)
            code_identity.identities(study, node)
    spent = time.process_time() - started
    return Row(
        f"kdsteps' own functions for {_count(study):,} jobs",
        "-",
        None,
        f"{spent:.1f} s of CPU time",
        f"<= {_OWN_LIMIT_S} s",
        spent <= _OWN_LIMIT_S,
    )


def _row(what: str, folder: Path, study: Study, *command: str) -> Row:
    cost = call(folder, *command)
    return Row(
        f"{what}, {_count(study):,} jobs",
        "-",
        None,
        f"{cost.processor_s:.1f} s of CPU time, {cost.peak_mib:.0f} MiB",
        f"<= {_LIMIT_S} s and {_LIMIT_MIB} MiB",
        cost.processor_s <= _LIMIT_S and cost.peak_mib <= _LIMIT_MIB,
    )


def _count(study: Study) -> int:
    return sum(len(graph.jobs(study, rule)) for rule in graph.OUTPUTS)


def large_study() -> dict[str, Any]:
    """Twenty pairs, all shipped methods, five seeds; tiny networks."""
    pairs = {
        f"pair{number}": {"dataset": "digits", "teacher": f"teacher{number}", "student": "small"}
        for number in range(_PAIRS)
    }
    teachers = {pair["teacher"]: {"family": "cifar_resnet", "depth": 14} for pair in pairs.values()}
    return {
        "datasets": {"digits": {"kind": "digits", "size": 8}},
        "models": teachers | {"small": {"family": "cifar_resnet", "depth": 8}},
        "pairs": pairs,
        "methods": {name: {} for name in registry.names("methods")},
        "seeds": list(range(_SEEDS)),
    }


if __name__ == "__main__":
    print(table(rows()))
