"""Branches that go, and connections of dense blocks that are no longer read."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.space import PruningSpec
from autoprune.measurement.runtimes.onnx import OnnxRuntime
from autoprune.pruning.bypass import Nothing, Reading
from autoprune.pruning.criteria import Scoring, criterion_of, score
from autoprune.pruning.graph import trace
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.surgery import prune
from tests.criteria_tasks import Noise

EXAMPLE = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
BATCH = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
SHAPE = (3, 9, 9)


class Unit(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, side: int, **options: object) -> None:
        convolution = nn.Conv2d(inputs, outputs, side, bias=False, **options)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Inception(nn.Module):
    """Four branches: of one convolution, of two, of two that halve the sides, behind a pool."""

    def __init__(self, inputs: int, stride: int = 1) -> None:
        super().__init__()
        halves = {"padding": 1, "stride": stride}
        self.one = Unit(inputs, 4, 1, stride=stride)
        self.two = nn.Sequential(Unit(inputs, 3, 1), Unit(3, 6, 3, **halves))
        self.same = Unit(inputs, 2, 3, **halves)
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride, 1), Unit(inputs, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.two(x), self.same(x), self.pool(x)], 1)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, count: int) -> None:
        super().__init__()
        sizes = [inputs + i * growth for i in range(count)]
        self.layers = nn.ModuleList(DenseLayer(size, growth) for size in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


def seeded(make) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
        return net.eval()


def inception() -> nn.Module:
    def make() -> nn.Module:
        blocks = (Unit(3, 8, 3, padding=1), Inception(8), Inception(16, stride=2))
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

    return seeded(make)


def dense() -> nn.Module:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            DenseBlock(8, 4, 3),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.Conv2d(20, 10, 1, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(10, 5),
        )

    return seeded(make)


def of_kind(net: nn.Module, kind: str) -> dict[str, int]:
    return {g.name: g.size for g in trace(net, EXAMPLE).groups if g.kind == kind}


def test_the_branches_of_a_concatenation_are_a_group():
    assert of_kind(inception(), "branches") == {"1.one.0:branches": 4, "2.one.0:branches": 4}
    assert of_kind(inception(), "connections") == {}


def test_what_each_layer_of_a_dense_block_reads_is_a_group():
    assert of_kind(dense(), "connections") == {
        "1.layers.1.conv1:inputs": 2,
        "1.layers.2.conv1:inputs": 3,
        "4:inputs": 4,
    }
    assert of_kind(dense(), "branches") == {}


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_branch_goes_as_if_nobody_had_read_it(kept):
    net = inception()
    found = trace(net, EXAMPLE)
    pruned = prune(net, EXAMPLE, PruningSpec.of({"2.one.0:branches": kept}), dependencies=found)
    gone = {cut.layer for cut in pruned.recipe.history if cut.side == "branch"}
    names = ["one", "two", "same", "pool"]
    dead = {name for name in names if any(layer.startswith(f"2.{name}") for layer in gone)}
    assert len(dead) == 4 - kept
    whole = net[2]

    def silent(block: nn.Module, args: tuple[torch.Tensor], _output: torch.Tensor) -> torch.Tensor:
        parts = [(name, getattr(block, name)(*args)) for name in names]
        return torch.cat([y * (name not in dead) for name, y in parts], 1)

    handle = whole.register_forward_hook(silent)
    expected = net(BATCH)
    handle.remove()
    torch.testing.assert_close(pruned.model(BATCH), expected)
    assert all(isinstance(pruned.model.get_submodule(name), Nothing) for name in gone)
    if "two" in dead:  # what only a branch that is gone reads goes with it
        assert {"2.two.0.0", "2.two.0.1", "2.two.1.0", "2.two.1.1"} <= gone


def test_a_layer_of_a_dense_block_reads_what_is_left_of_the_others():
    net = dense()
    found = trace(net, EXAMPLE)
    widths = {"1.layers.2.conv1:inputs": 1, "0": 4, "1.layers.0.conv2": 3}
    pruned = prune(net, EXAMPLE, PruningSpec.of(widths), dependencies=found)
    reads = [cut for cut in pruned.recipe.history if cut.side == "reads"]
    assert [cut.layer for cut in reads] == ["1.layers.2.norm1"]
    reading = pruned.model.get_submodule("1.layers.2.norm1")
    assert isinstance(reading, Reading)
    given = 4 + 3 + 4
    assert len(reading.kept) == given - reads[0].count
    assert len(reading.kept) in (4, 3)
    assert pruned.model.get_submodule("1.layers.2.conv1").in_channels == len(reading.kept)


def test_what_a_layer_does_not_read_might_as_well_be_zero():
    net = dense()
    found = trace(net, EXAMPLE)
    name = "1.layers.2.conv1:inputs"
    pruned = prune(net, EXAMPLE, PruningSpec.of({name: 2}), dependencies=found)
    coupling = next(c for c in found.couplings if c.group.name == name)
    (cut,) = [c for c in pruned.recipe.history if c.side == "in"]
    with torch.no_grad():
        for start, stop in cut.removed:
            net[1].layers[2].conv1.weight[:, start:stop] = 0
    assert coupling.group.layers == ("1.layers.2.norm1", "1.layers.2.conv1")
    torch.testing.assert_close(pruned.model(BATCH), net(BATCH))


@pytest.mark.parametrize("make", [inception, dense])
def test_all_kinds_at_once_are_rebuilt_exported_and_trained(make):
    net = make()
    found = trace(net, EXAMPLE)
    spec = build_space(found.groups, Bounds()).uniform(0.5)
    pruned = prune(net, EXAMPLE, spec, dependencies=found)
    recipe = Recipe.from_json(pruned.recipe.to_json())
    again = rebuild(recipe, pruned.model.state_dict(), model=net)
    assert torch.equal(again(BATCH), pruned.model(BATCH))
    (exported,) = OnnxRuntime().prepare(pruned.model, EXAMPLE)()
    expected = pruned.model(EXAMPLE).detach().numpy()
    np.testing.assert_allclose(exported, expected, rtol=1e-4, atol=1e-5)
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(pruned.model, (BATCH,), dynamic_shapes=({0: batch},))
    assert program.module()(BATCH[:3]).shape == (3, 5)
    pruned.model.train()(BATCH).sum().backward()
    assert all(p.grad is not None for p in pruned.model.parameters())


@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "taylor", "fisher", "activation", "random"])
@pytest.mark.parametrize("make", [inception, dense])
def test_criteria_tell_branches_and_connections_apart(name, make):
    net = make().double()
    couplings = trace(net, EXAMPLE.double()).couplings
    found = score(net, couplings, criterion_of(name), Scoring(Noise(SHAPE, classes=5), batches=1))
    for coupling in couplings:
        if coupling.group.kind in ("branches", "connections"):
            assert len(np.unique(found[coupling.group.name].numpy())) == coupling.group.size


def test_branches_of_tokens_go_with_their_layer_norms():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
            self.two = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([self.one(x), self.two(x)], -1)).mean(1)

    net, tokens = seeded(Joined), torch.randn(2, 4, 5)
    pruned = prune(net, tokens[:1], PruningSpec.of({"one.0:branches": 1}))
    gone = {cut.layer for cut in pruned.recipe.history if cut.side == "branch"}
    ((start, stop),) = (r for c in pruned.recipe.history if c.side == "in" for r in c.removed)
    assert gone in ({"one.0", "one.1"}, {"two.0", "two.1"})
    with torch.no_grad():
        net.head.weight[:, start:stop] = 0
    torch.testing.assert_close(pruned.model(tokens), net(tokens))


def test_a_transposed_convolution_keeps_its_branch():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(3, 4, 1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([self.one(x), self.two(x)], 1)).mean((2, 3))

    assert of_kind(seeded(Odd), "branches") == {}
