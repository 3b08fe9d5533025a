"""Batches: what a view shows, and that a batch can be made again."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as vision

from kdsteps.data.images import ImageSplit, Views

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def noise(count: int, channels: int = 3, height: int = 5, width: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def part(images: torch.Tensor, **options: object) -> ImageSplit:
    channels = images.shape[1]
    labels = torch.arange(len(images)) % 3
    return ImageSplit(images, labels, MEAN[:channels], STD[:channels], **options)


def by_torchvision(
    image: torch.Tensor, views: Views, view: int, size: tuple[int, int]
) -> torch.Tensor:
    steps = 2 * views.crop_padding + 1
    padded = vision.pad(image, [views.crop_padding] * 4)
    down, right = view // steps % steps, view % steps
    top, left = (image.shape[1] - size[0]) // 2, (image.shape[2] - size[1]) // 2
    cropped = vision.crop(padded, top + down, left + right, *size)
    return vision.hflip(cropped) if view // steps**2 else cropped


@pytest.mark.parametrize(
    "views", [Views(), Views(2, True), Views(1, False), Views(0, True), Views(5, True)]
)
@pytest.mark.parametrize("size", [(5, 4), (3, 4), (2, 1)], ids=["whole", "lower", "small"])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_every_view_is_padding_crop_and_flip_as_torchvision_does_them(views, memory_format, size):
    image = noise(1)
    every = torch.arange(views.count)
    images = image.expand(views.count, -1, -1, -1).contiguous(memory_format=memory_format)
    expected = torch.stack(
        [by_torchvision(image[0], views, view, size) for view in range(views.count)]
    )
    assert torch.equal(views.show(images, every, size=size), expected)
    assert torch.equal(views._gathered(images, every, size), expected)  # as on other devices


def test_views_of_an_image_without_symmetry_all_differ():
    views = Views(2, True)
    shown = views.show(noise(1).expand(views.count, -1, -1, -1), torch.arange(views.count))
    assert views.count == 50
    assert len({bytes(image.numpy().tobytes()) for image in shown}) == views.count


def test_showing_some_images_is_showing_them_alone():
    images, index = noise(9), torch.tensor([4, 4, 0])
    views, view = Views(1, True), torch.tensor([17, 3, 8])
    assert torch.equal(views.show(images, view, index), views.show(images[index], view))


def test_drawn_views_reach_all_there_are_evenly():
    views = Views(1, True)
    drawn = views.draw(18_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=views.count)
    assert len(counts) == 18
    assert counts.min() > 850  # of 1,000 expected; five standard deviations are 154
    assert counts.max() < 1150


def test_stored_images_that_are_larger_are_seen_at_their_center():
    images = noise(2, height=6, width=9)
    whole = part(images, size=(4, 5))
    batch = next(whole.in_order(2))
    assert whole.image_shape == (3, 4, 5)
    assert torch.equal(batch.images, whole.normalized(images[:, :, 1:5, 2:7]))


def test_one_view_for_each_image_is_needed():
    with pytest.raises(ValueError, match="2 views for 3 images"):
        Views(1).show(noise(3), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_batches_are_normalized_as_torchvision_does_it(channels, memory_format):
    images = noise(4, channels)
    batch = part(images, memory_format=memory_format).take(
        torch.arange(4), Views(), torch.zeros(4, dtype=torch.int64)
    )
    expected = vision.normalize(images / 255, MEAN[:channels].tolist(), STD[:channels].tolist())
    assert torch.allclose(batch.images, expected, atol=1e-6)
    assert batch.images.is_contiguous(memory_format=memory_format)


def test_the_stored_images_are_left_as_they_are():
    images = noise(6)
    before, whole = images.clone(), part(images)
    for _ in whole.shuffled(2, Views(1, True), torch.Generator().manual_seed(0)):
        pass
    list(whole.in_order(2))
    assert torch.equal(images, before)


def test_images_in_order_come_once_each_with_their_labels():
    batches = list(part(noise(7)).in_order(3))
    assert [len(batch.labels) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(7))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), torch.arange(7) % 3)


def test_shuffled_images_come_once_each_and_an_incomplete_batch_is_left_out():
    batches = list(part(noise(11)).shuffled(3, Views(1), torch.Generator().manual_seed(0)))
    index = torch.cat([batch.index for batch in batches])
    assert [len(batch.labels) for batch in batches] == [3, 3, 3]
    assert len(index.unique()) == 9
    assert not torch.equal(index, index.sort().values)


def test_a_batch_larger_than_the_part_is_the_whole_part():
    batches = list(part(noise(4)).shuffled(64, Views(), torch.Generator().manual_seed(0)))
    assert [len(batch.labels) for batch in batches] == [4]


def test_no_images_give_no_batches():
    empty = part(noise(1)[:0])
    assert list(empty.in_order(4)) == []


def test_a_batch_of_the_loop_can_be_taken_again_by_index_and_view():
    whole, views = part(noise(8)), Views(1, True)
    for batch in whole.shuffled(4, views, torch.Generator().manual_seed(3)):
        again = whole.take(batch.index, views, batch.view)
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.labels, again.labels)


def test_skipped_batches_leave_the_rest_and_the_generator_as_they_were():
    whole, views = part(noise(12)), Views(1, True)
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    complete = list(whole.shuffled(3, views, one))
    rest = list(whole.shuffled(3, views, other, skip=2))
    assert len(rest) == 2
    for batch, again in zip(complete[2:], rest, strict=True):
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.view, again.view)
    assert torch.equal(one.get_state(), other.get_state())


def test_a_seed_decides_order_and_views():
    whole, views = part(noise(12)), Views(1, True)

    def index_and_view(seed: int) -> torch.Tensor:
        batches = whole.shuffled(3, views, torch.Generator().manual_seed(seed))
        return torch.cat([torch.stack((batch.index, batch.view)) for batch in batches], dim=1)

    assert torch.equal(index_and_view(1), index_and_view(1))
    assert not torch.equal(index_and_view(1), index_and_view(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_batches_as_a_cpu():
    images, views = noise(12), Views(2, True)
    labels = torch.arange(12)
    here = ImageSplit(images, labels, MEAN, STD)
    there = ImageSplit(images.cuda(), labels.cuda(), MEAN, STD)
    seeds = (torch.Generator().manual_seed(1) for _ in range(2))
    ours, theirs = (
        list(p.shuffled(4, views, s)) for p, s in zip((here, there), seeds, strict=True)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert other.images.is_cuda
        assert torch.allclose(one.images, other.images.cpu(), atol=1e-6)
        assert torch.equal(one.index, other.index.cpu())
