"""Vision transformers for small images, classified by the mean of their tokens.

ViT_ETT is the default; ViT_B is width 768, depth 12, heads 12, mlp 3072.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdsteps.errors import KdstepsError
from kdsteps.models.chain import BlockChain, TokenGrid
from kdsteps.models.families._sizes import Depth, Width
from kdsteps.models.image_size import ImageSize, as_text, height_width

GRID = 8  # patches to a side by default
NUM_CUTS = 4


def build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize | None,
    patch: Width | None = None,
    width: Width = 192,
    depth: Depth = 8,
    heads: Width = 6,
    mlp: Width = 576,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    zero_head: bool = True,
) -> VisionTransformer:
    """A vision transformer for images of one size.

    Args:
        patch: Side of a patch in pixels; None: the side that comes nearest to 8 x 8 patches,
            4 pixels for images of 32 and 8 for 64.
        width: Features of a token.
        depth: Encoder blocks.
        heads: Attention heads, a divisor of the width.
        mlp: Hidden features of a block's two-layer part.
        dropout: Fraction dropped in training after the positions are added and after each part of a
            block.
        zero_head: Initialize the classifier with zeros, so that all classes start alike.

    Raises:
        KdstepsError: No image size is known, the patches do not tile it, or the heads do not
            divide the width.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1; sizes, the mean over all tokens
    with the class token among them, and the classifier of zeros as in Cooper et al. 2025,
    arXiv:2511.14981.
    """
    if image_size is None:
        raise KdstepsError("models: vit needs to know image_size, which is not given")
    height, width_px = height_width(image_size)
    if patch is None:
        patch = nearest_patch(height, width_px)
    if height % patch or width_px % patch:
        raise KdstepsError(
            f"models: patch {patch} of vit does not tile images of {as_text(image_size)} pixels; "
            f"{nearest_patch(height, width_px)} would"
        )
    if problem := options_problem(width=width, heads=heads):
        raise KdstepsError(f"models: vit: {problem}")
    stem = PatchEmbedding(in_channels, (height, width_px), patch, width)
    blocks = [EncoderBlock(width, heads, mlp, dropout) for _ in range(depth)]
    return VisionTransformer(num_classes, stem, blocks, dropout, zero_head=zero_head)


def options_problem(*, width: int, heads: int) -> str | None:
    """What is wrong with the number of heads."""
    if width % heads == 0:
        return None
    return f"heads is {heads}, which does not divide width {width}; use a divisor of it"


def nearest_patch(height: int, width: int) -> int:
    """The side of the square patch that tiles the image in about 8 x 8 patches; the smaller of two.

    Where height and width differ, in about 64 patches.
    """
    common = math.gcd(height, width)
    sides = [side for side in range(1, common + 1) if common % side == 0]
    return min(sides, key=lambda side: abs(side - math.sqrt(height * width) / GRID))


class VisionTransformer(BlockChain):
    """Layers: `stem`, `blocks.0` … `blocks.<depth-1>`, all tokens (N, T, D), and `pool`.

    The stem embeds the patches and puts the class token before them; the first block begins by
    adding the positions. The default cuts are the ends of the quarters.
    """

    def __init__(
        self,
        num_classes: int,
        stem: PatchEmbedding,
        blocks: list[EncoderBlock],
        dropout: float,
        *,
        zero_head: bool,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.positions = Positions(stem.num_tokens, stem.width, dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(stem.width, eps=1e-6)
        self.head = nn.Linear(stem.width, num_classes)
        if zero_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        line: dict[str, nn.Module] = {"stem": stem}
        line |= {f"blocks.{index}": block for index, block in enumerate(blocks)}
        line["blocks.0"] = nn.Sequential(self.positions, blocks[0])
        line |= {"pool": nn.Sequential(self.norm, TokenMean()), "head": self.head}
        ends = sorted({math.ceil(len(blocks) * n / NUM_CUTS) - 1 for n in range(1, NUM_CUTS + 1)})
        self.line_up(
            line, stages=tuple(f"blocks.{end}" for end in ends), inner="tokens", grid=stem.grid
        )


class PatchEmbedding(nn.Module):
    """Images (N, C, H, W) to tokens (N, 1 + patches, D), the class token first."""

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], patch: int, width: int
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.width = width
        height, width_px = image_size
        self.grid = TokenGrid(1, height // patch, width_px // patch)
        self.num_tokens = self.grid.prefix + self.grid.height * self.grid.width
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.conv = nn.Conv2d(in_channels, width, patch, stride=patch)
        fan_in = in_channels * patch**2
        nn.init.trunc_normal_(self.conv.weight, std=math.sqrt(1 / fan_in))
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[2:]) != self.image_size:
            size, own = (
                f"{images.shape[2]} x {images.shape[3]}",
                " x ".join(map(str, self.image_size)),
            )
            raise ValueError(f"images are {size}, this network takes {own}")
        patches = self.conv(images).flatten(2).transpose(1, 2)  # (N, patches, D)
        return torch.cat((self.class_token.expand(images.shape[0], -1, -1), patches), dim=1)


class Positions(nn.Module):
    """Learned positions, added to the tokens."""

    def __init__(self, num_tokens: int, width: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, num_tokens, width).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.dropout(tokens + self.table)
        return output


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer part, each on normalized tokens and added to its input."""

    def __init__(self, width: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, width)
        )
        self.dropout = nn.Dropout(dropout)
        draw_linear(self)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens)))
        output: Tensor = tokens + self.dropout(self.mlp(self.norm2(tokens)))
        return output


class Attention(nn.Module):
    """Multi-head self-attention over tokens (N, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))  # (N, T, 3, heads, D / heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, T, D / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output


class TokenMean(nn.Module):
    """Tokens (N, T, D) averaged to features (N, D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


def draw_linear(network: nn.Module) -> None:
    """Draw every linear layer uniformly from a range set by its two widths, with zero biases.

    Source: Glorot and Bengio 2010, section 4.2.1.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
