"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929).

Axis legend: B batch, C channels, S image side, T tokens, D embedding, K classes.
"""

import torch
from torch import nn
from torch.nn import functional

from autoprune.domain.errors import AutopruneError
from autoprune.models.arguments import require_at_least

HEAD_WIDTH = 16
EXPANSION = 4


class Block(nn.Module):
    """Self-attention and a feed-forward network, each behind a layer norm, with residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.project = nn.Linear(EXPANSION * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens float[B, T, D] to tokens float[B, T, D]."""
        normed = self.norm1(tokens)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        tokens = tokens + attended
        return tokens + self.project(functional.gelu(self.expand(self.norm2(tokens))))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Patches, learned positions, blocks, the mean token; float[B, C, S, S] -> float[B, K]."""

    def __init__(
        self, *, width: int, depth: int, in_channels: int, num_classes: int, patch: int, tokens: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images float[B, C, S, S] to class scores float[B, K]."""
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))  # type: ignore[no-any-return]


def vit(
    *,
    width: int = 64,
    depth: int = 6,
    in_channels: int = 3,
    num_classes: int = 10,
    image_side: int = 32,
    patch: int = 4,
) -> ViT:
    """A ViT of `depth` blocks on square patches of `patch` pixels, without a class token.

    `width` is the size of the embedding, one attention head for every `HEAD_WIDTH` of it.
    Raises AutopruneError for sizes below 1, a width that is no multiple of `HEAD_WIDTH`, and an
    image side that is no multiple of `patch`.
    """
    require_at_least("vit", 1, depth=depth, in_channels=in_channels, patch=patch)
    require_at_least("vit", 2, num_classes=num_classes)
    require_at_least("vit", HEAD_WIDTH, width=width)
    require_at_least("vit", patch, image_side=image_side)
    if width % HEAD_WIDTH:
        raise AutopruneError(
            f"model 'vit': width is {width}; choose a multiple of {HEAD_WIDTH}, the width of a head"
        )
    if image_side % patch:
        raise AutopruneError(
            f"model 'vit': image_side {image_side} is no multiple of patch {patch}; "
            "choose a patch that divides the side"
        )
    return ViT(
        width=width,
        depth=depth,
        in_channels=in_channels,
        num_classes=num_classes,
        patch=patch,
        tokens=(image_side // patch) ** 2,
    )
