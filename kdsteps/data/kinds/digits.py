"""Real handwritten digits that come with scikit-learn: 1,797 grey images of 8 x 8."""

from __future__ import annotations

from typing import Literal

import numpy as np

from kdsteps.data.source import Source


def load(*, size: Literal[8, 16, 32] = 8) -> Source:
    """The digits, each pixel repeated until the side is `size`.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI; the test
    part of it, as scikit-learn ships it.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images * 255 / 16).round().astype(np.uint8)  # (N, 8, 8), values were 0 to 16
    grey = grey.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    return Source(
        images=grey[:, None],
        labels=digits.target.astype(np.int64),
        class_names=tuple(str(name) for name in digits.target_names),
        split=np.full(len(grey), ""),
        names=tuple(f"digit {row}" for row in range(len(grey))),
    )
