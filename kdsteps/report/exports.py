"""The exported students as tables: every file with what it reached when it was evaluated again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdsteps.export.record import ExportedFile, Record
from kdsteps.jobs.words import plural
from kdsteps.report.formats import decimals, listed

_LABELS = {
    "onnx": "ONNX, float32",
    "int8": "ONNX, int8",
    "safetensors": "safetensors",
    "timm": "folder for timm",
}


@dataclass(frozen=True)
class ExportView:
    """One exported student as the page shows it.

    Attributes:
        run: `pair/method/seed`.
        chosen: How it was chosen; "" if params.yaml names it.
        folder: Where its files are, from the study's folder.
        digits: Of percentages.
        rows: Each file that was written, with the name of its format.
        missing: Each format that was not written, with its name.
        notes: On the files, each one sentence.
        timing: How the files were timed.
    """

    run: str
    chosen: str
    folder: str
    digits: int
    rows: Sequence[tuple[str, ExportedFile]]
    missing: Sequence[tuple[str, str]]
    notes: Sequence[str]
    timing: str


def export_view(record: Record) -> ExportView:
    """An exported student as the page shows it."""
    run = "best" if record.chosen else f"{record.method}/{record.seed}"
    written = [file for file in record.files if file.name is not None]
    return ExportView(
        run=record.run,
        chosen=record.chosen,
        folder=f"results/export/{record.pair}/{run}",
        digits=decimals(record.num_images["test"]),
        rows=[(_LABELS[file.format], file) for file in written],
        missing=[(_LABELS[f.format], f.reason) for f in record.files if f.name is None],
        notes=[f"{_LABELS[file.format]}: {note}" for file in written for note in file.notes],
        timing=_timing(written, str(record.provenance.get("device") or "an unknown device")),
    )


def _timing(written: Sequence[ExportedFile], device: str) -> str:
    if not written:
        return ""
    runtimes = listed(list(dict.fromkeys(file.runtime for file in written)))
    batch, threads = written[0].batch_size or 0, written[0].threads or 0
    return (
        f"Timed on {device} with {runtimes}: latency for single images on one core, throughput for "
        f"batches of {plural(batch, 'image')} on {plural(threads, 'core')}."
    )
