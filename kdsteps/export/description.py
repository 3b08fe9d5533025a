"""What an exported network says about itself: its classes, the images it takes, its origin.

The description is a JSON text in the metadata of an ONNX file, so that the file alone is enough to
predict with it. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kdsteps.data.form import Form, Size
from kdsteps.errors import KdstepsError

METADATA_KEY = "kdsteps"
INPUT, OUTPUT = "images", "logits"
_FORMAT = 1


@dataclass(frozen=True)
class Description:
    """One exported network.

    Attributes:
        run: Pair, method and seed, as `resnet20-resnet8/kd/0`.
        network: Name of the student in the study.
        classes: One name for each output, in their order.
        channels: 1 for gray, 3 for color.
        image_size: Height and width in pixels of the images that the network was trained on, after
            the steps below.
        resize, store, crop: How an image file becomes such an image, as in `Form`.
        mean, std: The normalization inside the network, for each channel on the scale 0 to 1.
        provenance: Where the network is from: version of kdsteps, commit, digests. No paths.
    """

    run: str
    network: str
    classes: Sequence[str]
    channels: Literal[1, 3]
    image_size: tuple[int, int]
    resize: Size | None
    store: Size | None
    crop: Size | None
    mean: Sequence[float]
    std: Sequence[float]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> Form:
        """How image files are decoded."""
        return Form(self.channels, self.resize, self.store, self.crop)

    def as_json(self) -> str:
        """The text for the metadata of a file."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> Description:
        """Read what `as_json` wrote.

        Args:
            where: The beginning of an error's sentence.

        Raises:
            KdstepsError: The text is damaged, or from a later version.
        """
        try:
            content = json.loads(text)
            found = content.pop("format")
            if found != _FORMAT:
                raise KdstepsError(
                    f"{where}: its description has format {found!r}, this version of kdsteps reads "
                    f"{_FORMAT}; use the version that wrote it"
                )
            height, width = content.pop("image_size")
            return cls(**content, image_size=(int(height), int(width)))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise KdstepsError(
                f"{where}: its description is damaged; export the network again"
            ) from None
