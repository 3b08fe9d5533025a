"""Teachers of other classes than the data set's: in another order, or some of many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _entries import data_of, model

from kdsteps.errors import KdstepsError
from kdsteps.models import Chain, build_model
from kdsteps.models.input import InputChain
from kdsteps.stages._shared import as_built, fresh_model
from kdsteps.study.settings import Model

NET: dict[str, Any] = {"family": "cifar_resnet", "depth": 8, "widths": [2, 2, 2, 2]}
DATA = data_of(8, 8, ("ant", "bee", "cat"))
NUM_OUTPUTS = 7


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": teacher().plain().state_dict()}, "theirs.pt")


def teacher() -> Chain:
    """A network of seven outputs; always the same weights."""
    torch.manual_seed(0)
    options = {key: value for key, value in NET.items() if key != "family"}
    return build_model("cifar_resnet", num_classes=NUM_OUTPUTS, **options).eval()


def entry(classes: Any, **more: Any) -> Model:
    return model(**NET | {"checkpoint": "theirs.pt", "classes": classes} | more)


def logits(chain: Chain) -> torch.Tensor:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = chain.eval()(images)
    return found


NAMES = ["dog", "bee", "cow", "cat", "elk", "ant", "fox"]


@pytest.mark.parametrize("normalize", ["dataset", "none"])
@pytest.mark.parametrize("classes", [NAMES, [5, 1, 3]], ids=["names", "numbers"])
def test_each_class_of_the_data_set_has_the_logit_of_its_own_output(classes, normalize):
    chain = fresh_model(entry(classes, normalize=normalize), DATA)
    whole = chain.chain if isinstance(chain, InputChain) else chain
    assert torch.equal(logits(whole), logits(teacher())[:, [5, 1, 3]])
    images = torch.randn(2, 3, 8, 8)
    for layer in chain.layers:
        joined = chain.tail(layer)(chain.front(layer)(images))
        assert torch.equal(joined, chain(images))


@pytest.mark.parametrize("classes", [NAMES, [5, 1, 3]], ids=["names", "numbers"])
def test_the_outputs_are_known_without_the_weights_it_started_from(classes):
    chain = fresh_model(entry(classes), DATA)
    built = as_built(entry(classes), chain, DATA)
    assert built.classes is not None and len(built.classes) == NUM_OUTPUTS
    options = {key: value for key, value in built.options.items() if key != "checkpoint"}
    text = built.model_copy(update={"options": options}).model_dump_json()
    Path("theirs.pt").unlink()
    again = fresh_model(Model.model_validate_json(text, strict=True), DATA)
    again.plain().load_state_dict(chain.plain().state_dict())
    assert torch.equal(logits(again), logits(chain))


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([5, 1], r"has 2 numbers for 3 classes; .* in the order ant, bee, cat"),
        ([5, 1, 7], r"output 7 of a network with 7 outputs; .* from 0 to 6"),
        (["dog", "bee", "catt"], r"has no 'ant'"),
        (["ant", "bee", "catt"], r"has no 'cat', .*; did you mean 'catt'"),
    ],
)
def test_classes_that_do_not_fit_the_data_are_a_sentence(classes, said):
    with pytest.raises(KdstepsError, match=f"classes: .*{said}"):
        fresh_model(entry(classes), DATA)


def test_numbers_of_outputs_need_weights():
    said = r"models\.big\.classes are numbers .*; set checkpoint or pretrained, or list the names"
    with pytest.raises(KdstepsError, match=said):
        entry([0, 1, 2], checkpoint=None)


def test_a_checkpoint_without_a_classifier_has_no_known_number_of_outputs():
    state = teacher().plain().state_dict()
    torch.save({name: state[name] for name in state if not name.startswith("fc")}, "theirs.pt")
    with pytest.raises(KdstepsError, match=r"theirs\.pt: has no classifier .*list the names"):
        fresh_model(entry([5, 1, 3]), DATA)


def test_published_weights_say_how_many_outputs_they_have():
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    published = timm.create_model("test_resnet", num_classes=NUM_OUTPUTS).eval()
    config = {"num_classes": NUM_OUTPUTS, "mean": [0.5] * 3, "std": [0.5] * 3}
    text = json.dumps({"architecture": "test_resnet", **config, "pretrained_cfg": config})
    Path("config.json").write_text(text)
    save_file(published.state_dict(), "model.safetensors")
    own = {"family": "timm", "name": "local-dir:.", "pretrained": True, "classes": [6, 0, 2]}
    chain = fresh_model(model(**own, normalize="dataset"), DATA)
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(chain.eval()(images), published(images)[:, [6, 0, 2]])


def test_an_own_network_may_have_outputs_of_its_own(tmp_path):
    (tmp_path / "nets.py").write_text(
        """
from torch import nn

def wide(num_classes):
    features = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*features, nn.Linear(4, num_classes))

def fixed():
    return wide(9)
"""
    )
    chain = fresh_model(model(family="./nets.py:fixed", classes=[8, 0, 4]), DATA).eval()
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(chain(images), chain.plain()(images)[:, [8, 0, 4]])
    with pytest.raises(KdstepsError, match=r"classes: are numbers, .*wide is not known .*list"):
        fresh_model(model(family="./nets.py:wide", classes=[8, 0, 4]), DATA)
