"""What `export.json` says: the exported student, its numbers, and every file with its checks.

It has all that a model card needs. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Literal

from kdsteps.errors import KdstepsError
from kdsteps.files.text import read_json

FORMAT = 1
RECORD, CARD = "export.json", "model_card.md"
FILES = {
    "onnx": "model.onnx",
    "int8": "model.int8.onnx",
    "safetensors": "model.safetensors",
    "timm": "config.json",
}
"""The file of each format; timm reads `config.json` together with `model.safetensors`."""

_ROOM = 2**20  # bytes: with less, a disk counts as full
Format = Literal["onnx", "int8", "safetensors", "timm"]


class FormatError(KdstepsError):
    """A student that a format cannot express: the reason why its file is missing."""


def check_space(error: Exception) -> None:
    """Raise KdstepsError if temporary files had no room, which says nothing about the format.

    Args:
        error: What writing a format raised, while its temporary files are still there.
    """
    full = shutil.disk_usage(gettempdir()).free < _ROOM
    cause: BaseException | None = error
    while not full and cause is not None:
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = cause.__cause__ or cause.__context__
    if full:
        raise KdstepsError(
            f"{gettempdir()}: the disk is full; make room there, or set TMPDIR to another folder"
        )


@dataclass(frozen=True)
class ExportedFile:
    """One format of the exported student, evaluated on all test images, or why it is missing.

    Attributes:
        format: One of `FILES`.
        name: Its file in the folder; None: it was not written, and `reason` says why.
        reason: One sentence; "" for a file that was written.
        bytes: Size of the file; of timm's folder, `config.json` and the weights together.
        digest: BLAKE2b of the file, 40 hexadecimal digits.
        accuracy: Fraction of the test images that it classifies correctly.
        agreement: Fraction of the test images on which it predicts the class that the stage
            evaluate predicted.
        max_difference: Largest difference from the logits of the student in torch on this CPU,
            relative to the largest absolute logit.
        latency_ms: Median time of one image on one core, in milliseconds.
        images_per_second: In batches of `batch_size` images on `threads` cores.
        runtime: What ran it, such as `onnxruntime 1.32.0`.
        notes: Sentences on what to know, such as an int8 file that is slower than float32.
    """

    format: Format
    name: str | None
    reason: str = ""
    bytes: int | None = None
    digest: str | None = None
    accuracy: float | None = None
    agreement: float | None = None
    max_difference: float | None = None
    latency_ms: float | None = None
    images_per_second: float | None = None
    batch_size: int | None = None
    threads: int | None = None
    runtime: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Candidate:
    """One run among which the best was chosen; what it reached on the validation images.

    Attributes:
        run: `pair/method/seed`.
        validation_accuracy, validation_loss: After the last epoch, of the weights that are
            deployed; None where the training diverged.
    """

    run: str
    validation_accuracy: float | None
    validation_loss: float | None


@dataclass(frozen=True)
class Record:
    """The content of export.json.

    Attributes:
        pair, method, seed: The exported run.
        chosen: How it was chosen, in one sentence; "" if params.yaml names it.
        candidates: The runs it was chosen from, the best first; empty if params.yaml names it.
        dataset: Name in params.yaml.
        kind: Kind of data, such as `folder` or `digits`.
        class_names: In the order of the logits.
        num_images: Images of each split: "train", "validation", "test".
        image_shape: (C, H, W) of the images that the network takes.
        student, teacher: Names in params.yaml; no teacher for methods without one.
        family: Of the deployed network, such as `timm`, with its `network_options`.
        network_size: (H, W) of the images that its blocks take, if it resizes images itself, with
            the `interpolation`; else None.
        outputs: Names of its outputs, if it has others than the classes or in another order.
        teacher_accuracy: On the test images.
        algorithm: The distillation method behind the name `method`, with its `options`.
        metrics: Metrics of the exported run on the test images, by the names of
            `kdsteps.evaluation.metrics.METRICS`: accuracy, top5_accuracy, nll, ece, agreement (with
            the teacher), kl_to_teacher, parameters, macs, size_mib; None where one does not apply.
        accuracy_interval: Ends of the Wilson interval of the accuracy, at level `confidence`: what
            the number of test images leaves open.
        accuracy_per_class: One per class; None for a class without test images.
        seeds: Test accuracy of every run of this pair and method, by seed as text; None where the
            training diverged.
        seeds_mean: Mean over these seeds.
        seeds_interval: Ends of the t interval of the mean over seeds; None for a single seed.
        confidence: Level of the intervals, such as 0.95.
        chance: Accuracy of always predicting the most common class of the test images.
        diverged: Whether the training diverged; then nothing is exported and metrics are None.
        description: `Description` as the files carry it, without JSON text.
        files: One entry per requested format, in the order of `FILES`, written or not.
        settings: Of the job.
        provenance: Versions, `git_commit`, `device`, `threads` and `seconds`, as in measures.json.
        format: Version of this file's form.
    """

    pair: str
    method: str
    seed: int
    chosen: str
    candidates: Sequence[Candidate]
    dataset: str
    kind: str
    class_names: Sequence[str]
    num_images: Mapping[str, int]
    image_shape: Sequence[int]
    student: str
    teacher: str | None
    family: str
    network_options: Mapping[str, Any]
    teacher_accuracy: float | None
    algorithm: str
    options: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    accuracy_interval: tuple[float, float] | None
    accuracy_per_class: Sequence[float | None] | None
    seeds: Mapping[str, float | None]
    seeds_mean: float | None
    seeds_interval: tuple[float, float] | None
    confidence: float
    chance: float
    diverged: bool
    description: Mapping[str, Any]
    files: Sequence[ExportedFile]
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    network_size: Sequence[int] | None = None
    interpolation: str | None = None
    outputs: Sequence[str] = ()
    format: int = FORMAT

    @property
    def run(self) -> str:
        """`pair/method/seed`."""
        return f"{self.pair}/{self.method}/{self.seed}"

    def file(self, format: Format) -> ExportedFile | None:
        """The file of a format; None if params.yaml does not request it or it was not written."""
        return next((f for f in self.files if f.format == format and f.name is not None), None)

    def as_dict(self) -> dict[str, Any]:
        """The content of export.json."""
        return asdict(self)


def read_record(path: str | Path) -> Record:
    """Read export.json.

    Raises:
        KdstepsError: It is missing or damaged, or from a later version.
    """
    content = read_json(path)
    if (found := content.get("format")) != FORMAT:
        raise KdstepsError(
            f"{path}: has format {found!r}, this version of kdsteps reads {FORMAT}; use the "
            "version that wrote it"
        )
    try:
        names = {each.name for each in fields(Record)}
        given = {name: value for name, value in content.items() if name in names}
        given["files"] = [ExportedFile(**entry) for entry in given["files"]]
        given["candidates"] = [Candidate(**entry) for entry in given["candidates"]]
        return Record(**given)
    except (TypeError, KeyError, AttributeError):
        raise KdstepsError(f"{path}: is damaged; export the student again") from None
