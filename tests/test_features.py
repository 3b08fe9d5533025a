"""A teacher's features on disk: what is read is what the teacher gave, or a sentence."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch

from kdsteps.data.images import ImageSplit
from kdsteps.errors import KdstepsError
from kdsteps.models import build_model
from kdsteps.models.feature_shapes import feature_shapes
from kdsteps.teachers import features
from kdsteps.teachers.features import FeatureFile, balanced_sample, forecast_bytes, write_features


def teacher():
    torch.manual_seed(0)
    options = {"depth": 8, "widths": [2, 2, 4, 6]}
    return build_model("cifar_resnet", num_classes=3, in_channels=1, image_size=8, **options).eval()


def images(count: int = 30) -> ImageSplit:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSplit(pixels, torch.arange(count) % 3, torch.tensor([0.5]), torch.tensor([0.25]))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "features.parquet"
    index = torch.tensor([1, 4, 5, 8, 20, 29])
    write_features(path, teacher(), images(), index, {"cache": {"images": 6}})
    return path, index


def test_features_read_back_are_those_of_the_teacher_in_float16(written):
    path, index = written
    file = FeatureFile(path)
    part = images()
    traced = teacher().trace(part.normalized(part.images[index]))
    assert list(file.shapes) == list(teacher().layers)
    assert torch.equal(file.labels(), part.labels[index])
    for layer in file.shapes:
        found = torch.cat(list(file.chunks(layer, width=7)), dim=1)
        assert torch.equal(found, traced[layer].flatten(1).half().float()), layer


def test_a_layer_is_one_row_group_and_few_layers_are_held_at_once(written, tmp_path, monkeypatch):
    path, index = written
    assert pq.ParquetFile(path).num_row_groups == len(teacher().layers)
    monkeypatch.setattr(features, "HELD_BYTES", 1)  # one layer at a time
    again = tmp_path / "again.parquet"
    write_features(again, teacher(), images(), index, {"cache": {"images": 6}})
    assert again.read_bytes() == path.read_bytes()


def test_the_forecast_is_two_bytes_a_number():
    found = feature_shapes(teacher(), (1, 8, 8))
    numbers = 2 * 64 + 2 * 64 + 4 * 16 + 6 * 4 + 6  # stem, three stages, pool
    assert forecast_bytes(found, num_images=10) == 2 * 10 * numbers


def test_a_sample_is_balanced_sorted_and_the_same_for_a_seed():
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 3)
    index = balanced_sample(labels, 30, seed=0)
    assert torch.bincount(labels[index]).tolist() == [10, 10, 3]
    assert torch.equal(index, index.sort().values)
    assert torch.equal(index, balanced_sample(labels, 30, seed=0))
    assert not torch.equal(index, balanced_sample(labels, 30, seed=1))


def test_features_that_float16_cannot_hold_are_refused(tmp_path):
    large = teacher()
    with torch.no_grad():
        large.conv1.weight.mul_(1e12)
    with pytest.raises(KdstepsError, match="more than float16 holds"):
        write_features(tmp_path / "f.parquet", large, images(), torch.arange(6), {})
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_noticed(written):
    path, _ = written
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(3)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)

    def read_all() -> None:
        for layer in FeatureFile(path).shapes:
            list(FeatureFile(path).chunks(layer))

    with pytest.raises(KdstepsError, match=r"features\.parquet"):
        read_all()
