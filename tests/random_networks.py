"""Small random networks that show what a pruner must get right."""

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

SIDE = 5
BLOCKS = (
    "plain",
    "residual",
    "concat",
    "branches",
    "depthwise",
    "grouped",
    "shared",
    "groupnorm",
    "nobn",
)


class Block(nn.Module):
    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        wide = 8
        self.conv1 = nn.Conv2d(channels, wide, 3, padding=1, bias=kind == "nobn")
        self.norm1: nn.Module = nn.GroupNorm(2, wide) if kind == "groupnorm" else nn.BatchNorm2d(8)
        if kind == "nobn":
            self.norm1 = nn.Identity()
        if kind == "depthwise":
            self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        elif kind == "grouped":
            self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=2)
        elif kind == "branches":
            self.conv2 = nn.Conv2d(channels, wide, 3, padding=1)
        elif kind == "residual":
            self.conv2 = nn.Conv2d(wide, channels, 3, padding=1)
        else:
            self.conv2 = nn.Conv2d(wide, wide, 3, padding=1)
        self.channels = {
            "residual": channels,
            "concat": channels + wide,
            "branches": 2 * wide,
        }.get(kind, wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        if self.kind == "branches":
            return F.relu(torch.cat([y, self.conv2(x)], 1))
        y = self.conv2(y)
        if self.kind == "shared":
            y = self.conv2(F.relu(y))
        if self.kind == "residual":
            y = x + y
        if self.kind == "concat":
            y = torch.cat([x, y], 1)
        return F.relu(y)


class RandomNet(nn.Module):
    def __init__(self, kinds: list[str], flatten: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        channels, blocks = 6, []
        for kind in kinds:
            blocks.append(Block(kind, channels))
            channels = blocks[-1].channels
        self.blocks = nn.ModuleList(blocks)
        self.flatten = flatten
        self.fc1 = nn.Linear(channels * (4 if flatten else 1), 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        x = F.adaptive_avg_pool2d(x, 2 if self.flatten else 1).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


def random_net(kinds: list[str], flatten: bool, seed: int) -> nn.Module:
    """A network with random statistics, so that no layer is an identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = RandomNet(kinds, flatten)
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return net.eval()


nets = st.builds(
    random_net,
    st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 10_000),
)
EXAMPLE = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
BATCH = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
