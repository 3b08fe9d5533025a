"""Which layers are chosen from their scores."""

from __future__ import annotations

import math

import pytest

from kdsteps.errors import KdstepsError
from kdsteps.scores.selection import choose_layers

QUALITY = {"stem": 0.3, "block1": 0.9, "block2": 1.4, "block3": 1.1, "block4": 0.9}
SCORES = {layer: {"quality": value, "separation": -value} for layer, value in QUALITY.items()}


def test_the_highest_are_chosen_in_order_of_depth():
    choices = choose_layers(SCORES, count=2)
    assert [(c.layer, c.depth, c.rank, c.score) for c in choices] == [
        ("block2", 2, 1, 1.4),
        ("block3", 3, 2, 1.1),
    ]


def test_another_score_can_decide():
    assert [c.layer for c in choose_layers(SCORES, by="separation", count=1)] == ["stem"]


def test_of_equal_layers_the_deeper_is_chosen():
    assert [c.layer for c in choose_layers(SCORES, count=3)] == ["block2", "block3", "block4"]


def test_all_layers_can_be_chosen():
    choices = choose_layers(SCORES, count=5)
    assert [c.layer for c in choices] == list(SCORES)
    assert sorted(c.rank for c in choices) == [1, 2, 3, 4, 5]


def test_a_choice_says_why():
    first, second = choose_layers(SCORES, count=2)
    assert first.reason == "quality 1.400 is the highest of 5 layers"
    assert second.reason == "quality 1.100 is the 2nd highest of 5 layers"


def test_ranks_are_written_as_ordinals():
    many = {f"block{i}": {"quality": -float(i)} for i in range(24)}
    reasons = [choice.reason for choice in choose_layers(many, count=24)]
    written = [reason.split(" the ")[1].split(" ")[0] for reason in reasons[1:]]
    assert written[:3] == ["2nd", "3rd", "4th"]
    assert written[9:12] == ["11th", "12th", "13th"]
    assert written[19:22] == ["21st", "22nd", "23rd"]


def test_more_layers_than_were_scored_are_refused():
    with pytest.raises(KdstepsError, match="6 layers should be selected, but 5 were scored"):
        choose_layers(SCORES, count=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "at least 1, not 0"),
        ({"count": 1, "by": "depth"}, "not 'depth'"),
        ({"count": 1, "by": "information"}, "stem has no score 'information'"),
    ],
)
def test_misuse_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        choose_layers(SCORES, **options)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="block1: its quality is nan"):
        choose_layers({"stem": {"quality": 1.0}, "block1": {"quality": math.nan}}, count=1)
