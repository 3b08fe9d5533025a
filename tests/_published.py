"""Networks of timm and torchvision of every kind, small ones at small images."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdsteps.models import build_model
from kdsteps.models.chain import Chain


class Published(NamedTuple):
    """A network to try.

    Attributes:
        family: timm or torchvision.
        name: As the family has it.
        image_size: Pixels, as few as it takes.
        stages: How many default cuts are expected.
        options: That make it smaller.
    """

    family: str
    name: str
    image_size: int
    stages: int
    options: Mapping[str, Any] = MappingProxyType({})

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


T, V = "timm", "torchvision"

# one of each kind, quick enough for every run
FEW = [
    Published(T, "resnet10t", 32, 4),
    Published(T, "vit_tiny_patch16_224", 32, 4, {"depth": 6}),
    Published(T, "test_convnext", 64, 4),
    Published(T, "xcit_nano_12_p8_224", 32, 4),
    Published(V, "mobilenet_v3_small", 32, 4),
]

MANY = [
    Published(T, "resnetv2_18", 32, 4),
    Published(T, "seresnet18", 32, 4),
    Published(T, "skresnet18", 32, 4),
    Published(T, "resnest14d", 32, 4),
    Published(T, "res2net50_26w_4s", 32, 4),
    Published(T, "vgg11_bn", 32, 6, {"mlp_ratio": 0.03}),
    Published(T, "densenet121", 32, 4),
    Published(T, "dla46x_c", 32, 6),
    Published(T, "dpn48b", 32, 5),
    Published(T, "cspresnet50", 32, 4),
    Published(T, "ese_vovnet19b_slim", 32, 4),
    Published(T, "mobilenetv1_100", 32, 5),
    Published(T, "mobilenetv2_050", 32, 5),
    Published(T, "mobilenetv3_small_050", 32, 4),
    Published(T, "mobilenetv4_conv_small", 32, 4),
    Published(T, "mobileone_s0", 32, 5),
    Published(T, "test_efficientnet", 32, 5),
    Published(T, "tinynet_e", 32, 5),
    Published(T, "regnetx_002", 32, 4),
    Published(T, "regnety_002", 32, 4),
    Published(T, "nf_regnet_b0", 32, 4),
    Published(T, "test_nfnet", 32, 4),
    Published(T, "repvgg_a0", 32, 5),
    Published(T, "ghostnet_050", 32, 5),
    Published(T, "hrnet_w18_small", 64, 2),
    Published(T, "convnextv2_atto", 32, 4),
    Published(T, "inception_next_atto", 64, 4),
    Published(T, "mobilevit_xxs", 64, 5),
    Published(T, "edgenext_xx_small", 64, 4),
    Published(T, "fastvit_t8", 64, 4),
    Published(T, "poolformer_s12", 64, 4),
    Published(T, "deit_tiny_distilled_patch16_224", 32, 4, {"depth": 4}),
    Published(T, "cait_xxs24_224", 32, 4, {"depth": 4}),
    Published(T, "eva02_tiny_patch14_224", 56, 4, {"depth": 4}),
    Published(T, "vit_relpos_small_patch16_224", 32, 4, {"depth": 4, "embed_dim": 96}),
    Published(T, "mixer_s16_224", 32, 4),
    Published(T, "gmlp_ti16_224", 32, 4),
    Published(T, "swin_tiny_patch4_window7_224", 64, 4, {"embed_dim": 24}),
    Published(T, "swinv2_tiny_window8_256", 64, 4, {"embed_dim": 24}),
    Published(T, "maxvit_pico_rw_256", 64, 5),
    Published(T, "mvitv2_tiny", 64, 4),
    Published(T, "pvt_v2_b0", 64, 4),
    Published(T, "twins_svt_small", 64, 4),
    Published(T, "levit_128s", 64, 3),
    Published(T, "pit_ti_224", 64, 3),
    Published(T, "coat_lite_tiny", 64, 4),
    Published(T, "tiny_vit_5m_224", 64, 4),
    Published(V, "alexnet", 64, 3),
    Published(V, "vgg11", 32, 5),
    Published(V, "resnet18", 32, 4),
    Published(V, "densenet121", 32, 4),
    Published(V, "mobilenet_v2", 32, 5),
    Published(V, "efficientnet_b0", 32, 5),
    Published(V, "regnet_y_400mf", 32, 4),
    Published(V, "shufflenet_v2_x0_5", 32, 3),
    Published(V, "squeezenet1_1", 64, 3),
    Published(V, "googlenet", 32, 3),
    Published(V, "inception_v3", 96, 3),
    Published(V, "convnext_tiny", 32, 4),
    Published(V, "swin_t", 32, 4),
    Published(V, "vit_b_32", 32, 4),
]


@torch.no_grad()
def stir(network: nn.Module, images: Tensor) -> None:
    """Give a fresh network a life: else scales of 0 and 1, or vanishing maps, hide a wrong cut.

    Scales and zero weights move away from where they start; BN statistics become those of the
    images, shaken.
    """
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.ndim <= 1:
            parameter.add_(0.1 + 0.3 * torch.rand(parameter.shape, generator=generator))
        elif not parameter.any():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    norms = [module for module in network.modules() if isinstance(module, _NormBase)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.add_(0.1 * torch.rand(norm.running_mean.shape, generator=generator))
            norm.running_var.mul_(0.7 + torch.rand(norm.running_var.shape, generator=generator))
    network.eval()


def build(published: Published, num_classes: int = 5, **options: Any) -> Chain:
    """The network of the table as a chain, in training mode."""
    return build_model(
        published.family,
        name=published.name,
        num_classes=num_classes,
        image_size=published.image_size,
        **{**published.options, **options},
    )


def pictures(published: Published, count: int, seed: int = 0, channels: int = 3) -> Tensor:
    """Images of noise, (count, channels, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    size = published.image_size
    return torch.rand(count, channels, size, size, generator=generator)
