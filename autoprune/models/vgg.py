"""VGG with batch norm for images of any side (Simonyan and Zisserman 2015, arXiv:1409.1556).

Axis legend: B batch, C channels, S image side, K classes.
"""

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.models.arguments import require_at_least

CONVS_BY_DEPTH = {
    8: (1, 1, 1, 2, 2),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
SMALLEST_MAP = 2


class VGG(nn.Module):
    """Stages of 3x3 convolutions, batch norm and ReLU; float[B, C, S, S] -> float[B, K].

    Between two stages the map is halved while its side stays at `SMALLEST_MAP` or more, so that
    small images pass through every stage; global average pooling and one linear layer close it.
    """

    def __init__(
        self, stages: list[tuple[int, int]], *, in_channels: int, num_classes: int, image_side: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = in_channels, image_side
        for index, (convs, out_channels) in enumerate(stages):
            if index > 0 and side // 2 >= SMALLEST_MAP:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            for _ in range(convs):
                layers += [
                    nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(inplace=True),
                ]
                channels = out_channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images float[B, C, S, S] to class scores float[B, K]."""
        return self.head(self.pool(self.features(images)).flatten(1))  # type: ignore[no-any-return]


def vgg(
    *,
    width: int = 64,
    depth: int = 16,
    in_channels: int = 3,
    num_classes: int = 10,
    image_side: int = 32,
) -> VGG:
    """A VGG of `depth` weighted layers; `width` channels first, 8 times as many last.

    `depth` is one of `CONVS_BY_DEPTH` (11, 13, 16 and 19 are the paper's, whose three fully
    connected layers are one here). Raises AutopruneError for any other and for sizes below 1.
    """
    require_at_least("vgg", 1, width=width, in_channels=in_channels, image_side=image_side)
    require_at_least("vgg", 2, num_classes=num_classes)
    if depth not in CONVS_BY_DEPTH:
        raise AutopruneError(f"model 'vgg': depth is {depth!r}; choose one of {[*CONVS_BY_DEPTH]}")
    widths = (width, 2 * width, 4 * width, 8 * width, 8 * width)
    return VGG(
        list(zip(CONVS_BY_DEPTH[depth], widths, strict=True)),
        in_channels=in_channels,
        num_classes=num_classes,
        image_side=image_side,
    )
