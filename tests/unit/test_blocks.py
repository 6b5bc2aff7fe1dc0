"""Whole blocks that a network does without."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.domain.bounds import Bounds, build_space, of_kinds
from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import USUAL_KINDS, Group, PruningSpec
from autoprune.models import mobilenet, resnet, vgg, vit
from autoprune.pruning.bypass import Bypass, Stack, stacks_of
from autoprune.pruning.criteria import CRITERIA, Scoring, criterion_of, score
from autoprune.pruning.graph import trace
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.surgery import prune
from tests.criteria_tasks import Noise

WIDTH, TOKENS = 6, 3
EXAMPLE = torch.zeros(1, TOKENS, WIDTH)


class Adds(nn.Module):
    """x + f(x); `again` says how often it is called, `told` whether it returns a tuple."""

    def __init__(self, *, adds: bool = True, told: bool = False) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.adds, self.told = adds, told

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor | tuple[torch.Tensor]:
        y = torch.tanh(self.inner(self.norm(x))) * scale
        y = x + y if self.adds else y
        return (y,) if self.told else y


class Layers(nn.Module):
    """A network of layers that are called by keyword."""

    def __init__(self, *layers: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.layers, self.twice = nn.ModuleList(layers), twice
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in [*self.layers, *(self.layers if self.twice else ())]:
            y = layer(x=x, scale=0.5)
            x = y[0] if isinstance(y, tuple) else y
        return self.head(x).mean(1)


def layers(count: int = 4, *, twice: bool = False, **options: bool) -> Layers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Layers(*(Adds(**options) for _ in range(count)), twice=twice).eval()


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def names_of(net: nn.Module, example: torch.Tensor) -> list[tuple[tuple[str, ...], bool]]:
    return [(stack.blocks, stack.pinned) for stack in stacks_of(net.eval(), example)]


def test_blocks_that_add_to_their_input_are_a_stack():
    every = tuple(f"layers.{i}" for i in range(4))
    assert stacks_of(layers(), EXAMPLE) == [Stack(every, pinned=False)]


def test_blocks_that_do_not_add_or_are_used_twice_or_return_more_than_a_tensor_are_none():
    assert stacks_of(layers(adds=False), EXAMPLE) == []
    assert stacks_of(layers(twice=True), EXAMPLE) == []
    assert stacks_of(layers(told=True), EXAMPLE) == []


def test_a_block_that_makes_the_shape_of_the_others_is_pinned():
    net = resnet(depth=20, width=4, in_channels=1)
    found = names_of(net, torch.zeros(1, 1, 8, 8))
    assert [pinned for _, pinned in found] == [False, True, True]
    assert [len(blocks) for blocks, _ in found] == [3, 3, 3]


def test_networks_without_residuals_have_no_stack():
    net = vgg(depth=11, width=4, in_channels=1)
    assert names_of(net, torch.zeros(1, 1, 32, 32)) == []


@pytest.mark.parametrize(
    ("net", "example"),
    [
        (vit(width=32, depth=3, in_channels=1, image_side=8), torch.randn(1, 1, 8, 8)),
        (resnet(depth=20, width=4, in_channels=1), torch.randn(1, 1, 8, 8)),
        (mobilenet(in_channels=1), torch.randn(1, 1, 16, 16)),
        (layers(), torch.randn(1, TOKENS, WIDTH)),
    ],
    ids=["vit", "resnet", "mobilenet", "keywords"],
)
def test_a_network_without_blocks_computes_what_the_others_make_of_it(net, example):
    net = net.eval()
    found = trace(net, example)
    stacks = [c for c in found.couplings if c.group.kind == "blocks"]
    assert stacks
    spec = PruningSpec.of({c.group.name: 1 for c in stacks})
    pruned = prune(net, example, spec, dependencies=found)
    gone = [cut.layer for cut in pruned.recipe.history]
    assert len(gone) == sum(c.group.size - 1 for c in stacks)
    skipped = copy.deepcopy(net)
    for name in gone:
        skipped.get_submodule(name).register_forward_hook(
            lambda _m, args, kwargs, _out: args[0] if args else kwargs["x"], with_kwargs=True
        )
    assert torch.equal(pruned.model(example), skipped(example))
    again = rebuild(Recipe.from_json(pruned.recipe.to_json()), pruned.model.state_dict(), model=net)
    assert torch.equal(again(example), pruned.model(example))


class Sequence(nn.Module):
    """PyTorch's encoder and decoder, which ask the first of their layers what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.both = nn.Transformer(WIDTH, 2, 3, 3, dim_feedforward=8, batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head(self.both(x, x)).mean(1)


@pytest.mark.parametrize("gone", [(0,), (0, 1), (2,)])
def test_pytorchs_encoder_and_decoder_do_without_any_of_their_layers(gone):
    net, example = Sequence().eval(), torch.randn(1, TOKENS, 4)
    stacks = [c for c in trace(net, example).couplings if c.group.kind == "blocks"]
    assert [len(c.members) for c in stacks] == [3, 3]
    spec = PruningSpec.of({c.group.name: 3 - len(gone) for c in stacks})
    removed = {c.group.name: np.array(gone) for c in stacks}
    cut = prune(net, example, spec, removed=removed).model
    left = [[unit for unit in range(3) if unit not in gone]] * 2
    assert [
        [i for i, m in enumerate(side.layers) if not isinstance(m, Bypass)]
        for side in (cut.both.encoder, cut.both.decoder)
    ] == left
    shorter = copy.deepcopy(net)
    for side in (shorter.both.encoder, shorter.both.decoder):
        side.layers = nn.ModuleList(side.layers[unit] for unit in left[0])
    assert torch.equal(cut(example), shorter(example))
    assert cut.state_dict().keys() < net.state_dict().keys()


def test_what_stands_for_a_block_has_its_attributes_and_none_of_its_weights():
    block = Adds()
    block.scheme = "full_attention"
    for bypass in (Bypass(block), copy.deepcopy(Bypass(block)), pickled(Bypass(block))):
        assert (bypass.scheme, bypass.inner.in_features) == ("full_attention", WIDTH)
        assert bypass.inner.weight.is_meta
        assert not bypass.state_dict()
        with pytest.raises(AttributeError, match="'Adds' object has no attribute 'kind'"):
            _ = bypass.kind
    assert not block.inner.weight.is_meta


def test_the_layers_of_a_block_that_goes_are_not_cut_as_well():
    net = vit(width=32, depth=3, in_channels=1, image_side=8).eval()
    example = torch.randn(1, 1, 8, 8)
    found = trace(net, example)
    spec = PruningSpec.of({g.name: max(1, g.size // 2) for g in found.groups})
    pruned = prune(net, example, spec, dependencies=found)
    gone = {cut.layer for cut in pruned.recipe.history if cut.side == "block"}
    assert len(gone) == 2
    assert not [
        c for c in pruned.recipe.history if c.layer.startswith(tuple(f"{g}." for g in gone))
    ]
    assert sum(isinstance(m, Bypass) for m in pruned.model.modules()) == 2


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"random", "se_gate", "bn_scale", "apoz"}))
def test_a_block_that_adds_nothing_goes_first(name):
    net = layers().double()
    with torch.no_grad():
        for parameter in net.layers[2].parameters():
            parameter.zero_()
    scores = score(
        net,
        trace(net, EXAMPLE.double()).couplings,
        criterion_of(name),
        Scoring(Noise((TOKENS, WIDTH), classes=2), batches=2),
    )["layers.0:blocks"]
    assert int(scores.argmin()) == 2
    assert float(scores[2]) == 0


def test_fisher_looks_at_a_factor_on_what_a_block_adds():
    net, task = layers(3).double(), Noise((TOKENS, WIDTH), classes=2)
    couplings = trace(net, EXAMPLE.double()).couplings
    found = score(net, couplings, criterion_of("fisher"), Scoring(task, batches=1))[
        "layers.0:blocks"
    ]
    x, y = next(iter(task.batches("train")))
    expected = []
    for block in net.layers:
        factors = torch.ones(len(x), 1, 1, dtype=torch.float64, requires_grad=True)
        handle = block.register_forward_hook(
            lambda _m, _args, kwargs, out, f=factors: kwargs["x"] + f * (out - kwargs["x"]),
            with_kwargs=True,
        )
        F.cross_entropy(net(x.double()), y, reduction="sum").backward()
        handle.remove()
        expected.append(factors.grad.square().sum() / (2 * len(x)))
    torch.testing.assert_close(found, torch.stack(expected))


def test_pinned_blocks_stay_and_have_the_highest_score():
    net = resnet(depth=20, width=4, in_channels=1).eval()
    example = torch.zeros(1, 1, 8, 8)
    found = trace(net, example)
    pinned = [c for c in found.couplings if c.pinned]
    assert [c.pinned for c in pinned] == [(0,), (0,)]
    for name in ("l2", "fisher", "activation", "random"):
        scoring = Scoring(Noise((1, 8, 8), classes=10), batches=1)
        scores = score(net, found.couplings, criterion_of(name), scoring)
        for coupling in pinned:
            assert float(scores[coupling.group.name][0]) == float(scores[coupling.group.name].max())
    spec = PruningSpec.of({c.group.name: 1 for c in pinned})
    cut = prune(net, example, spec, dependencies=found).model
    kept = [c.members[0].layer for c in pinned]
    assert not any(isinstance(cut.get_submodule(name), Bypass) for name in kept)


def test_a_space_is_made_of_some_kinds_and_hardware_steps_are_for_widths_alone():
    groups = (
        Group("conv", "channels", 32),
        Group("attention", "heads", 4),
        Group("layers.0", "blocks", 6),
    )
    assert [g.kind for g in of_kinds(groups, USUAL_KINDS)] == ["channels", "heads"]
    space = build_space(groups, Bounds(step=8), overrides=[Bounds("layers*", step=2)])
    assert [axis.widths for axis in space.axes] == [(8, 16, 24, 32), (1, 2, 3, 4), (2, 4, 6)]
    with pytest.raises(AutopruneError, match="kind of group 'block' is not known; did you mean"):
        of_kinds(groups, ["block"])
    rule = "the network's groups are ['blocks', 'channels', 'heads']; choose some of those"
    with pytest.raises(AutopruneError, match=re.escape(rule)):
        of_kinds(groups, ["neurons"])
