"""A batch computed in parts: the same step where losses and networks treat images one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _commands import REPOSITORY, STUDY
from _methods import CASES, batch_of, make
from _training import RECIPE, fit_of, images, same_bytes, weights
from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.methods.base import Method
from kdsteps.study import registry
from kdsteps.study.loading import parse_study
from kdsteps.training.loop import Fit
from kdsteps.training.recorded import can_record

WITHOUT_BATCH_NORM = ("large vit", "vit")


def run_of(method: Method, **recipe: Any) -> Fit:
    recipe = {"epochs": 1, **recipe}
    fit = Fit(method, images(), RECIPE.model_copy(update=recipe), seed=0, validate=dict)
    fit.run()
    return fit


def test_by_default_a_step_is_that_of_the_plain_loop():
    fit = fit_of("kd", epochs=2, schedule="constant")
    plain = fit_of("kd", epochs=2, schedule="constant")
    fit.run()
    optimizer = torch.optim.SGD(
        plain.method.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=False
    )
    plain.method.train()
    for _ in range(2):
        for drawn in plain.split.shuffled(8, plain.views, plain.generator):
            terms = plain.method.terms(plain._batch(drawn, {}))
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
    assert same_bytes(weights(fit), weights(plain))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", ["labels", "kd", "at"])
def test_without_batch_norm_parts_give_the_weights_of_the_whole_batch(name, count):
    whole = run_of(make(name, WITHOUT_BATCH_NORM))
    parts = run_of(make(name, WITHOUT_BATCH_NORM), accumulate=count)
    start = make(name, WITHOUT_BATCH_NORM).state_dict()
    assert parts.history.of("total") == pytest.approx(whole.history.of("total"), rel=1e-5)
    for key, value in parts.method.state_dict().items():
        torch.testing.assert_close(value, whole.method.state_dict()[key], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(value, start[key]) for key, value in weights(parts).items())


def test_batch_norm_sees_every_part_as_a_batch():
    fit, alone = fit_of("labels", accumulate=2, learning_rate=1e-9), fit_of("labels")
    drawn = next(iter(fit.split.batches(fit.split.orders(8, fit.views, fit.generator), fit.views)))
    fit.method.train(), alone.method.train()
    fit.take_step(drawn)
    with torch.no_grad():
        for part in drawn.images.split(4):
            alone.method.student(part)
    norms = [m for m in fit.method.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(norm.num_batches_tracked == 2 for norm in norms)
    theirs = dict(alone.method.named_buffers())
    for name, value in fit.method.named_buffers():
        torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if case[1].get("norm") != "batch"]
)
def test_a_method_says_whether_its_loss_is_a_mean_over_images(name, options):
    method = make(name, **options).eval()
    batch = batch_of()
    whole = sum(method.terms(batch).values())  # of crd, also fixes its normalizers
    torch.manual_seed(1)
    parts = [sum(method.terms(part).values()) for part in batch.split(2)]
    equal = torch.allclose(sum(parts) / 2, whole, rtol=1e-4)
    compares = registry.find("methods", name, name).compares_images(options)
    if name in ("crd", "embedding"):  # in training, memories change from part to part
        assert compares
    else:
        assert equal != compares


def test_the_documentation_names_every_method_that_refuses_parts():
    page = (REPOSITORY / "docs/gpus-and-clusters.md").read_text()
    listed = page.partition("images of a batch refuse it:")[2].partition("\n\n")[0]
    found = {name for name in registry.names("methods") if f"`{name}`" in listed}
    described = {name: registry.find("methods", name, name) for name in registry.names("methods")}
    assert found == {name for name, part in described.items() if part.described.compares_images}


def test_a_step_in_parts_is_not_recorded(monkeypatch):
    fit = fit_of("kd")
    monkeypatch.setattr(type(fit.split), "device", torch.device("cuda"))
    assert can_record(fit.method, fit.split, fit.recipe, 100)
    parts = fit.recipe.model_copy(update={"accumulate": 2})
    assert not can_record(fit.method, fit.split, parts, 100)


@pytest.mark.parametrize(
    ("name", "options"),
    [("rkd", {}), ("dist", {}), ("crd", {}), ("block_kd", {"distance": "dist"})],
)
def test_a_method_that_compares_images_refuses_parts_while_planning(name, options):
    methods = {"mine": {"method": name, **options}}
    for section in ("distil", "methods.mine.distil"):
        given = STUDY | {"methods": methods}
        if section == "distil":
            given |= {"distil": STUDY["distil"] | {"accumulate": 2}}
        else:
            given["methods"] = {"mine": methods["mine"] | {"distil": {"accumulate": 2}}}
        with pytest.raises(KdstepsError, match=rf"methods.mine: {name} .* {section}.accumulate is"):
            parse_study(given)
    off = {"mine": methods["mine"] | {"distil": {"accumulate": 1}}}
    parse_study(STUDY | {"methods": off, "distil": STUDY["distil"] | {"accumulate": 2}})


@pytest.mark.parametrize(("line", "refused"), [("pass", True), ("compares_images = False", False)])
def test_a_method_of_ones_own_has_to_say_that_it_does_not_compare_images(
    tmp_path, monkeypatch, line, refused
):
    (tmp_path / "mine.py").write_text(
        f"from kdsteps.methods.kd import KD\n\n\nclass Mine(KD):\n    {line}\n"
    )
    monkeypatch.chdir(tmp_path)
    study = STUDY | {"methods": {"mine": {"method": "./mine.py:Mine", "distil": {"accumulate": 2}}}}
    if refused:
        with pytest.raises(KdstepsError, match="compares_images = False"):
            parse_study(study)
    else:
        parse_study(study)


@pytest.mark.parametrize("section", ["train", "distil"])
def test_a_batch_that_has_no_equal_parts_is_refused(section):
    changed = STUDY[section] | {"batch_size": 64, "accumulate": 3}
    with pytest.raises(KdstepsError, match=rf"{section}: accumulate is 3 and batch_size is 64"):
        parse_study(STUDY | {section: changed})
