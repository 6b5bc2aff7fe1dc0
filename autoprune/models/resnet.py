"""The residual networks for CIFAR (He et al. 2016, arXiv:1512.03385, section 4.2).

Axis legend: B batch, C channels, S image side, K classes.
"""

import torch
from torch import nn
from torch.nn import functional

from autoprune.domain.errors import AutopruneError
from autoprune.models.arguments import require_at_least


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Where the shape changes the shortcut is a 1x1 convolution (the paper's option B): option A
    pads with zero channels, which no dependency graph can follow.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Feature maps to feature maps, halved where the stride is 2."""
        inner = functional.relu(self.norm1(self.conv1(maps)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps))


class ResNet(nn.Module):
    """Three stages of residual blocks; float[B, C, S, S] -> float[B, K]."""

    def __init__(self, *, width: int, blocks: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential()
        channels = width
        for stage in range(3):
            out_channels = width << stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                self.stages.append(Block(channels, out_channels, stride=stride))
                channels = out_channels
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images float[B, C, S, S] to class scores float[B, K]."""
        maps = self.stages(functional.relu(self.norm(self.conv(images))))
        return self.head(self.pool(maps).flatten(1))  # type: ignore[no-any-return]


def resnet(
    *, width: int = 16, depth: int = 20, in_channels: int = 3, num_classes: int = 10
) -> ResNet:
    """The CIFAR ResNet of `depth` = 6n + 2 weighted layers (20, 56, ...), for any image side.

    `width` is the number of channels of the first stage; the others have 2 and 4 times as many.
    Raises AutopruneError for another depth and for sizes below 1.
    """
    require_at_least("resnet", 1, width=width, in_channels=in_channels)
    require_at_least("resnet", 2, num_classes=num_classes)
    require_at_least("resnet", 8, depth=depth)
    if (depth - 2) % 6:
        raise AutopruneError(f"model 'resnet': depth is {depth}; choose 6n + 2, such as 20 or 56")
    return ResNet(
        width=width, blocks=(depth - 2) // 6, in_channels=in_channels, num_classes=num_classes
    )
