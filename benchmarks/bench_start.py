"""How long it takes until a job begins: `--help`, the imports of a student's job, and its code."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from _timing import ROOT, Row, table

from kdsteps.jobs.identity import kept

_TURNS = 7
_HELP = ("-m", "kdsteps", "evaluate", "--help")
_TORCH = ("-c", "import torch")
_FIRST_STEP = """
import kdsteps.cli.main, kdsteps.stages.distil, kdsteps.methods.kd
import torch
from kdsteps.models.cost import multiply_adds
from kdsteps.training.optimizers import SGD
layer, image = torch.nn.Linear(3, 4), torch.ones(1, 3)
multiply_adds(layer, image)
optimizer = SGD(layer.parameters(), lr=0.1)
optimizer.zero_grad()
layer(image).sum().backward()
optimizer.step()
"""
_JOB = ("-c", _FIRST_STEP)
_LOADED = """
import contextlib, io, json, sys
from kdsteps.cli.main import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["evaluate", "--help"])
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""
_CODE = """
import time
from kdsteps.jobs import code_identity
from kdsteps.study.loading import load_study
study, started = load_study(), time.process_time()
code_identity.read_code(study)
print(time.process_time() - started)
"""


def rows() -> Iterator[Row]:
    """Yield the rows of this benchmark."""
    loaded = {"torch", "pandas", "pyarrow", "numpy"} & set(json.loads(_said(("-c", _LOADED))))
    turns = [(_seconds(_HELP), _seconds(_JOB), _seconds(_TORCH)) for _ in range(_TURNS)]
    helps, jobs, torches = zip(*turns, strict=True)
    help_s, torch_s = statistics.median(helps), statistics.median(torches)
    yield Row(
        "start of `kdsteps evaluate --help`",
        "python -c 'import torch'",
        statistics.median(help / torch for help, torch in zip(helps, torches, strict=True)),
        f"{help_s:.2f} s of CPU time against {torch_s:.2f} s; loaded of torch, numpy, pandas "
        f"and pyarrow: {', '.join(sorted(loaded)) or 'none'}",
        "<= 0.3 s, without torch",
        help_s <= 0.3 and not loaded,
    )
    share = statistics.median(job / torch for job, torch in zip(jobs, torches, strict=True))
    yield Row(
        "start of a job, with the first step of an optimizer",
        "python -c 'import torch'",
        share,
        f"{statistics.median(jobs):.2f} s of CPU time against {torch_s:.2f} s; lower bound 1",
        "<= 1.5",
        share <= 1.5,
    )
    yield _code()


def _code() -> Row:
    """Where the digests of kdsteps' code are kept, against following the code."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        turns = []
        for _ in range(_TURNS):
            (Path(folder) / kept.FILE).unlink(missing_ok=True)
            turns.append([float(_said(("-c", _CODE), folder)) for _ in range(2)])
    followed_s, kept_s = map(statistics.median, zip(*turns, strict=True))
    ratio = statistics.median(first / second for first, second in turns)
    return Row(
        "the code behind the jobs of `params.yaml`, with kept digests",
        "following the code",
        ratio,
        f"{kept_s:.2f} s of CPU time against {followed_s:.2f} s",
        ">= 10 times faster",
        ratio >= 10,
    )


def _seconds(arguments: Sequence[str]) -> float:
    """CPU seconds of a Python process and of what it starts."""
    before = os.times()
    _said(arguments)
    after = os.times()
    spent = after.children_user + after.children_system
    return spent - before.children_user - before.children_system


def _said(arguments: Sequence[str], folder: str | Path = ROOT) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    print(table(rows()))
