"""Networks and data for the tests of criteria: every kind of layer that a group may hold."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.domain.objective import Metric
from autoprune.models import mlp, mobilenet, resnet, vgg, vit
from autoprune.tasks.protocol import device_of, move
from tests.random_networks import random_net


class Noise:
    """Random inputs of one shape and random labels: `count` batches of four samples."""

    metrics = (Metric("accuracy"),)

    def __init__(self, shape: tuple[int, ...], *, classes: int = 3, count: int = 3) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(4 * count, *shape, generator=generator)
        self.y = torch.randint(0, classes, (4 * count,), generator=generator)

    def batches(self, split: str, *, seed: int | None = None) -> list[Any]:
        del split, seed
        pairs = zip(self.x.split(4), self.y.split(4), strict=True)
        return [pair for pair in pairs if len(pair[0])]

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = move(batch, device_of(model))
        dtype = next(model.parameters()).dtype
        return F.cross_entropy(model(x.to(dtype)), y)

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        del model, batches
        return {"accuracy": 0.0}

    def example(self) -> torch.Tensor:
        return self.x[:1]


class Excited(nn.Module):
    """A convolution gated by squeeze and excite; `style` says how the sigmoid is written."""

    def __init__(self, style: str = "module", in_channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.style = style
        self.conv = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze = nn.Linear(8, 4)
        self.excite = nn.Linear(4, 8) if style != "conv" else nn.Conv2d(4, 8, 1)
        self.gate = nn.Hardsigmoid() if style == "hard" else nn.Sigmoid()
        self.read = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x)))
        gate = F.relu(self.squeeze(x.mean((2, 3))))
        if self.style == "conv":
            gate = torch.sigmoid(self.excite(gate[:, :, None, None]))
        elif self.style == "in place":
            gate = self.excite(gate).reshape(len(x), -1, 1, 1).sigmoid_()
        else:
            gate = self.gate(self.excite(gate)).unflatten(1, (-1, 1, 1))
        return self.head(F.relu(self.read(x * gate)).mean((2, 3)))


class Smooth(nn.Module):
    """Twice differentiable, with a residual, a flattening and a grouped layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.back = nn.Conv2d(4, 4, 1)
        self.fc1 = nn.Linear(16, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.softplus(self.stem(x))
        x = x + self.back(torch.tanh(self.inner(x)))
        x = torch.tanh(F.adaptive_avg_pool2d(x, 2)).flatten(1)
        return self.fc2(F.softplus(self.fc1(x)))


IMAGE, BIG = (3, 5, 5), (3, 16, 16)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch norm": (lambda: random_net(["plain", "residual"], False, 0), IMAGE),
    "depthwise": (lambda: random_net(["depthwise", "concat"], True, 1), IMAGE),
    "grouped": (lambda: random_net(["grouped", "groupnorm"], True, 2), IMAGE),
    "shared": (lambda: random_net(["shared", "nobn"], False, 3), IMAGE),
    "gated": (Excited, IMAGE),
    "smooth": (Smooth, IMAGE),
    "mlp": (lambda: mlp(width=8, in_channels=3, image_side=5, num_classes=3), IMAGE),
    "vgg": (lambda: vgg(depth=8, width=4, image_side=16, num_classes=3), BIG),
    "resnet": (lambda: resnet(depth=8, width=4, num_classes=3), BIG),
    "mobilenet": (lambda: mobilenet(width=0.1, depth=0.3, image_side=16, num_classes=3), BIG),
    "vit": (lambda: vit(width=16, depth=2, image_side=16, num_classes=3), BIG),
}
"""Networks by what is in them, with the shape of their inputs."""


def network(name: str) -> tuple[nn.Module, Noise]:
    """A network with weights that are always the same, and data for it."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = make().eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):  # none alike, as after training
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        return net, Noise(shape)
