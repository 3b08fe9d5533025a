"""VGG with batch normalization: the small-image form of the benchmark and the classic one.

State-dict keys are those of the CIFAR-100 benchmark in its own form; the classic form keeps the
names of the convolutions and has a classifier of three linear layers.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import nn

from kdsteps.errors import KdstepsError
from kdsteps.models.blocks import draw_weights, pooled
from kdsteps.models.chain import BlockChain
from kdsteps.models.families._sizes import Width
from kdsteps.models.image_size import ImageSize, as_text, height_width

WIDTHS = (64, 128, 256, 512, 512)
REPEATS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    depth: Literal[8, 11, 13, 16, 19] = 8,
    form: Literal["benchmark", "classic"] = "benchmark",
    hidden: Width = 4096,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
) -> Vgg:
    """A VGG for images of at least 8 pixels, 32 in the classic form.

    Args:
        depth: The number in the network's name.
        form: `benchmark` halves the map before stages 1 to 3, from 64 pixels on before the last
            one too, and classifies the pooled features; `classic` halves it after every stage and
            has two hidden layers.
        hidden: Width of the hidden layers; of the classic form alone.
        dropout: Fraction dropped after each hidden layer in training; of the classic form alone.

    Raises:
        KdstepsError: The images are too small to be halved as often.

    Source: Simonyan and Zisserman 2015, arXiv:1409.1556, table 1. The benchmark form is that of
    megvii-research/mdistiller; the classic form at 32 pixels, its features pooled to a single
    position, that of Cooper et al. 2025, arXiv:2511.14981.
    """
    classic = form == "classic"
    side = None if image_size is None else min(height_width(image_size))
    halved_last = classic or (side is not None and side >= 64)
    smallest = 32 if classic else 8
    if image_size is not None and side is not None and side < smallest:
        raise KdstepsError(
            f"models: image_size {as_text(image_size)} is too small for vgg in its {form} form, "
            f"which takes {smallest} pixels or more"
        )
    classifier = Classifier(hidden, dropout) if classic else None
    return Vgg(num_classes, in_channels, REPEATS[depth], halved_last, classifier)


class Classifier(NamedTuple):
    """Two hidden layers between the pooled features and the logits."""

    hidden: int
    dropout: float


class Vgg(BlockChain):
    """Layers: `block0.0` … `block4.<n-1>`, each a convolution with norm and ReLU, and `pool`.

    The classic form goes on with `hidden0` and `hidden1`.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        repeats: tuple[int, ...],
        halved_last: bool,
        classifier: Classifier | None,
    ) -> None:
        super().__init__()
        blocks: dict[str, nn.Module] = {}
        inputs = in_channels
        for number, (repeat, width) in enumerate(zip(repeats, WIDTHS, strict=True)):
            stage = nn.Sequential()
            halved = number in (1, 2, 3) or (number == 4 and halved_last)
            for index in range(repeat):
                unit = (nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
                stage.extend(unit)
                shrink = (nn.MaxPool2d(2),) if halved and index == 0 else ()
                blocks[f"block{number}.{index}"] = nn.Sequential(*shrink, *unit)
                inputs = width
            self.add_module(f"block{number}", stage)
        blocks |= self._classifying(inputs, num_classes, classifier)
        stages = tuple(f"block{n}.{repeat - 1}" for n, repeat in enumerate(repeats) if n > 0)
        self.line_up(blocks, stages=stages)
        draw_weights(self, linear_std=0.01)

    def _classifying(
        self, inputs: int, num_classes: int, classifier: Classifier | None
    ) -> dict[str, nn.Module]:
        """The blocks after the convolutions, with dropout before the second and third layer."""
        if classifier is None:
            self.classifier: nn.Module = nn.Linear(inputs, num_classes)
            return {"pool": pooled(), "head": self.classifier}
        hidden, dropout = classifier
        self.classifier = layers = nn.Sequential(
            *(nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout)),
            nn.Linear(hidden, num_classes),
        )
        return {
            "pool": nn.Sequential(nn.MaxPool2d(2), *pooled()),
            "hidden0": layers[:2],
            "hidden1": layers[2:5],
            "head": layers[5:],
        }
