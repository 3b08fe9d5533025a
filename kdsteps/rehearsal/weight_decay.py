"""Long trainings in which weight decay may outweigh the losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kdsteps.jobs import graph
from kdsteps.jobs.settings import DistilSettings
from kdsteps.study import registry
from kdsteps.study.study import Study
from kdsteps.study.training_settings import Training

MUCH = 5.0  # weights that no loss keeps up shrink to less than a hundredth


def erasing(
    study: Study, jobs: Iterable[graph.JobNode], num_images: Mapping[str, int]
) -> Iterator[str]:
    """What to know about students with small gradients that sgd trains for long.

    Args:
        jobs: Those that are left.
        num_images: Training images of each data set of which the number is known.
    """
    told = set()
    for node in jobs:
        if node.rule != "distil" or not isinstance(node.settings, DistilSettings):
            continue
        entry, dataset = node.names["method"], study.pairs[node.names["pair"]].dataset
        recipe, method = node.settings.distil, node.settings.method
        if entry in told or dataset not in num_images or recipe.optimizer != "sgd":
            continue
        steps = recipe.epochs * max(1, num_images[dataset] // recipe.batch_size)
        if not registry.load("methods", method).small_gradients or _decay(recipe, steps) < MUCH:
            continue
        told.add(entry)
        yield (
            f"{entry}: in {steps:,} steps of sgd, weight decay may outweigh the small gradients of "
            f"{method}, and the student unlearn everything; with `distil: {{optimizer: adamw, "
            "learning_rate: 0.0075, weight_decay: 0.01, schedule: onecycle}`, gradients count "
            "whatever their size"
        )


def _decay(recipe: Training, steps: int) -> float:
    """How often weights shrink by a factor of e if nothing but weight decay changes them.

    With the highest learning rate in every step, so at most.
    """
    return steps * recipe.learning_rate * recipe.weight_decay / (1 - recipe.momentum)
