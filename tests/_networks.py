"""Tiny networks for tests: as teachers and students, convolutional and made of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdsteps.models import build_model
from kdsteps.models.chain import Chain

IMAGE_SHAPE = (3, 16, 16)
NUM_CLASSES = 5

_VIT = {"patch": 4, "heads": 2, "mlp": 12, "zero_head": False}
ENTRIES: dict[str, dict[str, Any]] = {
    "resnet": {"family": "cifar_resnet", "options": {"depth": 8, "widths": (4, 4, 6, 8)}},
    "large resnet": {"family": "cifar_resnet", "options": {"depth": 14, "widths": (6, 8, 10, 12)}},
    "large wide resnet": {"family": "wide_resnet", "options": {"depth": 10, "width": 1}},
    "mobilenet": {"family": "mobilenet", "options": {"width": 0.25}},
    "vit": {"family": "vit", "options": {"width": 8, "depth": 3, **_VIT}},
    "large vit": {"family": "vit", "options": {"width": 12, "depth": 4, **_VIT}},
}
CUT_ENTRIES: dict[str, dict[str, Any]] = {
    "timm resnet": {"family": "timm", "options": {"name": "test_resnet"}},
    "timm vit": {
        "family": "timm",
        "options": {"name": "test_vit", "patch_size": 4, "attn_drop_rate": 0.5},
    },
    "torchvision mobilenet": {"family": "torchvision", "options": {"name": "mobilenet_v2"}},
}
"""Networks of other libraries, cut by their graphs; the libraries take seconds to import."""
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "cifar_resnet": ("cifar_resnet", {"depth": 14, "widths": (4, 4, 8, 8)}),
    "wide_resnet": ("wide_resnet", {"depth": 16, "width": 1, "dropout": 0.3}),
    "vgg": ("vgg", {"depth": 11}),
    "vgg classic": ("vgg", {"depth": 11, "form": "classic", "hidden": 16}),
    "mobilenet": ("mobilenet", {"width": 0.25}),
    "mobilenet standard": ("mobilenet", {"form": "standard", "width": 0.25}),
    "shufflenet 1": ("shufflenet", {"version": 1, "size": 0.5}),
    "shufflenet 2": ("shufflenet", {"version": 2, "size": 0.5}),
    "resnet": ("resnet", {"depth": 9, "stem_pool": True, "zero_init": False}),
    "resnet 50": ("resnet", {"depth": 50}),
    "vit": ("vit", {"width": 8, "depth": 3, "heads": 2, "mlp": 8, "zero_head": False}),
}
"""Small networks of every form of every own family, for images of 32 x 32."""


def build(entry: dict[str, Any], num_classes: int = NUM_CLASSES) -> Chain:
    """The network of an entry, for images of `IMAGE_SHAPE`."""
    size = IMAGE_SHAPE[-1]
    return build_model(
        entry["family"], num_classes=num_classes, image_size=size, **entry["options"]
    )


def network(kind: str, seed: int = 0, num_classes: int = NUM_CLASSES) -> Chain:
    """A network by its kind in training mode, its batch statistics as if it had been trained."""
    torch.manual_seed(seed)
    chain = build((ENTRIES | CUT_ENTRIES)[kind], num_classes)
    for module in chain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return chain


def teacher_of(kind: str, num_classes: int = NUM_CLASSES) -> Chain:
    """A frozen network in eval mode."""
    return network(kind, seed=1, num_classes=num_classes).requires_grad_(False).eval()


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether two outputs are the same: exactly on a CPU, up to rounding on a GPU."""
    if not first.is_cuda:
        return torch.equal(first, second)
    return bool((first - second).abs().max() <= 1e-5 * first.abs().max())
