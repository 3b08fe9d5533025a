"""Every method with networks that were cut by their graphs, as teacher, as student, as both."""

from __future__ import annotations

import json

import pytest
import torch
from _methods import batch_of, make, step
from _networks import CUT_ENTRIES, ENTRIES, NUM_CLASSES, build

from kdsteps.methods.base import Task
from kdsteps.methods.simkd import SimKD
from kdsteps.models import build_model
from kdsteps.study import registry

PAIRS = [
    ("large resnet", "torchvision mobilenet"),
    ("timm vit", "timm resnet"),
    ("timm resnet", "timm vit"),
]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
@pytest.mark.parametrize("name", registry.names("methods"))
def test_a_method_trains_a_cut_network_that_can_be_built_again(name, pair):
    method = make(name, pair)
    for number in range(2):
        for term, value in step(method, batch_of(number)).items():
            assert value.isfinite(), term
    deployed = method.deployed().eval()
    entries = ENTRIES | CUT_ENTRIES
    entry = method.deployed_entry(entries[pair[1]], entries[pair[0]])
    again = build(json.loads(json.dumps(entry))).eval()
    again.plain().load_state_dict(deployed.plain().state_dict())
    images = batch_of(2).images
    assert torch.equal(again(images), deployed(images))


@pytest.mark.slow
def test_what_simkd_deploys_follows_its_own_mode_and_the_teacher_keeps_its_own():
    method = make("simkd", ("timm vit", "timm vit"))  # its attention drops out by a function
    deployed, images = method.deployed(), batch_of().images
    deployed.eval()
    assert torch.equal(deployed(images), deployed(images))
    deployed.train()
    assert method.student.training
    assert not any(module.training for module in method.teacher.modules())
    front = deployed.front("front")
    assert not torch.equal(front(images), front(images))


@pytest.mark.parametrize(
    ("name", "last_map"), [("mobilenetv3_small_050", "blocks.5"), ("test_efficientnet", "bn2")]
)
def test_simkd_matches_the_last_map_even_where_the_pooled_one_is_a_map_too(name, last_map):
    chain = build_model("timm", name=name, num_classes=NUM_CLASSES, image_size=64)
    assert chain.layers[-1] in ("act2", "global_pool")  # pooled: (N, C, 1, 1) and (N, C)
    method = SimKD(chain, chain, Task((3, 64, 64), NUM_CLASSES, torch.arange(NUM_CLASSES)))
    assert (method.student_layer, method.teacher_layer) == (last_map, last_map)
    assert method.target.size == (2, 2)
