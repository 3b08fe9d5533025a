"""Every recipe is a whole study, and those of real images read them from where they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from _pictures import REAL, prepared

from kdsteps.models import build_model
from kdsteps.study.loading import load_study

RECIPES = {path.stem: path for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml")}


def prepare_recipe(name, tmp_path, monkeypatch):
    """The images of a recipe, with `data` linked to where they are, as its first lines ask for."""
    study = load_study(RECIPES[name])
    (tmp_path / "data").symlink_to(REAL)
    monkeypatch.chdir(tmp_path)
    (entry,) = study.datasets.values()
    section = study.params.prepare.model_dump()
    return prepared(tmp_path / "out", entry.kind, entry.options, **section)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_a_valid_study_of_networks_that_can_be_built(name):
    study = load_study(RECIPES[name])
    compared_with_live = study.params.cache.draws is not None
    variants = study.params.report.references is not None
    assert "labels" in study.methods or compared_with_live or variants
    for model in study.models.values():
        if not model.options.get("pretrained"):  # whose weights would be fetched
            build_model(model.family, num_classes=10, image_size=32, **model.options)


@pytest.mark.skipif(not (REAL / "FashionMNIST").is_dir(), reason="needs shared/data/FashionMNIST")
def test_the_recipe_for_fashion_mnist_reads_its_files_without_a_network(tmp_path, monkeypatch):
    data, summary = prepare_recipe("fashion-mnist", tmp_path, monkeypatch)
    assert data.image_shape == (1, 28, 28)
    assert summary["images_of_class"]["test"] == [600] * 10
    assert summary["images"] == {"train": 5400, "validation": 600, "test": 6000}


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "cifar100").is_dir(), reason="needs shared/data/cifar100")
def test_the_small_recipe_for_cifar_100_takes_as_many_images_of_every_class(tmp_path, monkeypatch):
    data, summary = prepare_recipe("cifar100-small", tmp_path, monkeypatch)
    assert data.num_classes == 100
    assert summary["images_of_class"]["train"] == [90] * 100
    assert summary["images_of_class"]["validation"] == [10] * 100
    assert summary["images_of_class"]["test"] == [100] * 100
