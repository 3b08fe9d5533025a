"""Whether an accuracy is more than chance."""

from __future__ import annotations

LEARNED = 0.01  # of what lies between chance and all images right


def at_chance(accuracy: float, chance: float) -> bool:
    """Whether predictions are hardly better than chance, so that nothing useful was learned.

    Args:
        accuracy: A fraction.
        chance: The accuracy of always predicting the most common class.
    """
    return accuracy < chance + LEARNED * (1 - chance)
