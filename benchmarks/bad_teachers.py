"""What a bad teacher among four costs the student, for every way to combine their logits.

    python benchmarks/bad_teachers.py docs/findings/bad-teachers.csv

Four teachers are trained on half of the digits. The logits of one of them are then made bad in one
of seven ways, those of all four are combined, and students learn from the result: one for each way,
combination and seed. A row of the file is one student. Rows that are there already are not made
again. One core needs about eight minutes.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdsteps.data.images import ImageBatch, ImageSplit, Views
from kdsteps.data.prepared import Prepared, load_prepared
from kdsteps.evaluation.predictions import accuracy, predict
from kdsteps.jobs.job import Job
from kdsteps.jobs.settings import PrepareSettings
from kdsteps.methods.base import Method, Task
from kdsteps.methods.kd import KD
from kdsteps.methods.labels import Labels
from kdsteps.models import Chain, build_model
from kdsteps.models.chain import HEAD
from kdsteps.stages import prepare
from kdsteps.study.settings import Prepare
from kdsteps.study.training_settings import Distil
from kdsteps.teachers.audit import audit_teachers
from kdsteps.teachers.combining import Combining, combined_logits
from kdsteps.training.loop import Fit

COLUMNS = ("way", "combine", "space", "seed", "test_accuracy", "audit")
COMBINATIONS = (
    *(Combining("mean"), Combining("median"), Combining("confidence")),
    Combining("mean", "standardized"),
    Combining("median", "standardized"),
    Combining("confidence", "standardized"),
)
TEMPERATURES = {"logits": 4.0, "standardized": 1.0}
"""Standardized logits of 10 classes are at most 2.8, so at 4 they would be nearly uniform."""
SEEDS = range(3)
NUM_TEACHERS, BAD = 4, 3  # the last teacher is made bad
TEACHER: dict[str, Any] = {"depth": 8, "widths": [8, 8, 16, 32]}
STUDENT: dict[str, Any] = {"depth": 8, "widths": [4, 4, 8, 8]}
RECIPE: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 0.004,
    "schedule": "onecycle",
}
TEACHER_EPOCHS, STUDENT_EPOCHS = 25, 20


@dataclass(frozen=True)
class Teachers:
    """Trained teachers and their logits for the training images.

    Attributes:
        networks: Of all teachers.
        logits: (M, N, K).
        part: The training images, of which every image has one view.
        epochs: Of their training.
    """

    networks: list[Chain]
    logits: Tensor
    part: ImageSplit
    epochs: int


def digits(folder: Path) -> Prepared:
    """Digits of 8 x 8 pixels, half of them for testing and none for validation."""
    names = {"images": "images.npy", "index": "index.parquet", "summary": "summary.json"}
    files = {name: folder / file for name, file in names.items()}
    split = Prepare(validation=0.0, test=0.5)
    settings = PrepareSettings(kind="digits", options={"size": 8}, prepare=split)
    prepare.run(Job(settings, {}, files))
    return load_prepared(files["images"], files["index"], files["summary"], torch.device("cpu"))


def network(options: dict[str, Any], seed: int) -> Chain:
    torch.manual_seed(seed)
    return build_model("cifar_resnet", num_classes=10, in_channels=1, image_size=8, **options)


def train(
    build: Callable[[Chain, Task], Method],
    options: dict[str, Any],
    part: ImageSplit,
    epochs: int,
    seed: int,
    outputs: Callable[[ImageBatch], dict[str, Tensor]] | None = None,
) -> Chain:
    """A network trained by a method; the seed is also that of its weights."""
    trained = network(options, seed)
    method = build(trained, Task(part.image_shape, 10, part.labels, epochs=epochs))
    recipe = Distil(**RECIPE, epochs=epochs)
    teacher = None if outputs is None else _Fixed(outputs)
    Fit(method, part, recipe, seed=seed, validate=dict, teacher=teacher).run()
    return trained.requires_grad_(False).eval()


class _Fixed:
    """Teacher logits from a table."""

    waits = False

    def __init__(self, outputs: Callable[[ImageBatch], dict[str, Tensor]]) -> None:
        self.outputs = outputs

    def __call__(self, drawn: ImageBatch) -> dict[str, Tensor]:
        return self.outputs(drawn)


def trained_teachers(part: ImageSplit, epochs: int = TEACHER_EPOCHS) -> Teachers:
    networks = [
        train(_labels, TEACHER, part, epochs, seed=100 + number) for number in range(NUM_TEACHERS)
    ]
    return Teachers(
        networks, torch.stack([logits_of(each, part) for each in networks]), part, epochs
    )


def _labels(chain: Chain, task: Task) -> Method:
    return Labels(None, chain, task)


def logits_of(
    chain: Chain, part: ImageSplit, shown: Callable[[Tensor], Tensor] = lambda images: images
) -> Tensor:
    """(N, K) of all images, each as `shown` makes it of the normalized images."""
    index = torch.arange(len(part))
    with torch.inference_mode():
        images = part.take(index, Views(), torch.zeros_like(index)).images
        logits: Tensor = chain(shown(images))
    return logits.clone()


# Seven ways of a teacher to be bad: the training images' logits (N, K) of the last teacher


def reversed_ranks(teachers: Teachers) -> Tensor:
    """The highest logit goes to the class that had the lowest one, and so on."""
    logits = teachers.logits[BAD]
    order, values = logits.argsort(dim=1), logits.sort(dim=1, descending=True).values
    return torch.empty_like(logits).scatter_(1, order, values)


def class_means(teachers: Teachers) -> Tensor:
    """Every image has the mean logits of the images of its class."""
    logits, labels = teachers.logits[BAD], teachers.part.labels
    means = torch.stack([logits[labels == each].mean(dim=0) for each in range(10)])
    return means[labels]


def scaled(teachers: Teachers) -> Tensor:
    return 10 * teachers.logits[BAD]


def permuted_classes(teachers: Teachers) -> Tensor:
    """The output of each class is that of the next one."""
    return teachers.logits[BAD].roll(1, dims=1)


def other_normalization(teachers: Teachers) -> Tensor:
    """Images on the scale 0 to 1, as if the data set's mean and std had been forgotten."""
    part = teachers.part
    return logits_of(teachers.networks[BAD], part, lambda images: images * _STD + _MEAN)


_MEAN, _STD = 0.305, 0.376  # of the digits


def untrained(teachers: Teachers) -> Tensor:
    return logits_of(network(TEACHER, seed=200).eval(), teachers.part)


def other_classes(teachers: Teachers) -> Tensor:
    """A teacher of ten classes of the ink of an image, from little to much."""
    part = teachers.part
    ink = part.images.float().sum(dim=(1, 2, 3))
    deciles = (ink.argsort().argsort() * 10) // len(ink)
    other = ImageSplit(part.images, deciles, torch.tensor([_MEAN]), torch.tensor([_STD]))
    return logits_of(train(_labels, TEACHER, other, teachers.epochs, seed=300), other)


WAYS: dict[str, Callable[[Teachers], Tensor]] = {
    "reversed ranks": reversed_ranks,
    "class means": class_means,
    "scaled by 10": scaled,
    "permuted classes": permuted_classes,
    "other normalization": other_normalization,
    "untrained": untrained,
    "other classes": other_classes,
}


def variants(teachers: Teachers) -> Iterator[tuple[str, Tensor]]:
    """The logits (M, N, K) of all teachers: as they are, without the last one, and in each way."""
    good = teachers.logits
    yield "none", good
    yield "left out", good[:BAD]
    for way, make in WAYS.items():
        yield way, torch.cat([good[:BAD], make(teachers)[None]])


def audited(logits: Tensor, labels: Tensor, how: Combining) -> str:
    """Which teachers the audit has a problem with or warns of; "good" if there are none."""
    names = {f"teacher {number}": each for number, each in enumerate(logits)}
    found = audit_teachers(names, labels, space=how.space)
    said = [
        f"{'problem' if each.problems else 'warning'}: {each.teacher}"
        for each in found
        if each.problems or each.warnings
    ]
    return ", ".join(said) or "good"


def distilled(logits: Tensor, part: ImageSplit, how: Combining, seed: int) -> Chain:
    """A student that learns from the combined logits (M, N, K) of the training images."""
    target = combined_logits(logits, how, part.labels)

    def method(chain: Chain, task: Task) -> Method:
        return KD(None, chain, task, temperature=TEMPERATURES[how.space])

    def outputs(drawn: ImageBatch) -> dict[str, Tensor]:
        return {HEAD: target[drawn.index]}

    return train(method, STUDENT, part, STUDENT_EPOCHS, seed, outputs)


def main(path: Path) -> None:
    torch.set_num_threads(1)
    known: set[tuple[str, ...]] = set()
    if path.exists():
        with path.open(newline="") as file:
            known = {tuple(row[:4]) for row in list(csv.reader(file))[1:]}
    with tempfile.TemporaryDirectory() as folder:
        data = digits(Path(folder))
        part, test = data.part("train"), data.part("test")
        teachers = trained_teachers(part)
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not known:
                writer.writerow(COLUMNS)

            def add(key: tuple[str, ...], chain: Chain, said: str) -> None:
                value = accuracy(*predict(chain, test.in_order(256)))
                writer.writerow([*key, f"{value:.6f}", said])
                file.flush()

            for number, each in enumerate(teachers.networks):
                key = (f"teacher {number}", "", "", str(100 + number))
                if key not in known:
                    add(key, each, "")
            ways = list(variants(teachers))
            for seed in SEEDS:
                key = ("labels", "", "", str(seed))
                if key not in known:
                    add(key, train(_labels, STUDENT, part, STUDENT_EPOCHS, seed), "")
                for (way, logits), how in product(ways, COMBINATIONS):
                    key = (way, *how, str(seed))
                    if key not in known:
                        said = audited(logits, part.labels, how)
                        add(key, distilled(logits, part, how, seed), said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
