"""A multilayer perceptron on flattened inputs.

Axis legend: B batch, C channels, S image side, K classes.
"""

import torch
from torch import nn

from autoprune.models.arguments import require_at_least


class MLP(nn.Module):
    """Flatten, hidden layers of one width with ReLU, a head; float[B, C, S, S] -> float[B, K]."""

    def __init__(self, in_features: int, *, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        features = in_features
        for _ in range(depth):
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(features, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images float[B, C, S, S] to class scores float[B, K]."""
        return self.head(self.hidden(images.flatten(1)))  # type: ignore[no-any-return]


def mlp(
    *,
    width: int = 256,
    depth: int = 2,
    in_channels: int = 3,
    num_classes: int = 10,
    image_side: int = 32,
) -> MLP:
    """A perceptron of `depth` hidden layers with `width` neurons each.

    Raises AutopruneError for sizes below 1.
    """
    require_at_least("mlp", 1, width=width, depth=depth)
    require_at_least("mlp", 1, in_channels=in_channels, image_side=image_side)
    require_at_least("mlp", 2, num_classes=num_classes)
    return MLP(in_channels * image_side**2, width=width, depth=depth, num_classes=num_classes)
