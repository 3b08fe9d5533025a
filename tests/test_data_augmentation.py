"""Augmentation beyond views, and parts that stream: the same protocol, the same batches."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kdsteps.data.augmentation import Augmentation
from kdsteps.data.images import ImageSplit, Views
from kdsteps.data.streaming import StreamedSplit

MEAN, STD = torch.full((3,), 0.5), torch.full((3,), 0.25)
PIXELS = [Augmentation(randaugment=9), Augmentation(resized_crop=0.3)]


def noise(count: int, side: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def resident(count: int = 12) -> ImageSplit:
    return ImageSplit(noise(count), torch.arange(count) % 4, MEAN, STD)


def streamed(tmp_path, count: int = 12, workers: int = 0) -> StreamedSplit:
    """The same images, at every second row of a store on the disk."""
    store = np.zeros((2 * count, 3, 8, 8), np.uint8)
    store[::2] = noise(count).numpy()
    np.save(tmp_path / "images.npy", store)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    rows = np.arange(0, 2 * count, 2)
    return StreamedSplit(mapped, rows, torch.arange(count) % 4, MEAN, STD, workers=workers)


def epoch(part: ImageSplit, augmentation: Augmentation, seed: int = 0, skip: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    views = Views(1, True)
    return list(part.shuffled(4, views, generator, augmentation=augmentation, skip=skip))


def same(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(one.images, other.images)
        and torch.equal(one.targets, other.targets)
        and torch.equal(one.index, other.index)
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(
    "augmentation", [Augmentation(), *PIXELS, Augmentation(num_classes=4, mixup=1.0)]
)
def test_a_streamed_part_gives_the_batches_of_a_resident_one(tmp_path, augmentation):
    assert same(epoch(streamed(tmp_path), augmentation), epoch(resident(), augmentation))


def test_worker_processes_change_nothing(tmp_path):
    augmentation = Augmentation(randaugment=9)
    assert same(epoch(streamed(tmp_path, workers=2), augmentation), epoch(resident(), augmentation))


@pytest.fixture
def forkserver() -> Iterator[None]:
    """The way to start processes that Python 3.14 uses if none is named."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


class NeverSent(np.memmap):
    def __reduce__(self):
        raise AssertionError("a worker is sent all images")


def test_no_worker_process_is_sent_all_images(tmp_path, forkserver):
    part = streamed(tmp_path, workers=1)
    part.store = part.store.view(NeverSent)
    assert same(epoch(part, Augmentation()), epoch(resident(), Augmentation()))


def test_a_streamed_part_gives_its_images_in_order_and_by_index(tmp_path):
    part, whole = streamed(tmp_path), resident()
    assert same(list(part.in_order(5)), list(whole.in_order(5)))
    index, view = torch.tensor([3, 1]), torch.tensor([2, 17])
    assert same([part.take(index, Views(1, True), view)], [whole.take(index, Views(1, True), view)])
    assert part.image_shape == whole.image_shape
    assert len(part) == len(whole)


def test_streaming_leaves_the_global_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    epoch(streamed(tmp_path), Augmentation(randaugment=9, resized_crop=0.5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("augmentation", PIXELS)
def test_distorted_batches_hang_on_the_seed_and_nothing_else(augmentation):
    first = epoch(resident(), augmentation)
    torch.manual_seed(1234)
    assert same(first, epoch(resident(), augmentation))
    assert not same(first, epoch(resident(), augmentation, seed=1))
    assert same(first[1:], epoch(resident(), augmentation, skip=1))


@pytest.mark.parametrize("augmentation", PIXELS)
def test_distorting_changes_pixels_and_neither_shape_nor_type(augmentation):
    images = noise(6)
    changed = augmentation.pixels(images, torch.arange(6), seed=3)
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    assert not torch.equal(changed, images)


def test_a_crop_of_random_size_reaches_the_border_that_networks_do_not_see():
    """Stored images are black outside of the center, which alone is seen without augmentation."""
    images = torch.zeros(64, 3, 12, 12, dtype=torch.uint8)
    images[:, :, 2:10, 2:10] = 200
    part = ImageSplit(images, torch.zeros(64, dtype=torch.int64), MEAN, STD, size=(8, 8))
    plain = next(part.shuffled(64, Views(), torch.Generator()))
    cropped = next(
        part.shuffled(64, Views(), torch.Generator(), augmentation=Augmentation(resized_crop=0.3))
    )
    assert plain.images.shape == cropped.images.shape == (64, 3, 8, 8)
    assert plain.images.min() > 0 > cropped.images.min()


def test_gray_images_can_be_distorted():
    gray = noise(4)[:, :1]
    changed = Augmentation(randaugment=9, resized_crop=0.5).pixels(gray, torch.arange(4), seed=0)
    assert changed.shape == gray.shape


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_say_how_much_of_each_image_is_seen(kind):
    """Four images of one color each: the mean of a mixed one tells what it was made of."""
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 16, 16)
    mixed, targets = Augmentation(num_classes=4, **{kind: 1.0}).mixed(
        images, torch.arange(4), seed=5
    )
    assert torch.allclose(targets.sum(dim=1), torch.ones(4))
    assert (targets < 1).any()
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(4.0), atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_a_label_stays_what_its_image_mostly_shows(seed):
    augmentation = Augmentation(num_classes=3, mixup=0.5, cutmix=1.0)
    labels = torch.tensor([0, 1, 2, 1])
    _, targets = augmentation.mixed(torch.rand(4, 1, 8, 8), labels, seed)
    assert torch.equal(targets.argmax(dim=1), labels)


def test_mixup_and_cutmix_take_turns():
    augmentation = Augmentation(num_classes=2, mixup=1.0, cutmix=1.0)
    images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 8, 8)
    mixed = [augmentation.mixed(images, torch.arange(2), seed)[0] for seed in range(40)]
    patched = [set(batch.unique().tolist()) <= {0.0, 1.0} for batch in mixed]
    assert 8 < sum(patched) < 32


def test_without_mixing_the_targets_are_the_labels():
    batch = next(resident().in_order(12))
    assert torch.equal(batch.targets, batch.labels)


def test_only_what_is_switched_on_changes_or_mixes_images():
    for augmentation, found in (
        (Augmentation(num_classes=10), (False, False)),
        (Augmentation(randaugment=1), (True, False)),
        (Augmentation(num_classes=10, cutmix=0.5), (False, True)),
    ):
        assert (augmentation.changes_pixels, augmentation.mixes) == found


def test_images_without_labels_are_mixed_too():
    images, unknown = torch.rand(4, 1, 2, 2), torch.full((4,), -1)
    mixed, targets = Augmentation(mixup=0.5).mixed(images, unknown, seed=1)
    expected, _ = Augmentation(num_classes=3, mixup=0.5).mixed(images, unknown + 1, seed=1)
    assert torch.equal(mixed, expected)
    assert not torch.equal(mixed, images)
    assert targets is unknown
