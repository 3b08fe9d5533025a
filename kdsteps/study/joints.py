"""Which layers of a student and a teacher are joined, as far as names and numbers of layers decide.

Without torch: planning checks layers here before any job, and the stage `build` plans with the
same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from kdsteps.errors import KdstepsError, nearest
from kdsteps.study.settings import BuildPairs, BuildStones

Joints = list[tuple[str, str]]
"""(student layer, teacher layer) of each stone or pair, from shallow to deep."""


class Layered(Protocol):
    """A network as far as its layers go: a `Chain`, or an `Outline` of it."""

    @property
    def layers(self) -> Sequence[str]:
        """In forward order."""

    @property
    def stages(self) -> Sequence[str]:
        """The layers where the network is cut by default."""


class Outline(NamedTuple):
    """What is known of a network without the network.

    Attributes:
        layers, stages: As of a `Chain`.
        parameters: How many it has; 0 where its cost is not known.
        multiply_adds, activations: Of a forward pass of one image (see `models.cost`).
    """

    layers: Sequence[str]
    stages: Sequence[str]
    parameters: int = 0
    multiply_adds: int = 0
    activations: int = 0


def check_build(
    section: BuildStones | BuildPairs,
    num_layers: int,
    teacher: Layered,
    student: Layered,
    *,
    scored: bool = True,
) -> None:
    """Check a plan before the layers are scored: their number counts, whichever they will be.

    Args:
        num_layers: How many layers the stage `score` selects.
        scored: Whether layers are scored at all, which needs labels.

    Raises:
        KdstepsError: There is no such layer, or there are fewer than wanted.
    """
    chosen: Sequence[str]
    if isinstance(section, BuildPairs):
        if isinstance(section.select, tuple):
            chosen = section.select
        elif not scored:
            chosen = stage_layers(section, teacher, student)
        elif section.select is None and section.num_pairs is None:
            chosen = deepest(teacher, num_layers, "score.num_layers")
            chosen = chosen[-most_pairs(section, student) :]
        else:
            chosen = deepest(teacher, most_pairs(section, student), "build.num_pairs")
        match_layers(teacher, student, section.student_layers, chosen)
    elif section.cuts == "stages":
        pair_stages(teacher, student, section.num_stones)
    elif section.cuts == "quality":
        count = section.num_stones or len(stages_of(student, "student"))
        chosen = deepest(teacher, count, "build.num_stones")
        pair_layers(teacher, student, chosen, "build.cuts")
    else:
        check_order(teacher, student, section.cuts)


def most_pairs(section: BuildPairs, student: Layered) -> int:
    """How many pairs `build` wants, or else one for each of the student's layers."""
    return section.num_pairs or len(section.student_layers or stages_of(student, "student"))


def stage_layers(section: BuildPairs, teacher: Layered, student: Layered) -> list[str]:
    """The teacher's layers to learn from where none are scored: the ends of its stages."""
    count = most_pairs(section, student)
    return thinned(teacher.stages, min(count, len(teacher.stages)))


def deepest(teacher: Layered, count: int, where: str) -> Sequence[str]:
    """The last `count` layers of a teacher.

    Raises:
        KdstepsError: It has fewer.
    """
    most = len(teacher.layers)
    if count > most:
        raise KdstepsError(
            f"{where} is {count}, but the teacher has {_layers(most)}; it should be at most {most}"
            if most
            else "the teacher has no layers to cut at; use methods that need its logits alone"
        )
    return teacher.layers[most - count :]


def stages_of(network: Layered, who: str) -> Sequence[str]:
    """The stages of a network; KdstepsError if it has none."""
    if not network.stages:
        raise KdstepsError(f"the {who} has no stages to cut at; use methods that need logits alone")
    return network.stages


def pair_stages(teacher: Layered, student: Layered, num_stones: int | None = None) -> Joints:
    """(student layer, teacher layer) for each stepping stone, at the ends of the networks' stages.

    Where the networks have different numbers of stages, or fewer stones are wanted, both are
    thinned out evenly; the last stage of each always stays.

    Raises:
        KdstepsError: There are fewer stages than stones wanted, or none.
    """
    theirs, ours = stages_of(teacher, "teacher"), stages_of(student, "student")
    most = min(len(theirs), len(ours))
    count = most if num_stones is None else num_stones
    if not 1 <= count <= most:
        raise KdstepsError(
            f"build.num_stones is {count}, but student and teacher have "
            f"{len(ours)} and {len(theirs)} stages to cut at; it should be 1 to {most}"
        )
    return list(zip(thinned(ours, count), thinned(theirs, count), strict=True))


def pair_layers(
    teacher: Layered, student: Layered, teacher_layers: Sequence[str], where: str
) -> Joints:
    """(student layer, teacher layer): the given teacher layers and student stages, in order.

    Raises:
        KdstepsError: A layer does not exist, or the student has fewer stages.
    """
    check_layers(teacher, teacher_layers, f"{where}: teacher")
    if len(teacher_layers) > len(student.stages):
        raise KdstepsError(
            f"{where}: {len(teacher_layers)} teacher layers for a student with "
            f"{len(student.stages)} stages; it should be at most {len(student.stages)}"
        )
    ordered = sorted(teacher_layers, key=list(teacher.layers).index)
    return list(zip(thinned(student.stages, len(ordered)), ordered, strict=True))


def match_layers(
    teacher: Layered,
    student: Layered,
    student_layers: Sequence[str] | None,
    teacher_layers: Sequence[str],
) -> Joints:
    """(student layer, teacher layer): both lists from shallow to deep, paired in order.

    Args:
        student_layers: As many as the teacher's; None: the student's last stages.
        teacher_layers: In any order.

    Raises:
        KdstepsError: A layer does not exist, or the two lists differ in length.
    """
    ours = list(student.stages if student_layers is None else student_layers)
    theirs = sorted(set(teacher_layers), key=lambda layer: (layer in teacher.layers, layer))
    check_layers(student, ours, "build.student_layers: the student")
    check_layers(teacher, theirs, "build.select: the teacher")
    theirs.sort(key=list(teacher.layers).index)
    ours.sort(key=list(student.layers).index)
    if student_layers is None:
        ours = ours[-len(theirs) :]
    if len(ours) != len(theirs):
        raise KdstepsError(
            f"build: {len(ours)} student layers ({', '.join(ours)}) for {len(theirs)} teacher "
            f"layers ({', '.join(theirs)}); set build.num_pairs or build.student_layers so that "
            "they match"
        )
    return list(zip(ours, theirs, strict=True))


def check_order(teacher: Layered, student: Layered, joints: Sequence[tuple[str, str]]) -> None:
    """Raise KdstepsError if a layer does not exist, or cuts do not go from shallow to deep."""
    check_layers(student, [ours for ours, _ in joints], "build.cuts: the student")
    check_layers(teacher, [theirs for _, theirs in joints], "build.cuts: the teacher")
    our_depth, their_depth = list(student.layers).index, list(teacher.layers).index
    for (ours, theirs), (our_next, their_next) in pairwise(joints):
        deeper = our_depth(ours) < our_depth(our_next)
        if not deeper or their_depth(theirs) > their_depth(their_next):
            raise KdstepsError(
                f"build.cuts: {our_next} with {their_next} follows {ours} with {theirs}; "
                "cuts go from shallow to deep in both networks"
            )


def check_layers(network: Layered, layers: Sequence[str], where: str) -> None:
    """Raise KdstepsError with the nearest name if the network does not have one of `layers`."""
    for layer in layers:
        if layer not in network.layers:
            raise KdstepsError(f"{where} has no layer {layer!r}{nearest(layer, network.layers)}")


def thinned(layers: Sequence[str], count: int) -> list[str]:
    """`count` of `layers`, evenly spaced, the last among them; repeated where there are fewer."""
    steps = [round((number + 1) * len(layers) / count) for number in range(count)]
    return [layers[max(step, 1) - 1] for step in steps]


def _layers(count: int) -> str:
    return "one layer" if count == 1 else f"{count} layers"
