"""Small random networks that show what a pruner must get right."""

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.pruning_tasks import Blobs

SIDE, EMBEDDING = 5, 8


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


EXAMPLE, BATCH = drawn(1, 3, SIDE, SIDE, seed=0), drawn(4, 3, SIDE, SIDE, seed=1)
"""Images that the random networks take."""

TOKENS, TOKENS_BATCH = drawn(1, 5, 4, seed=0), drawn(4, 5, 4, seed=1)
"""Sequences that the random transformers take."""

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
        self.norm1: nn.Module = nn.BatchNorm2d(wide)
        if kind == "groupnorm":
            self.norm1 = nn.GroupNorm(2, wide)
        elif kind == "nobn":
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


class Images(Blobs):
    """The blobs as images of three channels that the random networks take."""

    def __init__(self) -> None:
        super().__init__()
        self.x = drawn(48, *EXAMPLE.shape[1:], seed=3)
        self.y = self.y % 3


TOKEN_BLOCKS = ("attention", "narrow", "encoder", "mlp", "plain")


class TokenBlock(nn.Module):
    """A layer of a transformer: attention of PyTorch's or of its own, a whole one, or a part."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.num_heads = kind, 4
        self.norm = nn.Identity() if kind == "encoder" else nn.LayerNorm(EMBEDDING)
        if kind == "attention":
            self.inner: nn.Module = nn.MultiheadAttention(EMBEDDING, 2, batch_first=True)
        elif kind == "narrow":
            self.inner = nn.Linear(EMBEDDING, 3 * 12)
            self.outer = nn.Linear(12, EMBEDDING)
        elif kind == "encoder":
            self.inner = nn.TransformerEncoderLayer(EMBEDDING, 2, 6, batch_first=True)
        else:
            self.inner = nn.Linear(EMBEDDING, 6)
            self.outer = nn.Linear(6, EMBEDDING)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "encoder":
            return self.inner(x)
        y = self.norm(x)
        if self.kind == "attention":
            return x + self.inner(y, y, y, need_weights=False)[0]
        if self.kind == "narrow":
            parts = self.inner(y).reshape(*y.shape[:2], 3, self.num_heads, -1)
            query, key, value = parts.permute(2, 0, 3, 1, 4)
            said = F.scaled_dot_product_attention(query, key, value)
            return x + self.outer(said.transpose(1, 2).flatten(2))
        y = self.outer(F.gelu(self.inner(y)))
        return x + y if self.kind == "mlp" else y


class TokenNet(nn.Module):
    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.embed = nn.Linear(4, EMBEDDING)
        self.blocks = nn.Sequential(*map(TokenBlock, kinds))
        self.head = nn.Linear(EMBEDDING, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(x))).mean(1)


def token_net(kinds: list[str], seed: int) -> nn.Module:
    """A transformer with random weights, also in what starts at one or zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TokenNet(kinds)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.5)
        return net.eval()


token_nets = st.builds(
    token_net,
    st.lists(st.sampled_from(TOKEN_BLOCKS), min_size=1, max_size=3),
    st.integers(0, 10_000),
)
either = nets | token_nets


def example_of(net: nn.Module) -> torch.Tensor:
    """An input of batch size 1 for one of `either`."""
    return TOKENS if isinstance(net, TokenNet) else EXAMPLE


def batch_of(net: nn.Module) -> torch.Tensor:
    """A batch of inputs for one of `either`, in the precision of its weights."""
    batch = TOKENS_BATCH if isinstance(net, TokenNet) else BATCH
    return batch.to(next(net.parameters()).dtype)
