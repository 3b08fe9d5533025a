"""Which student layer learns from which teacher layer, and through what projector.

Source: Cooper et al. 2025, arXiv:2511.14981; official code for the projectors. The paper's lists of
layers are consistent with this rule: the J best by score, sorted by depth, paired in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdsteps.models.adapters import AdapterKind, adapter
from kdsteps.models.chain import Chain
from kdsteps.models.cost import num_parameters
from kdsteps.models.feature_shapes import FeatureShape, feature_shapes
from kdsteps.study.joints import match_layers


def plan_pairs(
    teacher: Chain,
    student: Chain,
    image_shape: tuple[int, int, int],
    *,
    student_layers: Sequence[str] | None,
    teacher_layers: Sequence[str],
    projector: AdapterKind,
) -> list[dict[str, Any]]:
    """The pairs of layers, shallow to deep.

    Args:
        image_shape: (C, H, W).
        student_layers: As many as the teacher's; None: the student's last stages.
        teacher_layers: In any order.
        projector: What turns the student's features into the teacher's.

    Returns:
        One entry per pair: `student_layer`, `teacher_layer`, their feature shapes (`_features`) and
        the networks' own (`_shape`), `projector`, `why`, and its trained `parameters`.

    Raises:
        KdstepsError: A layer does not exist, or the two lists differ in length.
    """
    joints = match_layers(teacher, student, student_layers, teacher_layers)
    our_shapes, their_shapes = (
        feature_shapes(student, image_shape),
        feature_shapes(teacher, image_shape),
    )
    pairs = []
    for student_layer, teacher_layer in joints:
        source, target = matched(our_shapes[student_layer], their_shapes[teacher_layer])
        module, why = adapter(source, target, projector)
        pairs.append(
            {
                "student_layer": student_layer,
                "teacher_layer": teacher_layer,
                "student_features": our_shapes[student_layer].as_dict(),
                "teacher_features": their_shapes[teacher_layer].as_dict(),
                "student_shape": list(our_shapes[student_layer].shape),
                "teacher_shape": list(their_shapes[teacher_layer].shape),
                "projector": projector,
                "why": why,
                "parameters": num_parameters(module),
            }
        )
    return pairs


def matched(source: FeatureShape, target: FeatureShape) -> tuple[FeatureShape, FeatureShape]:
    """Both shapes at the smaller of their sizes, where the feature loss compares them.

    The larger map is pooled, whichever side it is on; a projector only turns the student's
    channels into the teacher's. Tokens of the same grid and prefix stay tokens.
    """
    if source.has_tokens_of(target):
        return source, target
    ours, theirs = source.as_map(), target.as_map()
    height, width = min(ours.height, theirs.height), min(ours.width, theirs.width)
    return (
        FeatureShape("map", ours.channels, height, width),
        FeatureShape("map", theirs.channels, height, width),
    )
