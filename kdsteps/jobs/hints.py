"""Options of jobs that change no result: what is cached, and how often progress is saved."""

from __future__ import annotations

from kdsteps.study.study import Study
from kdsteps.study.training_settings import Training


def budget(study: Study) -> dict[str, int | str]:
    """The largest size of a cache file."""
    return {"budget_mib": max(1, round(1024 * study.params.cache.budget_gib))}


def caching(study: Study) -> dict[str, int | str]:
    """Whether a teacher's logits are cached, and what that may cost."""
    return budget(study) | {"keep": study.params.cache.outputs}


def saving(section: Training) -> dict[str, int | str]:
    """How often the state of a training is saved."""
    return {"checkpoint_seconds": max(1, round(60 * section.checkpoint_minutes))}
