"""Which run is the best, and how sure its accuracy is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy import stats

from kdsteps.export.record import Candidate


def best_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    """By validation accuracy, then validation loss, then the given order; unknown ones last."""

    def order(candidate: Candidate) -> tuple[bool, float, float]:
        accuracy, loss = candidate.validation_accuracy, candidate.validation_loss
        return accuracy is None, -(accuracy or 0.0), float("inf") if loss is None else loss

    return sorted(candidates, key=order)


def last_validation(history: Mapping[str, Sequence[Any]]) -> tuple[float | None, float | None]:
    """Validation accuracy and loss after the last epoch, from the columns of history.parquet.

    They belong to the weights that are deployed. None without validation images.
    """
    last = max(history["epoch"], default=0)
    rows = zip(history["epoch"], history["name"], history["value"], strict=True)
    values = {name: value for epoch, name, value in rows if epoch == last}
    return values.get("validation_accuracy"), values.get("validation_loss")


def interval_of(
    accuracy: float | None, num_images: int, confidence: float
) -> tuple[float, float] | None:
    """Ends of the Wilson interval of an accuracy on a number of images.

    Source: Wilson 1927, as in scipy.stats.
    """
    if accuracy is None:
        return None
    hits = round(accuracy * num_images)
    found = stats.binomtest(hits, num_images).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)
