"""Checks of the teachers of a pair: one of them, or several for methods that learn from logits."""

from __future__ import annotations

from kdsteps.errors import KdstepsError
from kdsteps.study import registry
from kdsteps.study.entries import Pair
from kdsteps.study.settings import Combination
from kdsteps.study.study import Study


def check_teachers(study: Study, pair: Pair, where: str) -> None:
    """Check that a pair has one teacher, or several that all methods of the study can learn from.

    Args:
        where: The place of the pair, for messages.

    Raises:
        KdstepsError: They contradict each other, or a method needs more than the teachers' logits.
    """
    if pair.teacher is None and pair.teachers is None:
        raise KdstepsError(
            f"{where}.teacher is missing; it should be a name under models, or set `teachers` to a "
            "list of names"
        )
    if pair.teacher is not None and pair.teachers is not None:
        raise KdstepsError(f"{where} has teacher and teachers; delete one of them")
    if pair.teachers is None:
        for key in Combination.model_fields:
            if key in pair.model_fields_set:
                raise KdstepsError(
                    f"{where}.{key} is {getattr(pair, key)!r}, and there is one teacher; leave it "
                    "out, or list several in `teachers`"
                )
        return
    for name, entry in study.methods.items():
        if entry.wants not in ("nothing", "logits"):
            raise KdstepsError(
                f"{where}.teachers: {name} needs the layers of one teacher; with several there are "
                f"{', '.join(methods_for_several())}"
            )
    if pair.combine == "confidence" and study.datasets[pair.dataset].labels is not None:
        raise KdstepsError(
            f"{where}.combine is 'confidence', which needs labels, and datasets.{pair.dataset} has "
            "none; use mean or median"
        )


def methods_for_several() -> list[str]:
    """The methods that work with several teachers: those that need logits at most."""
    return [
        name
        for name in registry.names("methods")
        if registry.find("methods", name, name).wants in ("nothing", "logits")
    ]
