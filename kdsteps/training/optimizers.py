"""The optimizer and the learning-rate schedule of a recipe."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from kdsteps.methods.base import Method
from kdsteps.study.training_settings import Training

log = logging.getLogger("kdsteps")


def _outside_compiled_code(
    kind: type[torch.optim.Optimizer],
) -> Callable[..., torch.optim.Optimizer]:
    """An optimizer class without the decorators that keep torch's compiler out of its methods.

    The first call of each imports all of the compiler, which takes about as long as importing
    torch. The optimizers here run outside compiled code, so there is nothing to keep out.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), plain | {"step": step})


SGD = _outside_compiled_code(torch.optim.SGD)
AdamW = _outside_compiled_code(torch.optim.AdamW)


def make_optimizer(method: Method, recipe: Training) -> torch.optim.Optimizer:
    """An optimizer for everything the method trains: the student and the method's own modules.

    A classifier that starts with new weights in a student that does not is a second group, whose
    learning rate is `head_learning_rate_factor` times the recipe's.

    On a GPU one fused kernel updates all weights. On a CPU it would save a thousandth of a step.
    """
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    fused = all(parameter.is_cuda for parameter in trained)
    groups = _groups(method, trained, recipe)
    given: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return AdamW(groups, **given, fused=fused)
    return SGD(groups, **given, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)


def _groups(
    method: Method, weights: list[torch.nn.Parameter], recipe: Training
) -> list[dict[str, Any]]:
    """The weights with one learning rate each, those of the recipe's own rate first."""
    factor = recipe.head_learning_rate_factor
    if factor == 1:
        return [{"params": weights}]
    student = method.student
    new = {
        id(weight)
        for name, weight in student.plain().named_parameters()
        if name in student.new_weights
    }
    head = [weight for weight in weights if id(weight) in new]
    if not head:
        log.info("head_learning_rate_factor has no effect: no classifier starts with new weights")
        return [{"params": weights}]
    log.info(
        "%s: learning rate %g, %g times that of the other weights",
        *(", ".join(student.new_weights), factor * recipe.learning_rate, factor),
    )
    rest = [weight for weight in weights if id(weight) not in new]
    return [{"params": rest}, {"params": head, "lr": factor * recipe.learning_rate}]


def keep_to_layout(optimizer: torch.optim.Optimizer) -> None:
    """Turn fused steps off where the memory layouts of a gradient and its weight differ.

    Fused kernels read both in the same order. On the CPU of torch 2.13 they then updated weights
    with the gradients of others, without an error.
    """
    for group in optimizer.param_groups:
        unlike = any(
            weight.grad is not None and _strides(weight.grad) != _strides(weight)
            for weight in group["params"]
        )
        if unlike and group["fused"]:
            group["fused"], group["foreach"] = False, True


def _strides(tensor: Tensor) -> list[int]:
    """The strides of the dimensions that are longer than 1: the memory layout."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return [stride for size, stride in sizes if size > 1]


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Training, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """The learning rate of every step: a linear warm-up, then the recipe's schedule."""
    steps = recipe.epochs * steps_per_epoch
    warm = round(recipe.warmup * steps)
    if recipe.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=steps + 1,
            pct_start=recipe.warmup or 0.3,
            cycle_momentum=recipe.optimizer != "sgd",  # the recipe sets it
        )
    after: lr_scheduler.LRScheduler
    if recipe.schedule == "cosine":
        after = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps - warm))
    elif recipe.schedule == "steps":
        milestones = [round(epoch * steps_per_epoch) - warm for epoch in recipe.milestone_epochs()]
        after = lr_scheduler.MultiStepLR(optimizer, milestones, gamma=recipe.decay)
    else:
        after = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if not warm:
        return after
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return lr_scheduler.SequentialLR(optimizer, [rise, after], milestones=[warm])
