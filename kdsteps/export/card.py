"""The model card of an exported student, in the form of Hugging Face: YAML, then Markdown.

Everything in it is from the record (`export.json`). Names of classes and others may contain
anything that can be printed: in Markdown they are code, and YAML is written by its library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kdsteps.evaluation.chance import at_chance
from kdsteps.evaluation.metrics import METRICS
from kdsteps.export.loading_code import loading_code
from kdsteps.export.markdown import code, prose, table
from kdsteps.export.record import ExportedFile, Record

_METRICS = {metric.name: metric for metric in METRICS}
_WORST = 10  # classes in the table of weaknesses
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
"""A name that a data set on Hugging Face could have, as the header requires."""
_SCORES = ("accuracy", "top5_accuracy", "nll", "ece")  # metrics for the model index


def model_card(record: Record, warnings: Sequence[str] = ()) -> str:
    """The text of `model_card.md`.

    Args:
        warnings: What users have to know first, such as a teacher that failed its check; each one
            sentence.
    """
    data = _data(record)
    sections = (
        _title(record, warnings),
        _results(record),
        _weaknesses(record),
        _data_and_training(record),
        _files(record),
        loading_code(record),
        _limits(record),
        _reproduce(record),
    )
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"
    assert ModelCard(text).data.to_yaml() == data.to_yaml(), "the header survives reading"
    return text


def _data(record: Record) -> ModelCardData:
    """The header. A license is for whoever publishes the files to choose, so there is none."""
    values = {name: record.metrics.get(name) for name in _SCORES}
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=record.dataset,
            dataset_name=record.dataset,
            dataset_split="test",
            metric_type=name,
            metric_name=_label(name),
            metric_value=value,
        )
        for name, value in values.items()
        if value is not None
    ]
    return ModelCardData(
        library_name="timm" if record.file("timm") else "kdsteps",
        pipeline_tag="image-classification",
        tags=["image-classification", "knowledge-distillation", "kdsteps"],
        datasets=[record.dataset] if _REPOSITORY.fullmatch(record.dataset) else None,
        metrics=[result.metric_type for result in results] or None,
        model_name=record.run,
        eval_results=results or None,
    )


def _teachers(record: Record) -> str:
    """The noun in front of the text about its teacher, or about several."""
    return "teachers" if record.settings.get("several") else "teacher"


def _title(record: Record, warnings: Sequence[str]) -> str:
    teacher = f" from the {_teachers(record)} {code(record.teacher)}" if record.teacher else ""
    channels, height, width = record.image_shape
    kind = "gray" if channels == 1 else "color"
    lines = [
        f"# {code(record.student)}, trained with {code(record.method)}",
        (
            f"Classifies {kind} images of {height} x {width} pixels in {len(record.class_names)} "
            f"classes. Trained with the method {code(record.method)}{teacher} on the data set "
            f"{code(record.dataset)}, and exported as run {code(record.run)}."
        ),
    ]
    if record.diverged:
        lines.append("> **Warning:** The training diverged, so this student is of no use.")
    accuracy = record.metrics.get("accuracy")
    if accuracy is not None and at_chance(accuracy, record.chance):
        lines.append("> **Warning:** Its accuracy is at the level of chance.")
    lines += [f"> **Warning:** {prose(sentence)}" for sentence in warnings]
    return "\n\n".join(lines)


def _results(record: Record) -> str | None:
    if record.metrics.get("accuracy") is None:
        return None
    rows = [
        (_label(name), _value(name, value))
        for name, value in record.metrics.items()
        if value is not None
    ]
    rows.append(("chance (always the most common class)", _percent(record.chance)))
    if record.teacher_accuracy is not None:
        rows.append(("test accuracy of the teacher", _percent(record.teacher_accuracy)))
    parts = [
        "## Results",
        f"On {record.num_images.get('test', 0):,} test images, used once, after training:",
        table(("metric", "value"), rows, right=(1,)),
        _uncertainty(record),
    ]
    if record.metrics.get("ece") is not None:
        parts.append(
            "ECE is the expected calibration error: the gap between the probability of the "
            "predicted class and how often it is right, averaged over bins. At 0, images predicted "
            "with a probability of 80 % are right in 80 % of the cases."
        )
    return "\n\n".join(parts)


def _uncertainty(record: Record) -> str:
    """How far the accuracy of this run and of its method can be trusted."""
    level, sentences = f"{100 * record.confidence:g} %", []
    if record.accuracy_interval is not None:
        sentences.append(
            f"The number of test images leaves the accuracy of this run between "
            f"{_range(record.accuracy_interval)} (Wilson interval, {level})."
        )
    known = [value for value in record.seeds.values() if value is not None]
    if record.seeds_interval is not None and record.seeds_mean is not None:
        sentences.append(
            f"Over {len(known)} seeds, the mean is {_percent(record.seeds_mean)}, between "
            f"{_range(record.seeds_interval)} (t interval, {level}): this is what to expect of the "
            f"method, from {_percent(min(known))} for the worst seed to {_percent(max(known))} for "
            "the best."
        )
    else:
        sentences.append(
            "Only one seed finished, so how much accuracy varies between seeds is not known."
        )
    if len(known) < len(record.seeds):
        sentences.append(f"With {len(record.seeds) - len(known)} more, the training diverged.")
    if record.chosen:
        sentences.append(f"How this run was chosen: {prose(record.chosen)}")
    return " ".join(sentences)


def _weaknesses(record: Record) -> str | None:
    overall = record.metrics.get("accuracy")
    if record.accuracy_per_class is None or overall is None:
        return None
    pairs = zip(record.class_names, record.accuracy_per_class, strict=True)
    known = [(value, name) for name, value in pairs if value is not None]
    worst = [(value, name) for value, name in sorted(known) if value < overall][:_WORST]
    if not worst:
        return None
    average = record.num_images.get("test", 0) / len(known)
    return "\n\n".join(
        [
            "## Weakest classes",
            f"The accuracy of single classes, the lowest first; a class has {average:.0f} test "
            "images on average.",
            table(("class", "accuracy"), [(code(n), _percent(v)) for v, n in worst], right=(1,)),
        ]
    )


def _data_and_training(record: Record) -> str:
    images = ", ".join(f"{count:,} {prose(name)}" for name, count in record.num_images.items())
    rows = [
        ("data set", f"{code(record.dataset)} (kind {code(record.kind)})"),
        ("images", images),
        ("network", f"{code(record.family)} {code(str(dict(record.network_options)))}"),
        ("method", f"{code(record.algorithm)} {code(str(dict(record.options)))}"),
    ]
    if record.teacher is not None:
        rows.append((_teachers(record), code(record.teacher)))
    return "\n\n".join(["## Data and training", table(("", ""), rows)])


def _files(record: Record) -> str:
    written = [file for file in record.files if file.name is not None]
    missing = [file for file in record.files if file.name is None]
    parts = ["## Files"]
    if written:
        parts += [
            "Each file was evaluated again on all test images. *Agreement* is with the predictions "
            "of the evaluation in torch, *difference* the largest one of logits, relative to the "
            "largest logit. Times are for one image on one CPU core, and for batches on several.",
            table(
                ("file", "size", "accuracy", "agreement", "difference", "one image", "batches"),
                [_file_row(file) for file in written],
                right=range(1, 7),
            ),
        ]
        digests = [
            (code(f.name or ""), code(f.digest), prose(f.runtime)) for f in written if f.digest
        ]
        parts.append(table(("file", "BLAKE2b, 20 bytes", "evaluated with"), digests))
    notes = [f"- {code(f.name or '')}: {prose(note)}" for f in written for note in f.notes]
    notes += [f"- {code(file.format)} was not written: {prose(file.reason)}." for file in missing]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _file_row(file: ExportedFile) -> tuple[str, ...]:
    throughput = "" if file.images_per_second is None else f"{file.images_per_second:,.0f} per s"
    if throughput and file.threads is not None:
        throughput += f" ({file.threads} cores)" if file.threads > 1 else " (1 core)"
    return (
        code(file.name or ""),
        "" if file.bytes is None else f"{file.bytes / 2**20:.2f} MiB",
        "" if file.accuracy is None else _percent(file.accuracy),
        "" if file.agreement is None else _percent(file.agreement),
        "" if file.max_difference is None else f"{file.max_difference:.0e}",
        "" if file.latency_ms is None else f"{file.latency_ms:.2f} ms",
        throughput,
    )


def _limits(record: Record) -> str:
    lines = [
        f"It was tested on images of the data set {code(record.dataset)} alone. Images from "
        "elsewhere, such as other cameras, lighting or countries, were not tested.",
        f"An image of anything else gets one of the {len(record.class_names)} classes too, often "
        "with a high probability.",
        "It was not tested against manipulated images, or for differences between groups of "
        "people.",
    ]
    if record.teacher is not None:
        taught_by = f"the {_teachers(record)} {code(record.teacher)}"
        lines.append(f"It learned from {taught_by} and may have learned the same errors.")
    if record.file("int8"):
        lines.append(
            "The int8 file rounds numbers to 8 bits, so its probabilities differ from those above."
        )
    lines.append("No license is stated; that of the data and of the teacher may restrict its use.")
    return "\n\n".join(["## Limits", "\n".join(f"- {line}" for line in lines)])


def _reproduce(record: Record) -> str:
    made = record.provenance
    versions = {**made.get("versions", {})}
    commit = str(made.get("git_commit") or "")
    where = "In the folder of the study"
    if commit:
        changed = " with changes that are not committed" if commit.endswith("+") else ""
        where += f", at commit {code(commit.removesuffix('+'))}{changed}"
    kdsteps = record.description.get("provenance", {}).get("kdsteps")
    with_kdsteps = f" with kdsteps {prose(str(kdsteps))}" if kdsteps else ""
    listed = ", ".join(f"{prose(str(k))} {prose(str(v))}" for k, v in versions.items())
    lines = [
        "## Reproduce",
        f"{where}{with_kdsteps}:\n\n    snakemake --cores 4 --resources gpu=1",
        f"Versions: {listed}." if listed else "",
    ]
    return "\n\n".join(filter(None, lines))


def _label(name: str) -> str:
    known = _METRICS.get(name)
    return known.label if known else code(name)


def _value(name: str, value: float) -> str:
    known = _METRICS.get(name)
    if known is None:
        return f"{value:.4g}"
    if known.unit == "fraction":
        return _percent(value)
    if known.unit == "count":
        return f"{value:,.0f}"
    return f"{value:.{known.digits}f} {known.unit}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _range(ends: Iterable[float]) -> str:
    low, high = (min(max(end, 0.0), 1.0) for end in ends)  # a t interval may be wider
    return f"{100 * low:.1f} and {100 * high:.1f} %"
