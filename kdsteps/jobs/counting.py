"""Which settings of a job count: values that change no result are left out of its identity.

The code here is not part of the identity of jobs, unlike that of settings: a setting that is added
with a value at which it has no effect reruns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INPUTS = ("source", "weights", "files")
"""Digests of files that params.yaml names; left out where there are none."""
_WITHOUT_EFFECT = ("checkpoint_minutes", "teacher_check")  # on the network that is trained
_OFF = {
    "clip_grad_norm": None,
    "head_learning_rate_factor": 1.0,
    "features_only": False,
    "accumulate": 1,
    "ema": None,
    "gpus": 1,
    "sync_batchnorm": True,
    "labels": None,
    "classes": None,
}
"""Settings that came later and are left out at this value, where they have no effect."""


def that_count(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a job, as JSON, without values that do not change its result."""
    content = dict(settings)
    for name in content.keys() & {"train", "distil"}:
        content[name] = {
            key: value
            for key, value in _without_off(content[name]).items()
            if key not in _WITHOUT_EFFECT
        }
    return {
        name: value
        for name, value in _without_off(content).items()
        if value != "" or name not in INPUTS
    }


def _without_off(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in content.items() if not (key in _OFF and v == _OFF[key])}
