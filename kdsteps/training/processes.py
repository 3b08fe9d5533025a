"""One training in several processes, each with a GPU and an equal part of every batch.

All processes have the same weights. They draw the same batches and views from the same seed, and
each takes its own part; gradients and losses are averaged over the processes, so that a step is
that of one process with the whole batch, up to rounding and to what networks draw (dropout).
The first process alone validates, and writes the saved state and the results. On a machine without
a GPU, the processes share the cores.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException

from kdsteps.data.images import ImageBatch, Order
from kdsteps.errors import KdstepsError
from kdsteps.jobs.job import Job
from kdsteps.jobs.progress import handlers_of
from kdsteps.methods.base import Batch, Method
from kdsteps.study.training_settings import Training
from kdsteps.training.batch_norm import synchronize
from kdsteps.training.out_of_memory import out_of_memory
from kdsteps.training.random_states import seed_all
from kdsteps.training.stopping import STATUS, sigterm_for_children

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger("kdsteps")

_STOPPED = ""  # instead of the sentence of an error: the run was stopped
_PORTS = range(20_000, 32_768)  # no system hands these out by itself
LONGEST_WAIT = timedelta(days=2)  # of processes for the first one, which may write a logit cache

Terms = Callable[[Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as one of them sees them.

    Attributes:
        rank: The number of this process, from 0.
        count: Of all of them.
        fabric: Connects them; None for a process that trains alone.
    """

    rank: int = 0
    count: int = 1
    fabric: Fabric | None = None

    @property
    def first(self) -> bool:
        """Whether this process validates and writes."""
        return self.rank == 0

    def order(self, whole: Order, accumulate: int) -> Order:
        """This process's part of a batch whose images are not read yet.

        Args:
            accumulate: Parts that are computed one after the other; it has a part of each of them.
        """
        index, view = (self._own(rows, accumulate) for rows in (whole.index, whole.view))
        return replace(whole, index=index, view=view)

    def images(self, whole: ImageBatch, accumulate: int) -> ImageBatch:
        """This process's part of a batch, as `order`."""
        tensors = (whole.images, whole.labels, whole.index, whole.view, whole.targets)
        return ImageBatch(*(self._own(rows, accumulate) for rows in tensors))

    def _own(self, rows: Tensor, accumulate: int) -> Tensor:
        if self.count == 1:
            return rows
        size = len(rows) // (accumulate * self.count)
        starts = range(self.rank * size, len(rows), self.count * size)
        return torch.cat([rows[start : start + size] for start in starts])

    def connect(self, method: Method, recipe: Training, device: torch.device) -> Connected:
        """The method's losses, whose gradients are averaged over the processes.

        Args:
            method: On its device, with the same weights in all processes; changed in place if its
                batch normalization is synchronized.
        """
        if self.fabric is None:
            return Connected(lambda batch: method.terms(batch))
        if recipe.sync_batchnorm:
            synchronize(method, device)
        module = self.fabric.setup_module(_Losses(method), move_to_device=False)
        return Connected(module, module, self.fabric)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes, the same in all of them; does not wait for a GPU."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
            tensor /= self.count
        return tensor

    def seed(self, seed: int, step: int) -> None:
        """Let what networks draw in a step depend on step and process, also after a resume."""
        if self.count > 1:
            entropy = np.random.SeedSequence([seed, step, self.rank])
            seed_all(int(entropy.generate_state(1, np.uint64)[0]))


ALONE = Processes()


@dataclass(frozen=True)
class Connected:
    """The losses of a method in one of the processes.

    Attributes:
        terms: As `Method.terms`.
    """

    terms: Terms
    module: Any = None
    fabric: Fabric | None = None

    def backward_alone(self, alone: bool) -> AbstractContextManager[None]:
        """Within it, gradients are not averaged: a later backward pass of the step does that."""
        if self.fabric is None:
            return nullcontext()
        averaging: AbstractContextManager[None]
        averaging = self.fabric.no_backward_sync(self.module, enabled=alone)
        return averaging


class _Losses(nn.Module):
    """A method whose forward pass is its losses, as DistributedDataParallel calls it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.terms(batch)


def in_processes(
    run: Callable[[Job[Any], Processes], None], job: Job[Any], recipe: Training
) -> None:
    """Run a stage's training in as many processes as the recipe has GPUs.

    Args:
        run: A function of a module; it returns in the first process when the results are written.
        job: As the stage received it; each process gets its fraction of the cores and one GPU.
        recipe: Of the training; with 0 epochs, there is nothing to divide.

    Raises:
        KdstepsError: Raised by one of the processes, or the job was given too few GPUs, or a
            package is missing.
        SystemExit: SIGTERM came; the first process has saved the state.
    """
    count = recipe.gpus if recipe.epochs else 1
    if 0 < job.gpus < count:
        raise KdstepsError(
            f"--gpus: is {job.gpus}, and `gpus` in params.yaml is {count}; use --gpus {count} or 0 "
            f"(the CPU), or with snakemake `--resources gpu={count}`"
        )
    if count == 1:
        run(job, ALONE)
        return
    fabric = _fabric(count, "cuda" if job.gpus else "cpu")
    own = replace(job, gpus=min(job.gpus, 1), threads=max(1, job.threads // count))
    # no warnings that all parameters were used, which may change from epoch to epoch
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    sentences = torch.multiprocessing.get_context("spawn").SimpleQueue()
    try:
        with sigterm_for_children():
            # what they run with goes into the function: Fabric looks for networks in arguments
            fabric.launch(partial(_run_one, run=run, job=own, sentences=sentences))
    except ProcessException as error:
        if sentences.empty():
            raise
        # the process that failed first may be one that lost its connection to the one that ended
        if (sentence := sentences.get()) == _STOPPED:
            raise SystemExit(STATUS) from error
        raise KdstepsError(sentence) from error


def _fabric(count: int, accelerator: Literal["cpu", "cuda"]) -> Fabric:
    """Connects processes of this machine, even within the job of a cluster that has several.

    Before each step, all processes get the buffers of the first one.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise KdstepsError(
            f"gpus is {count}, and lightning-fabric is not installed; install kdsteps[parallel] or "
            "set gpus to 1"
        ) from error
    strategy = DDPStrategy(
        start_method="spawn",
        timeout=LONGEST_WAIT,
        find_unused_parameters=True,  # some methods do not train the student's classifier
    )
    return Fabric(
        accelerator=accelerator, strategy=strategy, devices=count, plugins=[LightningEnvironment()]
    )


def _free_port() -> int:
    """A free port, at which the processes will meet some seconds later.

    It is none that the system hands out, which it could give to another program in these seconds.
    """
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as one, suppress(OSError):
            one.bind(("", port))
            return port
    raise KdstepsError("gpus: no port of this machine is free for the processes; use gpus: 1")


def _run_one(
    fabric: Fabric, run: Callable[[Job[Any], Processes], None], job: Job[Any], sentences: Any
) -> None:
    """One of the processes; an error that the user can fix is passed on as its sentence."""
    _end_with_the_job()
    processes = Processes(fabric.global_rank, fabric.world_size, fabric)
    level = logging.INFO if processes.first else logging.WARNING
    # handlers are set up within the call, since log calls are no part of a job's code identity
    logging.basicConfig(
        level=level,
        format="%(message)s",
        handlers=handlers_of(job, reports=processes.first),
        force=True,
    )
    logging.captureWarnings(True)
    log.info("training in %d processes, each with a part of every batch", processes.count)
    try:
        run(job, processes)
    except SystemExit:
        sentences.put(_STOPPED)
        raise
    except KdstepsError as error:
        sentences.put(str(error))
        raise
    except RuntimeError as error:
        if sentence := out_of_memory(error, job):
            sentences.put(sentence)
        raise


def _end_with_the_job() -> None:
    """End this process as soon as the one of the job ends, however it does.

    PyTorch's own signal for that, SIGINT, is ignored by whatever a shell started in the background.
    """
    if sys.platform == "linux":
        torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        sys.exit(1)
