"""The expensive step of scoring: inner products of all images of a sample, in one layer.

Cosines, distances and class spectra all follow from it. It is accumulated over chunks of feature
columns, so that a layer of any width needs the memory of one chunk and of one (N, N) matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdsteps.errors import KdstepsError

_VALUES_AT_ONCE = 2**23  # of a chunk, in the precision of the products: 32 or 64 MiB
_FLOAT64_UP_TO = 2000  # images; for more, float64 would double the seconds and the memory
_ROWS_AT_ONCE = 512  # only blocks on and above the diagonal are multiplied, half of the work


class LayerGram:
    """Inner products of N images in one layer, gathered over chunks of its D features.

    Images are put in order of their class, so that a class is a slice of rows. Each column is
    centered on its mean over the sample before the product: distances and class spectra do not
    change, and lose far less to cancellation; what centering removes from the raw inner products
    is stored in `pull` and `mean_square`. Products are computed in float64 for up to 2,000
    images, and in float32 for larger ones unless the features are float64. Scores then differ
    by some 1e-7 (a few 1e-6 in a layer whose classes have collapsed to a point), far less than
    storing features in float16 costs.

    Attributes:
        classes: Slice of rows of each class, in order of the labels.
        spectra_rows: Rows of each class that its spectrum is taken from.
        varying: (K,), for each class the number of features that differ among its
            `spectra_rows`; counted only as far as the number of those rows.
        width: D, the number of columns seen so far.
        squares: (N,) float64, squared norms of the raw features.
        pull: (N,) float64, inner products of the centered features with the mean.
        mean_square: Squared norm of the mean.
    """

    def __init__(
        self, labels: Tensor, *, spectra_per_class: int, seed: int, where: str = "features"
    ) -> None:
        """Sort the images by class and choose those whose spectra are taken.

        Args:
            labels: (N,), whole numbers; they need not be consecutive.
            spectra_per_class: Images of a class from which its spectrum is computed, at least 2;
                drawn at random if the class has more.
            seed: For drawing them.
            where: What error messages start with, such as the layer's name.

        Raises:
            KdstepsError: There are fewer than two classes, or fewer than two images of one.
            ValueError: The labels are not a vector of whole numbers, or `spectra_per_class` < 2.
        """
        if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
            shape = tuple(labels.shape)
            raise ValueError(f"labels must be (N,) whole numbers, not {shape} {labels.dtype}")
        if spectra_per_class < 2:
            raise ValueError(f"spectra_per_class must be at least 2, not {spectra_per_class}")
        names, index, counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
        if len(names) < 2:
            raise KdstepsError(
                f"{where}: the sample has images of {len(names)} class; scores compare classes "
                "and need at least 2"
            )
        if counts.min() < 2:
            lonely = names[counts.argmin()].item()
            raise KdstepsError(
                f"{where}: class {lonely} has 1 image in the sample; scores compare images of a "
                "class and need at least 2 of each"
            )
        stops = counts.cumsum(0).tolist()
        self.classes = [slice(a, b) for a, b in zip([0, *stops], stops, strict=False)]
        generator = torch.Generator().manual_seed(seed)
        self.spectra_rows = [
            _drawn(rows, spectra_per_class, generator=generator) for rows in self.classes
        ]
        self.where = where
        self.width = 0
        self.varying = torch.zeros(len(names), dtype=torch.int64)
        self.squares = torch.zeros(len(labels), dtype=torch.float64)
        self.pull = torch.zeros(len(labels), dtype=torch.float64)
        self.mean_square = 0.0
        self._order = index.argsort(stable=True)
        self._products: Tensor | None = None  # (N, N), blocks on and above the diagonal
        self._mirrored = False

    @property
    def num_images(self) -> int:
        """N, the images of the sample."""
        return len(self._order)

    @torch.no_grad()
    def add(self, columns: Tensor) -> None:
        """Add more features of all images.

        Args:
            columns: (N, any number of features), rows in the order of the labels; the first
                chunk decides the precision and the device for all.

        Raises:
            KdstepsError: A value is not finite.
            ValueError: The number of rows is not that of the labels.
        """
        if columns.dim() != 2 or len(columns) != self.num_images:
            shape = tuple(columns.shape)
            raise ValueError(f"features must be ({self.num_images}, D) to fit labels, not {shape}")
        if self._products is None:
            self._start(columns)
        step = max(1, _VALUES_AT_ONCE // self.num_images)
        for start in range(0, columns.shape[1], step):
            self._add_narrow(columns[:, start : start + step])
        self.width += columns.shape[1]

    @property
    def products(self) -> Tensor:
        """(N, N) inner products of the centered features, rows and columns in order of class."""
        if self._products is None or self.width == 0:
            raise ValueError("no features have been added")
        if not self._mirrored:
            for start in range(0, self.num_images, _ROWS_AT_ONCE):
                stop = start + _ROWS_AT_ONCE
                self._products[stop:, start:stop] = self._products[start:stop, stop:].T
            self._mirrored = True
        return self._products

    def _start(self, columns: Tensor) -> None:
        exact = columns.dtype == torch.float64 or self.num_images <= _FLOAT64_UP_TO
        dtype = torch.float64 if exact else torch.float32
        shape = (self.num_images, self.num_images)
        self._products = torch.zeros(shape, dtype=dtype, device=columns.device)
        for name in ("_order", "varying", "squares", "pull"):
            setattr(self, name, getattr(self, name).to(columns.device))

    def _add_narrow(self, columns: Tensor) -> None:
        assert self._products is not None
        features = columns.index_select(0, self._order).to(self._products.dtype)
        squares = torch.linalg.vector_norm(features, dim=1).double().square()
        self._refuse_not_finite(squares)
        self.squares += squares
        self._count_varying(features)
        mean = features.mean(dim=0)
        features -= mean
        self.pull += (features @ mean).double()
        self.mean_square += mean.double().square().sum().item()
        for start in range(0, self.num_images, _ROWS_AT_ONCE):
            stop = start + _ROWS_AT_ONCE
            self._products[start:stop, start:].addmm_(features[start:stop], features[start:].T)
        self._mirrored = False

    def _refuse_not_finite(self, squares: Tensor) -> None:
        wrong = self._order[~squares.isfinite()]
        if len(wrong):
            raise KdstepsError(
                f"{self.where}: features of {len(wrong)} images are not finite, first in image "
                f"{wrong.min().item()} of the sample; they should be numbers within the range of "
                "float16, so check the teacher and the images"
            )

    def _count_varying(self, features: Tensor) -> None:
        """Count features that differ within a class by more than float rounding."""
        for index, rows in enumerate(self.spectra_rows):
            if self.varying[index] >= len(rows):
                continue  # more cannot raise the rank of its spectrum
            low, high = features[rows.to(features.device)].aminmax(dim=0)
            scale = torch.maximum(low.abs(), high.abs())
            differ = (high - low) > torch.finfo(torch.float32).eps * scale
            self.varying[index] += differ.sum()


def _drawn(rows: slice, limit: int, *, generator: torch.Generator) -> Tensor:
    start, stop = int(rows.start), int(rows.stop)
    if stop - start <= limit:
        return torch.arange(start, stop)
    chosen: Tensor = torch.randperm(stop - start, generator=generator)[:limit].sort().values
    return chosen + start
