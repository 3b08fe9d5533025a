"""How many cores a job on a teacher keeps busy on the CPU, as far as planning knows its network.

A job that claims all cores and computes on one lets the others wait.
"""

from __future__ import annotations

from kdsteps.jobs import graph
from kdsteps.jobs.known import network_outlines
from kdsteps.jobs.resources import WORK_OF_A_CORE
from kdsteps.jobs.settings import FeatureSettings, LogitSettings, ScoreSettings, TrainSettings
from kdsteps.study.image_size import declared_shape
from kdsteps.study.study import Study

_CACHED = 250  # images of a batch whose features are cached
_SCORED = 500  # batches: a job that runs once need not be quick, and few activations are outputs
_ON_TEACHERS = TrainSettings | FeatureSettings | LogitSettings | ScoreSettings


def busy_cores(study: Study, node: graph.JobNode) -> int | None:
    """The cores that a job keeps busy, at least 1; None if that is not known.

    It is the number by which `training.device.keep_busy` limits threads, known before the job.
    """
    if not isinstance(node.settings, _ON_TEACHERS):
        return None
    dataset, teacher = node.names["dataset"], node.names["teacher"]
    shapes = {dataset: declared_shape(study.datasets[dataset])}
    found = network_outlines(study, [dataset], shapes, build=False).get((dataset, teacher))
    if found is None or not found.multiply_adds:
        return None
    if isinstance(node.settings, TrainSettings):
        work = node.settings.train.batch_size * found.multiply_adds
    elif isinstance(node.settings, LogitSettings):
        work = node.settings.views.batch_size * found.multiply_adds
    elif isinstance(node.settings, FeatureSettings):
        work = _CACHED * found.multiply_adds
    else:  # products of all pairs of images, in every layer
        work = study.params.cache.images**2 * found.activations // _SCORED
    return max(1, work // WORK_OF_A_CORE)
