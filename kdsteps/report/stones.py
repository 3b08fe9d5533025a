"""Draw plans: how student and teacher are connected, as rows of blocks for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdsteps.report.formats import count, shape

HEAD = "head"


@dataclass(frozen=True)
class Bar:
    """One network in the picture, from the image on the left to the logits on the right.

    All bars are as long as the teacher, so a stone's joint is where its teacher is cut.

    Attributes:
        front: Blocks of the student.
        tail: Blocks of the teacher.
        joint: The connector between them, as text; empty for a whole network.
        weight: Length of the tail in teacher blocks; the front takes the rest of `length`.
        marked: Blocks after which features are read.
    """

    name: str
    front: Sequence[str]
    tail: Sequence[str]
    joint: str
    weight: int
    length: int
    note: str
    marked: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Drawing:
    """The plan of one pair and method.

    Attributes:
        kind: `stones` or `pairs`.
        bars: From the teacher down to the student.
        joints: One row per joint: name, student, teacher, how, why, parameters, multiply_adds.
    """

    kind: str
    bars: list[Bar]
    joints: list[dict[str, str]]
    chosen_by: str


def drawing(plan: Mapping[str, Any], teacher: str, student: str) -> Drawing:
    """Turn a plan of the stage build into rows of blocks."""
    kind = plan["plan"]
    joints = plan[kind]
    teacher_blocks = [*plan["teacher"]["layers"], HEAD]
    student_blocks = [*plan["student"]["layers"], HEAD]
    length = len(teacher_blocks)
    read = {
        who: [joint[f"{who}_layer"] for joint in joints] if kind == "pairs" else []
        for who in ("teacher", "student")
    }
    first = Bar(
        teacher, [], teacher_blocks, "", length, length, _cost(plan["teacher"]), read["teacher"]
    )
    last = Bar(student, student_blocks, [], "", 0, length, _cost(plan["student"]), read["student"])
    stones = [_stone(joint, length) for joint in joints] if kind == "stones" else []
    return Drawing(
        kind=kind,
        bars=[first, *stones, last],
        joints=[_joint(joint, number) for number, joint in enumerate(joints, start=1)],
        chosen_by=plan.get("chosen_by", ""),
    )


def _stone(stone: Mapping[str, Any], length: int) -> Bar:
    return Bar(
        name=stone["name"],
        front=stone["student_blocks"],
        tail=stone["teacher_blocks"],
        joint=stone["connector"],
        weight=len(stone["teacher_blocks"]),
        length=length,
        note=f"{count(stone['parameters'])} trained parameters, "
        f"{count(stone['multiply_adds'])} extra MACs",
    )


def _joint(joint: Mapping[str, Any], number: int) -> dict[str, str]:
    how = joint["connector"] if "connector" in joint else joint["projector"]
    return {
        "name": str(joint.get("name", number)),
        "student": f"{joint['student_layer']}  {shape(joint['student_shape'])}",
        "teacher": f"{joint['teacher_layer']}  {shape(joint['teacher_shape'])}",
        "how": str(how),
        "why": str(joint.get("why", "")),
        "parameters": count(joint.get("parameters")),
        "multiply_adds": count(joint.get("multiply_adds")),
    }


def _cost(network: Mapping[str, Any]) -> str:
    parameters, macs = (count(network.get(key)) for key in ("parameters", "multiply_adds"))
    return f"{parameters} parameters, {macs} MACs"
