"""How good frozen features are: nearest neighbors, and linear classifiers with few or all labels.

Nothing of the network is trained. References are the labeled training images of a data set, queries
are its test images.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = 2**25  # of queries to references, in memory at once: 128 MiB
MAX_ITERATIONS = 1000  # of a linear classifier


def probe_names(fractions: Sequence[float]) -> list[str]:
    """The names of what `probe` measures, in its order."""
    return ["neighbor_accuracy", "neighbor_purity", *map(_linear_name, fractions)]


def probe(
    references: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    neighbors: int,
    fractions: Sequence[float],
    draws: int,
    seed: int,
) -> dict[str, float | None]:
    """Measure features by their nearest neighbors and by linear classifiers.

    Args:
        references: (N, D), on the CPU.
        labels: (N,), whole numbers from 0.
        queries: (M, D), of other images.
        query_labels: (M,).
        neighbors, fractions, draws, seed: As in the section `probe`.

    Returns:
        Fractions from 0 to 1 by `probe_names`; None for all of them if a feature is not finite.
    """
    names = probe_names(fractions)
    if not (bool(references.isfinite().all()) and bool(queries.isfinite().all())):
        return dict.fromkeys(names)
    accuracy, purity = by_neighbors(references, labels, queries, query_labels, neighbors)
    found: dict[str, float | None] = {"neighbor_accuracy": accuracy, "neighbor_purity": purity}
    for fraction in fractions:
        found[_linear_name(fraction)] = _mean_of_draws(
            *(references, labels, queries, query_labels), fraction, draws, seed
        )
    return found


def by_neighbors(
    references: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor, count: int
) -> tuple[float, float]:
    """Accuracy and purity of the nearest references, by the cosine.

    Accuracy is that of the most frequent label among the neighbors; of labels that are equally
    frequent, the nearer ones win. Purity is the fraction of neighbors with the label of the query.

    Args:
        references, labels, queries, query_labels: As of `probe`.
        count: Neighbors of each query; all references where there are fewer.
    """
    count = min(count, len(references))
    known = F.normalize(references, dim=1)
    size = max(1, SIMILARITIES // len(references))
    # less than one vote in total, and more for nearer neighbors
    nearer = torch.arange(count, 0, -1, dtype=torch.double) / (count * (count + 1))
    hits, same = 0.0, 0.0
    for some, expected in zip(queries.split(size), query_labels.split(size), strict=True):
        nearest = (F.normalize(some, dim=1) @ known.T).topk(count, dim=1).indices
        found = labels[nearest]  # (m, count)
        votes = torch.zeros(len(some), int(labels.max()) + 1, dtype=torch.double)
        votes.scatter_add_(1, found, (1 + nearer).expand_as(found).contiguous())
        hits += float((votes.argmax(dim=1) == expected).sum())
        same += float((found == expected[:, None]).double().mean(dim=1).sum())
    return hits / len(queries), same / len(queries)


def linear_accuracy(
    references: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor
) -> float:
    """Test accuracy of logistic regression on standardized features; arguments as of `probe`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(references.double().numpy())
    classifier = LogisticRegression(max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(scaler.transform(references.double().numpy()), labels.numpy())
    predicted = classifier.predict(scaler.transform(queries.double().numpy()))
    return float((predicted == query_labels.numpy()).mean())


def some_of_each_class(labels: Tensor, fraction: float, random: np.random.Generator) -> Tensor:
    """Rows of a fraction of each class, drawn at random; at least one of each class.

    Args:
        labels: (N,).
    """
    chosen = []
    for label in labels.unique().tolist():
        rows = np.flatnonzero(labels.numpy() == label)
        count = max(1, round(fraction * len(rows)))
        chosen.append(random.choice(rows, size=count, replace=False))
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def _mean_of_draws(
    references: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    fraction: float,
    draws: int,
    seed: int,
) -> float:
    if fraction == 1:
        return linear_accuracy(references, labels, queries, query_labels)
    found = []
    for draw in range(draws):
        rows = some_of_each_class(labels, fraction, np.random.default_rng([seed, draw]))
        found.append(linear_accuracy(references[rows], labels[rows], queries, query_labels))
    return float(np.mean(found))


def _linear_name(fraction: float) -> str:
    return f"linear_{100 * fraction:g}"
