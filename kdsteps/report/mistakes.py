"""Which test images a method gets wrong, which classes it confuses, and how the teacher differs.

The seeds of a method vote: its prediction for an image is the class that most of its students
predict, and its confidence is the mean over these students.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kdsteps.report.formats import as_teacher
from kdsteps.report.predicted import PairPredictions, Predicted

MOST_CLASSES = 20  # of a whole confusion matrix
_SOME_CLASSES = 12  # of one with the most confused classes only
_MOST_PAIRS = 12  # of classes that are confused


@dataclass(frozen=True)
class Guess:
    """What a network, or most students of a method, predict for one image.

    Attributes:
        name: The class.
        confidence: Its probability.
        votes, seeds: Students that predict it, and all students.
    """

    name: str
    confidence: float
    votes: int = 1
    seeds: int = 1
    right: bool = False


@dataclass(frozen=True)
class Card:
    """One test image in the gallery.

    Attributes:
        row: Of images.npy.
        label: Its class.
        others: Methods, other than this one, whose students are mostly right.
        compared: Number of these methods.
    """

    row: int
    label: str
    teacher: Guess | None
    student: Guess
    others: list[str]
    compared: int


@dataclass(frozen=True)
class Group:
    """Test images of one kind.

    Attributes:
        title: What they have in common.
        count: How many there are; the cards are those with the highest confidence.
    """

    title: str
    count: int
    cards: list[Card]


@dataclass(frozen=True)
class Confused:
    """One class taken for another.

    Attributes:
        label, predicted: The right class and the predicted one.
        images: Mean number of test images over seeds.
        of: Test images of the class.
        teacher: The same of the teacher; None without one.
        others: {method: mean number of images} of other methods.
    """

    label: str
    predicted: str
    images: float
    of: int
    teacher: float | None
    others: dict[str, float]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: rows are the right classes, columns the predicted ones.

    Attributes:
        who: The method or the teacher.
        classes: Number and name of each class shown.
        fractions: One row per class: the fraction of its images predicted as each class.
        rest: Fraction predicted as a class that is not shown; empty if all are.
    """

    who: str
    classes: list[tuple[int, str]]
    fractions: list[list[float]]
    rest: list[float] = field(default_factory=list)


def groups(
    found: PairPredictions, method: str, teacher_name: str, names: Sequence[str], most: int
) -> list[Group]:
    """The galleries of one method: up to `most` test images of each kind.

    Args:
        names: Of the classes.
    """
    vote = _vote(list(found.students[method].values()))
    right = vote.classes == found.labels
    kinds = []
    if found.teacher is not None:
        taught = found.teacher.classes == found.labels
        assert found.teacher.confidence is not None, "it is always read"
        kinds += [
            (f"{method} right, {teacher_name} wrong", right & ~taught, found.teacher.confidence),
            (f"{teacher_name} right, {method} wrong", taught & ~right, vote.confidence),
        ]
    kinds.append((f"Most confident errors of {method}", ~right, vote.confidence))
    others = {
        name: _mostly_right(list(students.values()), found.labels)
        for name, students in found.students.items()
        if name != method
    }
    made = []
    for title, chosen, weight in kinds:
        places = np.flatnonzero(chosen)
        order = places[np.lexsort((places, -weight[places], -vote.votes[places]))][:most]
        cards = [_card(found, vote, others, int(place), names) for place in order]
        made.append(Group(title, len(places), cards))
    return made


def confused_pairs(
    found: PairPredictions, method: str, others: Sequence[str], names: Sequence[str]
) -> list[Confused]:
    """Classes that a method takes for others, the most frequent ones first.

    Args:
        others: Methods to compare with.
    """
    counts = _confusions(list(found.students[method].values()), found)
    compared = {name: _confusions(list(found.students[name].values()), found) for name in others}
    teacher = None if found.teacher is None else _confusions([found.teacher], found)
    sizes = _sizes(found)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_PAIRS]
    return [
        Confused(
            label=names[label],
            predicted=names[guess],
            images=count,
            of=int(sizes[label]),
            teacher=None if teacher is None else teacher.get((label, guess), 0.0),
            others={name: each.get((label, guess), 0.0) for name, each in compared.items()},
        )
        for (label, guess), count in ranked
    ]


def matrices(
    found: PairPredictions, methods: Sequence[str], teacher_name: str, names: Sequence[str]
) -> list[Matrix]:
    """Confusion matrices of some methods, means over seeds, and of the teacher.

    With many classes, they have those that the first method confuses most.
    """
    networks = {name: list(found.students[name].values()) for name in methods}
    shown = _shown_classes(_confusions(networks[methods[0]], found), found.num_classes)
    made = [_matrix(name, students, found, shown, names) for name, students in networks.items()]
    if found.teacher is not None:
        title = as_teacher(teacher_name)
        made.append(_matrix(title, [found.teacher], found, shown, names))
    return made


@dataclass(frozen=True)
class _Vote:
    """What most students of a method predict: classes, votes and confidence, (N,) each."""

    classes: np.ndarray
    votes: np.ndarray
    confidence: np.ndarray
    seeds: int


def _vote(students: Sequence[Predicted]) -> _Vote:
    classes = np.stack([each.classes for each in students])  # (S, N)
    confidence = np.stack(
        [
            np.zeros(len(each.classes)) if each.confidence is None else each.confidence
            for each in students
        ]
    )
    votes = np.stack([(classes == each).sum(axis=0) for each in classes])  # (S, N)
    summed = np.stack([np.where(classes == each, confidence, 0).sum(axis=0) for each in classes])
    first = (votes + summed / (len(students) + 1)).argmax(axis=0)  # ties go to the more confident
    columns = np.arange(classes.shape[1])
    winners = votes[first, columns]
    return _Vote(classes[first, columns], winners, summed[first, columns] / winners, len(students))


def _mostly_right(students: Sequence[Predicted], labels: np.ndarray) -> np.ndarray:
    """Whether more than half of a method's students are right, (N,)."""
    hits = np.sum([each.classes == labels for each in students], axis=0)
    mostly: np.ndarray = 2 * hits > len(students)
    return mostly


def _card(
    found: PairPredictions,
    vote: _Vote,
    others: dict[str, np.ndarray],
    place: int,
    names: Sequence[str],
) -> Card:
    label = int(found.labels[place])
    teacher = None
    if found.teacher is not None and found.teacher.confidence is not None:
        guess = int(found.teacher.classes[place])
        sure = float(found.teacher.confidence[place])
        teacher = Guess(names[guess], sure, right=guess == label)
    guess = int(vote.classes[place])
    student = Guess(
        names[guess],
        float(vote.confidence[place]),
        int(vote.votes[place]),
        vote.seeds,
        guess == label,
    )
    right = [name for name, hits in others.items() if hits[place]]
    return Card(int(found.images[place]), names[label], teacher, student, right, len(others))


def _confusions(
    networks: Sequence[Predicted], found: PairPredictions
) -> dict[tuple[int, int], float]:
    """{(label, predicted class): mean number of test images} where the two differ."""
    classes = np.stack([each.classes for each in networks]).astype(np.int64)
    wrong = classes != found.labels
    labels = np.broadcast_to(found.labels, classes.shape)[wrong].astype(np.int64)
    codes, counts = np.unique(labels * found.num_classes + classes[wrong], return_counts=True)
    return {
        divmod(int(code), found.num_classes): int(count) / len(networks)
        for code, count in zip(codes, counts, strict=True)
    }


def _sizes(found: PairPredictions) -> np.ndarray:
    """Test images of each class, (K,)."""
    return np.bincount(found.labels, minlength=found.num_classes)


def _shown_classes(confusions: dict[tuple[int, int], float], num_classes: int) -> list[int]:
    if num_classes <= MOST_CLASSES:
        return list(range(num_classes))
    weight: dict[int, float] = {}
    for (label, guess), count in confusions.items():
        for each in (label, guess):
            weight[each] = weight.get(each, 0.0) + count
    ranked = sorted(weight, key=lambda each: (-weight[each], each))
    return sorted(ranked[:_SOME_CLASSES])


def _matrix(
    who: str,
    networks: Sequence[Predicted],
    found: PairPredictions,
    shown: Sequence[int],
    names: Sequence[str],
) -> Matrix:
    confusions, sizes = _confusions(networks, found), _sizes(found)
    wrong = np.zeros(found.num_classes)
    for (label, _), count in confusions.items():
        wrong[label] += count
    rows = []
    for label in shown:
        size = max(1, sizes[label])
        counts = [confusions.get((label, guess), 0.0) for guess in shown]
        counts[shown.index(label)] = sizes[label] - wrong[label]
        rows.append([float(count / size) for count in counts])
    shown_rows = zip(shown, rows, strict=True)
    rest = [max(0.0, 1 - sum(row)) if sizes[label] else 0.0 for label, row in shown_rows]
    whole = len(shown) == found.num_classes
    classes = [(label, names[label]) for label in shown]
    return Matrix(who, classes, rows, [] if whole else rest)
