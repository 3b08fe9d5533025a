"""The kind of data `digits`, which needs no files."""

from __future__ import annotations

from typing import Literal

import numpy as np

from kdsteps.data.source import Source


def load(*, size: Literal[8, 16, 32] = 8) -> Source:
    """Scikit-learn's handwritten digits: 1,797 gray images of 8 x 8 pixels, 10 classes.

    Args:
        size: Height and width; each pixel is repeated until the image is that large.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI; its test
    set, which comes with scikit-learn.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = (digits.images * 255 / 16).round().astype(np.uint8)  # (N, 8, 8), values were 0 to 16
    gray = gray.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    return Source(
        images=gray[:, None],
        labels=digits.target.astype(np.int64),
        class_names=tuple(str(name) for name in digits.target_names),
        split=np.full(len(gray), ""),
        names=tuple(f"digit {row}" for row in range(len(gray))),
    )
