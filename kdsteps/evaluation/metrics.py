"""The registry of metrics: name, unit, direction, explanation and function of each, in one table.

`measures.json`, the columns of `runs.parquet`, and the tables, charts and explanations of the
report all follow from it, so a new metric is one entry in `METRICS`. A study adds its own with
`evaluate: {metrics: [./mine.py:brier]}`: a function decorated with `metric`, or a plain one.

    @metric(label="Brier score", better="lower", explanation="Mean squared error of probabilities.")
    def brier(logits: Tensor, labels: Tensor) -> float:  # (N, K) and (N,), on the CPU
        targets = F.one_hot(labels, logits.shape[1])
        return (logits.softmax(dim=1) - targets).square().sum(dim=1).mean().item()
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor

from kdsteps.errors import KdstepsError, nearest
from kdsteps.evaluation import predictions, size, speed
from kdsteps.files.columns import RUNS
from kdsteps.study import registry

Function = Callable[..., float | None]
Source = Literal["predictions", "teacher", "network", "speed"]
Direction = Literal["higher", "lower"]


_GIVEN: dict[Source, tuple[str, ...]] = {
    "predictions": ("logits", "labels"),
    "teacher": ("student's logits", "teacher's logits"),
    "network": ("network", "image"),
    "speed": ("timing",),
}
"""What a function takes, by its source."""
_FIELDS = "kdsteps_metric"  # attribute of a decorated function
_TAKEN = frozenset(
    {*RUNS, "divergence", "accuracy_per_class", "settings", "provenance", "threads", "predictions"}
)
"""What the files with metrics also hold under a name."""
_OPTIONS = ("calibration_bins", "batch_size")
_OPTIONS_OF_SPEED = ("latency_runs", "throughput_batch")
"""Keys of the section `evaluate` that functions can take."""


@dataclass(frozen=True)
class Metric:
    """One number that describes a trained network.

    Attributes:
        name: Key in measures.json and column in runs.parquet.
        function: Returns the number, or None where it is undefined; NaN and infinity mean the same.
        source: What the function takes. "predictions": logits (N, K) and labels (N,) of the test
            images. "teacher": the student's and the teacher's logits, (N, K) each. "network": the
            deployed network and an image (1, C, H, W). "speed": a `Timing` of the network.
        label: Heading of its column and axis, without the unit.
        unit: "fraction" is shown as a percentage and "count" with k, M or G; any other text follows
            the label.
        better: Which direction is better; None where neither is.
        explanation: One or two sentences for the section "How to read it".
        digits: After the decimal point; fractions have as many as the test images can resolve.
        min_classes: Fewer classes than this, and the metric is left out.
        options: Keyword arguments that the function takes from the section `evaluate`.
        charted: Whether the report has a chart of accuracy against it.
    """

    name: str
    function: Function
    source: Source = "predictions"
    label: str = ""
    unit: str = ""
    better: Direction | None = None
    explanation: str = ""
    digits: int = 3
    min_classes: int = 0
    options: tuple[str, ...] = ()
    charted: bool = False

    def value(self, *given: Any, num_classes: int, options: Mapping[str, Any]) -> float | None:
        """Call the function; None where the metric is undefined or the classes are too few.

        Args:
            given: The positional arguments that `source` names.
            num_classes: K.
            options: The section `evaluate`.
        """
        if num_classes < self.min_classes:
            return None
        own = [each.clone() if isinstance(each, Tensor) else each for each in given]
        found: Any = self.function(*own, **{name: options[name] for name in self.options})
        try:
            number = None if found is None else float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
            raise KdstepsError(
                f"evaluate.metrics: {self.name} returned a value of type {type(found).__name__}"
                f"{shape}; return one number, or None where it is undefined"
            ) from error
        if number is None or not math.isfinite(number):
            return None
        return int(number) if self.unit == "count" else number


METRICS: tuple[Metric, ...] = (
    Metric(
        "accuracy",
        predictions.accuracy,
        label="test accuracy",
        unit="fraction",
        better="higher",
        explanation="Fraction of the test images whose most probable class is the right one, after "
        "the last epoch. The test images are used once, after training. The accuracy of the best "
        "validation epoch is shown for comparison only.",
    ),
    Metric(
        "top5_accuracy",
        predictions.top5_accuracy,
        label="top-5 accuracy",
        unit="fraction",
        better="higher",
        explanation="Fraction of the test images whose class is among the five most probable ones. "
        "Shown where there are more than five classes.",
        min_classes=6,
    ),
    Metric(
        "nll",
        predictions.nll,
        label="NLL",
        unit="nats",
        better="lower",
        explanation="Negative log-likelihood: minus the logarithm of the probability of the right "
        "class, averaged over the test images.",
    ),
    Metric(
        "ece",
        predictions.ece,
        label="ECE",
        unit="fraction",
        better="lower",
        explanation="Expected calibration error: the gap between confidence and accuracy, averaged "
        "over bins of confidence. At 0, confidence equals accuracy.",
        options=("calibration_bins",),
    ),
    Metric(
        "agreement",
        predictions.agreement,
        source="teacher",
        label="agreement with the teacher",
        unit="fraction",
        better="higher",
        explanation="Fraction of the test images on which student and teacher predict the same "
        "class, right or wrong.",
    ),
    Metric(
        "kl_to_teacher",
        predictions.kl_to_teacher,
        source="teacher",
        label="KL to the teacher",
        unit="nats",
        better="lower",
        explanation="Kullback-Leibler divergence of the student’s class probabilities from the "
        "teacher’s, averaged over the test images.",
    ),
    Metric(
        "parameters",
        size.parameters,
        source="network",
        label="parameters",
        unit="count",
        better="lower",
        explanation="Number of weights of the deployed network. For SimKD that includes the "
        "projector and the teacher’s classifier.",
        charted=True,
    ),
    Metric(
        "macs",
        size.macs,
        source="network",
        label="MACs",
        unit="count",
        better="lower",
        explanation="Multiply-accumulate operations for one image, in convolutions, linear layers "
        "and attention.",
        charted=True,
    ),
    Metric(
        "size_mib",
        size.size_mib,
        source="network",
        label="size",
        unit="MiB",
        better="lower",
        explanation="Memory of the weights and buffers of the deployed network.",
    ),
    Metric(
        "latency_ms",
        speed.latency_ms,
        source="speed",
        label="latency",
        unit="ms",
        better="lower",
        explanation="Median time for one image, on one core if there is no GPU, with nothing else "
        "running. Compare times measured on the same device only.",
        digits=2,
        charted=True,
    ),
    Metric(
        "latency_p90_ms",
        speed.latency_p90_ms,
        source="speed",
        label="latency, 90th percentile",
        unit="ms",
        better="lower",
        explanation="One image in ten takes longer than this.",
        digits=2,
    ),
    Metric(
        "images_per_second",
        speed.images_per_second,
        source="speed",
        label="throughput",
        unit="images/s",
        better="higher",
        explanation="Images per second in batches, at the batch size below the table. Loading "
        "images is not included.",
        digits=0,
    ),
)


def all_metrics(references: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The metrics of a study: those of kdsteps, then its own.

    Args:
        references: `evaluate.metrics` of params.yaml.

    Raises:
        KdstepsError: A reference cannot be loaded, or two metrics have the same name.
    """
    found = list(METRICS)
    for reference in references:
        found.append(as_metric(registry.load("metrics", reference), reference, found))
    return tuple(found)


def as_metric(function: Any, reference: str, others: Sequence[Metric] = METRICS) -> Metric:
    """The metric of a function, described by its decorator, its name and its docstring.

    Args:
        reference: As params.yaml names it.
        others: Metrics whose names are taken.

    Raises:
        KdstepsError: The description is wrong, or the name is taken.
    """
    given = dict(getattr(function, _FIELDS, {}))
    given.setdefault("name", getattr(function, "__name__", reference.rpartition(":")[2]))
    given["name"] = str(given["name"])
    if problem := _problem(given, others) or _wrong_signature(function, given):
        raise KdstepsError(f"{reference}: {problem}")
    summary = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
    words = {"label": given["name"].replace("_", " "), "explanation": summary}
    return Metric(**{"function": function} | words | given)


def metric(**fields: Any) -> Callable[[Function], Function]:
    """Decorate a function to describe its metric; keywords are the attributes of `Metric`.

    Without a `name`, `label` or `explanation`, the function's name and docstring serve.
    """

    def decorate(function: Function) -> Function:
        vars(function)[_FIELDS] = fields
        return function

    return decorate


def compute(
    metrics: Iterable[Metric],
    source: Source,
    *given: Any,
    num_classes: int,
    options: Mapping[str, Any],
) -> dict[str, float | None]:
    """{name: value} of all metrics of one source.

    Args:
        given: What the functions of that source take; see `Metric`.
        num_classes: K.
        options: The section `evaluate`.
    """
    return {
        metric.name: metric.value(*given, num_classes=num_classes, options=options)
        for metric in metrics
        if metric.source == source
    }


def _problem(given: Mapping[str, Any], others: Sequence[Metric]) -> str | None:
    """What is wrong with the keywords of a metric, or None."""
    name, known = given["name"], {field.name for field in fields(Metric)} - {"function"}
    if not name.isidentifier():
        return f"the name {name!r} cannot be a column; use letters, digits and underscores"
    if name in {other.name for other in others}:
        return f"there is already a metric {name!r}; rename yours"
    if name in _TAKEN:
        return f"results have something else under the name {name!r}; rename yours"
    if unknown := sorted(given.keys() - known):
        return f"a metric has no {unknown[0]!r}{nearest(unknown[0], sorted(known))}"
    for field, choices in (("source", get_args(Source)), ("better", (None, *get_args(Direction)))):
        if (value := given.get(field, choices[0])) not in choices:
            return f"{field} is {value!r}; it should be {', '.join(map(repr, choices))}"
    keys = _OPTIONS_OF_SPEED if given.get("source") == "speed" else _OPTIONS
    for option in given.get("options", ()):
        if option not in keys:
            return f"options has {option!r}; it should be {' or '.join(keys)}"
    return None


def _wrong_signature(function: Function, given: Mapping[str, Any]) -> str | None:
    """Why a function cannot be called with what its source gives, or None."""
    source: Source = given.get("source", "predictions")
    options = given.get("options", ())
    try:
        inspect.signature(function).bind(*_GIVEN[source], **dict.fromkeys(options))
    except TypeError:
        wanted = ", ".join([*_GIVEN[source], *options])
        return f"{given['name']}{inspect.signature(function)} should take: {wanted}"
    return None
