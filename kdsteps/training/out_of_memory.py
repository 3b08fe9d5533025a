"""What a user can lower when the memory of a GPU runs out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from kdsteps.jobs.gpus import visible_entry, visible_variable
from kdsteps.jobs.job import Job

_SIGNS = ("CUDA error: out of memory", "HIP error: out of memory", "_STATUS_ALLOC_FAILED")
_SECTIONS = ("train", "distil", "evaluate", "views")  # of a job's settings, with a batch size
_NAMES = {"views": "distil"}  # where params.yaml has the keys of a section
_FOREIGN = 0.1  # fraction of a GPU's memory that other processes may hold without being named


def out_of_memory(error: RuntimeError, job: Job[Any]) -> str | None:
    """What ran out and what to lower, as one sentence; None if the error is another one.

    Args:
        error: What a stage raised.
        job: The job whose stage it was.
    """
    if not isinstance(error, torch.OutOfMemoryError) and not any(s in str(error) for s in _SIGNS):
        return None
    return f"the GPU's memory ran out ({_use(job.jobs_per_gpu)}); {' or '.join(_remedies(job))}"


def _remedies(job: Job[Any]) -> Iterator[str]:
    """What would help, the simplest first."""
    if job.jobs_per_gpu > 1:
        yield f"let fewer jobs share it (jobs_per_gpu is {job.jobs_per_gpu})"
    for name in _SECTIONS:
        section = getattr(job.settings, name, None)
        where = _NAMES.get(name, name)
        for key in ("batch_size", "throughput_batch"):
            if size := getattr(section, key, None):
                yield f"lower {key} of {where!r} ({size})"
        if getattr(section, "precision", None) == "float32":
            yield f"set `precision: bfloat16` in {where!r}"
    if "ticket" in job.inputs and job.keep != "never":
        yield "set `cache: {outputs: never}`, so that no logits are on the GPU"
    yield f"choose a larger or less used GPU with {visible_variable()}"


def _use(jobs_per_gpu: int) -> str:
    """Which GPU it is, and who uses how much of its memory."""
    number = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(number)
    total, own = properties.total_memory, torch.cuda.max_memory_reserved()
    others = total - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
    allowed = f" of the {_gib(total / jobs_per_gpu)} it may use" if jobs_per_gpu > 1 else ""
    foreign = f", other processes {_gib(others)}" if others > _FOREIGN * total else ""
    name = f"{properties.name}, GPU {visible_entry(number)}, {_gib(total)}"
    return f"{name}: this job held {_gib(own)}{allowed}{foreign}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
