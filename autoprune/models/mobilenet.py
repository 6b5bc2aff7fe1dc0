"""MobileNetV2 for images of any side (Sandler et al. 2018, arXiv:1801.04381).

Axis legend: B batch, C channels, S image side, K classes.
"""

from dataclasses import dataclass

import torch
from torch import nn

from autoprune.models.arguments import require_at_least, require_positive

STEM_CHANNELS = 32
LAST_CHANNELS = 1280
SMALLEST_MAP = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the paper's table 2; `halves` marks a stride of 2 in the paper."""

    expansion: int
    channels: int
    blocks: int
    halves: bool


STAGES = (
    Stage(1, 16, 1, halves=False),
    Stage(6, 24, 2, halves=True),
    Stage(6, 32, 3, halves=True),
    Stage(6, 64, 4, halves=True),
    Stage(6, 96, 3, halves=False),
    Stage(6, 160, 3, halves=True),
    Stage(6, 320, 1, halves=False),
)


def _conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = kernel // 2
    return [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=padding, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    ]


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter by a depthwise 3x3, project by a linear 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        expand = [*_conv(in_channels, inner, 1), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *_conv(inner, inner, 3, stride=stride, groups=inner),
            nn.ReLU6(),
            *_conv(inner, out_channels, 1),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Feature maps to feature maps, halved where the stride is 2."""
        inner: torch.Tensor = self.layers(maps)
        return maps + inner if self.residual else inner


class MobileNetV2(nn.Module):
    """Stem, stages of inverted residuals, a wide 1x1; float[B, C, S, S] -> float[B, K].

    The paper halves the map five times. Smaller images leave out the first of those halvings,
    as many as it takes to end on a map of `SMALLEST_MAP` or more.
    """

    def __init__(
        self,
        *,
        width: float,
        depth: float,
        in_channels: int,
        num_classes: int,
        image_side: int,
    ) -> None:
        super().__init__()
        places = 1 + sum(stage.halves for stage in STAGES)
        skipped = max(0, places - max(0, (image_side // SMALLEST_MAP).bit_length() - 1))
        channels = _rounded(STEM_CHANNELS * width)
        layers = [*_conv(in_channels, channels, 3, stride=1 if skipped else 2), nn.ReLU6()]
        place = 1
        for stage in STAGES:
            halve = stage.halves and place >= skipped
            place += stage.halves
            out_channels = _rounded(stage.channels * width)
            for block in range(max(1, round(stage.blocks * depth))):
                stride = 2 if halve and block == 0 else 1
                layers.append(
                    InvertedResidual(
                        channels, out_channels, expansion=stage.expansion, stride=stride
                    )
                )
                channels = out_channels
        last = _rounded(LAST_CHANNELS * max(1.0, width))
        self.features = nn.Sequential(*layers, *_conv(channels, last, 1), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images float[B, C, S, S] to class scores float[B, K]."""
        return self.head(self.pool(self.features(images)).flatten(1))  # type: ignore[no-any-return]


def _rounded(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, never more than 10% below, as the paper rounds."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def mobilenet(
    *,
    width: float = 1.0,
    depth: float = 1.0,
    in_channels: int = 3,
    num_classes: int = 10,
    image_side: int = 32,
) -> MobileNetV2:
    """MobileNetV2 with the paper's channels times `width` and blocks a stage times `depth`.

    Raises AutopruneError for multipliers that are not above 0 and for sizes below 1.
    """
    require_positive("mobilenet", width=width, depth=depth)
    require_at_least("mobilenet", 1, in_channels=in_channels, image_side=image_side)
    require_at_least("mobilenet", 2, num_classes=num_classes)
    return MobileNetV2(
        width=width,
        depth=depth,
        in_channels=in_channels,
        num_classes=num_classes,
        image_side=image_side,
    )
