"""mixup and CutMix: right by a method's definition, or refused while planning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _commands import STUDY, command, write_study
from _methods import batch_of, make
from _networks import NUM_CLASSES

from kdsteps.errors import KdstepsError
from kdsteps.study import registry
from kdsteps.study.loading import parse_study

METHODS = [(name, {}) for name in registry.names("methods")]
METHODS += [("block_kd", {"distance": "dkd"}), ("block_kd", {"distance": "dist"})]
METHODS += [("contrastive_logits", {"views": views}) for views in (["class"], ["instance"])]
ONE_CLASS = ("dkd", "loca", "crd", "sld", "contrastive_logits")


def refusal_while_planning(name: str, options: dict[str, Any], **recipe: float) -> str | None:
    methods = {"labels": {}, name: options | {"distil": recipe}}
    try:
        parse_study(STUDY | {"methods": methods})
    except KdstepsError as error:
        return str(error)
    return None


def refusal_of_a_batch(name: str, options: dict[str, Any]) -> str | None:
    batch = batch_of()
    fractions = F.one_hot(batch.labels, NUM_CLASSES).float()
    mixed = replace(batch, fractions=fractions.roll(1, dims=0).lerp(fractions, 0.7))
    try:
        terms = make(name, **options).terms(mixed)
    except KdstepsError as error:
        return str(error)
    assert all(torch.isfinite(term) for term in terms.values())
    return None


@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
def test_planning_refuses_mixing_for_just_the_methods_that_cannot_learn_from_mixed_images(
    name, options
):
    refused = refusal_of_a_batch(name, options) is not None
    reads_labels = name in ONE_CLASS and options != {"views": ["instance"]}
    assert refused == (reads_labels or options == {"distance": "dkd"})
    for kind in ("mixup", "cutmix"):
        said = refusal_while_planning(name, options, **{kind: 0.2})
        assert (said is not None) == refused
        if said is not None:
            assert f"params.yaml: methods.{name}: {name} needs images of one class" in said
            assert f"methods.{name}.distil.{kind} is 0.2" in said
            assert "set `distil: {mixup: 0, cutmix: 0}` here" in said
    assert refusal_while_planning(name, options, mixup=0, cutmix=0) is None


@pytest.mark.parametrize("section", ["distil", "pairs.pair.distil"])
def test_the_message_names_the_section_that_mixes(section):
    pair = STUDY["pairs"]["pair"]
    given = {
        "distil": {"distil": {"cutmix": 1.0}},
        "pairs.pair.distil": {"pairs": {"pair": pair | {"distil": {"cutmix": 1.0}}}},
    }[section]
    methods = {"soft": {"method": "dkd"}}
    with pytest.raises(KdstepsError, match=rf"methods.soft: dkd .*, and {section}.cutmix is 1;"):
        parse_study(STUDY | given | {"methods": methods})
    methods["soft"]["distil"] = {"cutmix": 0}
    parse_study(STUDY | given | {"methods": methods})


def test_planning_ends_with_one_sentence(tmp_path):
    write_study(tmp_path, methods={"dkd": {"distil": {"mixup": 0.2}}})
    said = command(tmp_path, "resolve")
    assert said.returncode == 2
    assert "methods.dkd.distil.mixup is 0.2" in said.stderr
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("one_class", "refused"), [("", True), ("False", False), ("{'power': 2}", True)]
)
def test_a_method_of_ones_own_says_whether_it_needs_images_of_one_class(
    tmp_path, monkeypatch, one_class, refused
):
    (tmp_path / "mine.py").write_text(
        "from kdsteps.methods.dkd import DKD\n\n\nclass Mine(DKD):\n"
        + (f"    one_class = {one_class}\n\n" if one_class else "")
        + "    def __init__(self, *given, power: int = 2, **options):\n"
        "        super().__init__(*given, **options)\n"
    )
    monkeypatch.chdir(tmp_path)
    methods = {"mine": {"method": "./mine.py:Mine", "distil": {"mixup": 0.2}}}
    if refused:
        with pytest.raises(KdstepsError, match=r"methods.mine: ./mine.py:Mine needs images of one"):
            parse_study(STUDY | {"methods": methods})
    else:
        parse_study(STUDY | {"methods": methods})
    methods["mine"]["power"] = 3
    if one_class == "{'power': 2}":
        parse_study(STUDY | {"methods": methods})


def test_a_wrong_one_class_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from kdsteps.methods.kd import KD\n\n\nclass Mine(KD):\n    one_class = 'never'\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdstepsError, match=r"one_class is 'never'; it should be True, False or"):
        parse_study(STUDY | {"methods": {"mine": {"method": "./mine.py:Mine"}}})
