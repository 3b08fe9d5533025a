"""How long a study takes with 1, 2, 4 or 8 jobs per GPU: simulated from measured times.

Real are the study (`recipes/cifar100.yaml`: one pair, 8 methods, 3 seeds), its job graph, what each
job claims, and the order in which jobs start. Measured are the times in `MEASURED` and how fast
students are together in `TOGETHER`; see docs/performance.md. `SUBSTITUTES` and the texts below them
say what was not measured. Nothing is trained here, and no GPU is needed.

    python benchmarks/bench_jobs_per_gpu.py --cores 16
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from _timing import ROOT, Row, table

from kdsteps.jobs import graph
from kdsteps.jobs.resources import Sharing
from kdsteps.jobs.schedule import Queue
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study
from kdsteps.study.yaml_text import read_yaml

METHODS = ("labels", "kd", "dkd", "lskd", "block_kd", "reviewkd", "feature_only", "simkd")
MEASURED = {
    "kd": 0.74,
    "block_kd": 2.22,
    "reviewkd": 4.42,
    "simkd": 1.64,
    "feature_only": 1.97 * 0.74 / 0.84,
    "teacher": 2.31,
}
"""Seconds of an epoch alone on the card: methods on an H200, the teacher's training on an H100
(docs/performance.md). `feature_only` was timed under MPS, where `kd` takes 0.84 seconds."""
CACHING = 100.0
"""Seconds to cache the logits of 162 views of each image, on an H100."""
SUBSTITUTES = dict.fromkeys(("labels", "dkd", "lskd"), "kd")
"""Methods that were not timed alone and do as much as `kd`: their steps need cached logits or
none."""
TOGETHER = {
    "by time": {1: 1.0, 4: 19.6 / 20.2, 8: 19.6 / 20.2},
    "MPS": {1: 17.8 / 20.2, 4: 28.9 / 20.2, 8: 30.3 / 20.2},
}
"""Students per hour of a card, by how many share it, against one alone without the multi-process
service (MPS): kd, on an H200. Eight by time were not measured and count as four."""
CORES = 16
"""Cores of the machine."""


def rows(cores: int = CORES) -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    study = _study()
    alone = makespan(study, 1, "by time", cores)
    for how in TOGETHER:
        for jobs in (1, 2, 4, 8):
            found = makespan(study, jobs, how, cores)
            detail = f"{found / 3600:.2f} h"
            if jobs == 2:
                detail += "; two at a time: interpolated between one and four"
            if jobs == 8 and how == "by time":
                detail += "; eight at a time: taken to be as fast as four"
            yield Row(
                f"simulated: {len(METHODS)} methods x {len(study.seeds)} seeds, {how}, "
                f"jobs_per_gpu {jobs}",
                "jobs_per_gpu 1, by time",
                alone / found,
                detail,
                "no target",
                None,
            )


def makespan(study: Study, jobs_per_gpu: int, how: str, cores: int) -> float:
    """Seconds from the first to the last job of a study on one GPU.

    Jobs that compute on the GPU at the same time are equally fast, and together as fast as
    `TOGETHER` says.
    """
    nodes = [
        graph.node(study, rule, names)
        for rule in graph.OUTPUTS
        for names in graph.jobs(study, rule)
    ]
    queue = Queue(study, nodes, Sharing(cores, 1, jobs_per_gpu))
    left: dict[int, float] = {}  # seconds alone on the card that each running job still needs
    now = 0.0
    while not queue.over:
        left |= {number: _seconds(study, nodes[number]) for number in queue.start()}
        computing = sum(seconds > 0 for seconds in left.values())
        pace = _gain(computing, TOGETHER[how]) / computing if computing else 1.0
        ended = min(left, key=lambda number: left[number])
        spent = left.pop(ended)
        now += spent / pace
        left = {number: max(0.0, seconds - spent) for number, seconds in left.items()}
        queue.end(ended)
    return now


def _gain(jobs: int, measured: Mapping[int, float]) -> float:
    """How fast some jobs are together: as measured, and on straight lines in between."""
    if jobs in measured:
        return measured[jobs]
    low, high = (1, 4) if jobs < 4 else (4, 8)
    return measured[low] + (measured[high] - measured[low]) * (jobs - low) / (high - low)


def _seconds(study: Study, node: graph.JobNode) -> float:
    """Of a job alone on the card; 0 for those that were not measured, which are short."""
    if node.rule == "train":
        return study.trainings[node.names["teacher"]].epochs * MEASURED["teacher"]
    if node.rule == "cache_outputs":
        return CACHING
    if node.rule == "distil":
        pair, method = node.names["pair"], node.names["method"]
        seconds = MEASURED[SUBSTITUTES.get(method, method)]
        return study.distil(pair, method).epochs * seconds
    return 0.0


def _study() -> Study:
    content: dict[str, Any] = read_yaml((ROOT / "recipes/cifar100.yaml").read_text())
    return parse_study(content | {"methods": {name: {} for name in METHODS}})


def _count(study: Study) -> str:
    """The jobs by whether their time was measured."""
    kinds = Counter(
        bool(_seconds(study, graph.node(study, rule, names)))
        for rule in graph.OUTPUTS
        for names in graph.jobs(study, rule)
    )
    return f"{kinds[True]} jobs with a time, {kinds[False]} short ones that count as none"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=CORES, help="of the machine (%(default)s)")
    given = parser.parse_args()
    print(table(rows(given.cores)))
    print(_count(_study()))
