"""A study of five logit methods and three seeds: stages cache and distil, with and without caching.

Small, so that it ends in minutes: digits of 8 x 8 pixels, but resnet32x4 and resnet8x4, whose costs
relate to each other much as on larger images. Random crop gives every image 9 views.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from _timing import Row, table

from kdsteps.jobs import graph
from kdsteps.jobs.job import Job
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

_WIDTHS = [32, 64, 128, 256]
_METHODS = ("kd", "dkd", "dist", "lskd", "loca")
_STUDY: dict[str, Any] = {
    "datasets": {"digits": {"kind": "digits", "size": 8}},
    "models": {
        "teacher": {"family": "cifar_resnet", "depth": 32, "widths": _WIDTHS},
        "student": {"family": "cifar_resnet", "depth": 8, "widths": _WIDTHS},
    },
    "pairs": {"pair": {"dataset": "digits", "teacher": "teacher", "student": "student"}},
    "methods": {name: {} for name in _METHODS},
    "seeds": [0, 1, 2],
    "prepare": {"test": 0.7, "validation": 0.0},
    "train": {"epochs": 1},
    "distil": {"epochs": 10, "crop_padding": 1},
}


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    study = parse_study(_STUDY)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        logging.getLogger("kdsteps").setLevel(logging.WARNING)
        for rule in ("prepare", "train"):
            _run(study, rule, "never")
        kept = _run(study, "cache_outputs", "auto")
        looked_up, first = _run(study, "distil", "auto"), _students()
        live, second = _run(study, "distil", "never"), _students()
    torch.set_num_threads(threads)
    if first != second:
        raise RuntimeError("students differ between cached and computed logits")
    gain = live / (kept + looked_up)
    yield Row(
        f"a study of {len(_METHODS)} logit methods x 3 seeds, end to end",
        "the same with the teacher on the fly",
        gain,
        f"{kept:.0f} + {looked_up:.0f} s against {live:.0f} s of one CPU, byte-identical "
        "students; the lower bound, with free logits, would be "
        f"{live / looked_up:.2f}",
        ">= 1.8 times faster",
        gain >= 1.8,
    )


def _run(study: Study, rule: str, keep: str) -> float:
    """CPU seconds of all jobs of a rule, one after the other in this process."""
    stage = import_module(f"kdsteps.stages.{graph.stage_of(rule)}")
    started = time.process_time()
    for names in graph.jobs(study, rule):
        outputs = {name: Path(path) for name, path in graph.outputs(rule, names).items()}
        given: dict[str, Any] = {"threads": 1, **graph.hints(study, rule, names), "keep": keep}
        read = graph.inputs(study, rule, names).items()
        inputs = {name: Path(path) for name, path in read if name != "ticket"}
        stage.run(Job(graph.settings(study, rule, names), inputs, outputs, **given))
    return time.process_time() - started


def _students() -> list[bytes]:
    found = sorted(Path("results/distil").rglob("student.safetensors"))
    return [path.read_bytes() for path in found]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(table(rows()))
