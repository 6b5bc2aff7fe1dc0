"""Laws of pruning over random networks: convolutional ones, and transformers."""

import copy
import json
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.domain.space import UNEVEN_KINDS, PruningSpec
from autoprune.pruning.bypass import Bypass, Nothing, Reading
from autoprune.pruning.coupling import Coupling, cuts_for
from autoprune.pruning.criteria import unit_sums
from autoprune.pruning.cuts import width
from autoprune.pruning.graph import Dependencies, trace
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.surgery import prune
from tests.random_networks import (
    EXAMPLE,
    TOKENS,
    batch_of,
    either,
    example_of,
    nets,
    token_nets,
)

law = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def some_spec(
    draw: st.DrawFn, found: Dependencies, criteria: Sequence[str] = ("l1",)
) -> PruningSpec:
    widths = {g.name: g.step * draw(st.integers(1, g.size // g.step)) for g in found.groups}
    return PruningSpec.of(widths, criterion=draw(st.sampled_from(criteria)))


@torch.no_grad()
def outputs(net: nn.Module) -> torch.Tensor:
    return net.eval()(batch_of(net))


@law
@given(either)
def test_a_full_width_spec_changes_nothing(net):
    found = trace(net, example_of(net))
    spec = PruningSpec.of({g.name: g.size for g in found.groups})
    pruned = prune(net, example_of(net), spec, dependencies=found)
    assert pruned.recipe.history == ()
    assert torch.equal(outputs(pruned.model), outputs(net))


@law
@given(either, st.data())
def test_kept_widths_are_as_asked_and_the_baseline_is_untouched(net, data):
    before = copy.deepcopy(net.state_dict())
    found = trace(net, example_of(net))
    spec = data.draw(some_spec(found, ("l2", "random")))
    pruned = prune(net, example_of(net), spec, dependencies=found)
    modules = dict(pruned.model.named_modules())
    for coupling in found.couplings:
        group, kept = coupling.group, spec.widths[coupling.group.name]
        layer = modules.get(group.name)
        if group.kind == "blocks":
            there = [not isinstance(modules[m.layer], Bypass) for m in coupling.members]
            assert sum(there) == kept
            assert all(there[unit] for unit in coupling.pinned)
        elif not isinstance(layer, (Bypass, Nothing, type(None))):  # its block or branch is there
            layer = layer.layer if isinstance(layer, Reading) else layer
            assert width(layer, "heads" if group.kind == "heads" else "out") == kept
    assert outputs(pruned.model).shape == outputs(net).shape
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@law
@given(either, st.data())
def test_a_recipe_rebuilds_the_network_bit_for_bit(net, data):
    found = trace(net, example_of(net))
    spec = data.draw(some_spec(found, ("random",)))
    pruned = prune(net, example_of(net), spec, dependencies=found)
    recipe = Recipe.from_json(json.loads(json.dumps(pruned.recipe.to_json())))
    assert recipe == pruned.recipe
    rebuilt = rebuild(recipe, pruned.model.state_dict(), model=net)
    assert torch.equal(outputs(rebuilt), outputs(pruned.model))
    rebuilt(batch_of(net)).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in rebuilt.parameters())


@law
@given(either, st.data())
def test_the_order_of_the_groups_does_not_matter(net, data):
    found = trace(net, example_of(net))
    scaled = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    spec = data.draw(some_spec(found, ("l2", "random", *(["bn_scale"] if scaled else []))))
    backwards = Dependencies(found.couplings[::-1], found.refused)
    one, two = (prune(net, example_of(net), spec, dependencies=d) for d in (found, backwards))
    assert one.recipe == two.recipe
    assert torch.equal(outputs(one.model), outputs(two.model))


@law
@given(either)
def test_tracing_is_deterministic_and_leaves_no_mark(net):
    net.train()
    state, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    first, second = (trace(net, example_of(net)) for _ in range(2))
    assert first.groups == second.groups
    assert first.refused == second.refused
    assert torch.equal(rng, torch.get_rng_state())
    assert all(m.training for m in net.modules())
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())


@law
@given(nets)
def test_every_block_is_prunable_and_only_the_output_is_refused(net):
    found = trace(net, EXAMPLE)
    assert [refused.name for refused in found.refused] == ["fc2"]
    roots = {g.name for g in found.groups}
    convolutions = {n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    covered = {layer for group in found.groups for layer in group.layers}
    assert covered >= convolutions
    assert "stem" in roots


@law
@given(token_nets)
def test_every_attention_gives_its_heads_and_only_the_output_is_refused(net):
    found = trace(net, TOKENS)
    assert [refused.name for refused in found.refused] == ["head"]
    heads = {g.name: g.size for g in found.groups if g.kind == "heads"}
    asked = {"attention": (".inner", 2), "narrow": ("", 4), "encoder": (".inner.self_attn", 2)}
    assert heads == {
        f"blocks.{i}{asked[block.kind][0]}": asked[block.kind][1]
        for i, block in enumerate(net.blocks)
        if block.kind in asked
    }
    assert "embed" in {g.name for g in found.groups}


@law
@given(nets, st.data())
def test_units_that_are_zero_go_without_a_trace(net, data):
    net = net.double()
    found = trace(net, EXAMPLE.double())
    even = Dependencies(tuple(c for c in found.couplings if c.group.kind not in UNEVEN_KINDS))
    spec = data.draw(some_spec(even))
    zeroed = {c.group.name: _pick(c, spec.widths[c.group.name]) for c in even.couplings}
    _zero(net, cuts_for(found.couplings, zeroed))
    has_group_norm = any(isinstance(m, nn.GroupNorm) for m in net.modules())
    pruned = prune(net, EXAMPLE.double(), spec, dependencies=found)
    if not has_group_norm:  # its statistics do depend on the units that went
        torch.testing.assert_close(outputs(pruned.model), outputs(net), rtol=1e-9, atol=1e-9)
    for coupling in even.couplings:
        sums = unit_sums(net, coupling, lambda w: w.abs())
        assert (sums[zeroed[coupling.group.name]] == 0).all()


@law
@given(token_nets, st.data())
def test_heads_that_nobody_reads_go_without_a_trace(net, data):
    net = net.double()
    found = trace(net, TOKENS.double())
    heads = [c for c in found.couplings if c.group.kind == "heads"]
    widths = {c.group.name: data.draw(st.integers(1, c.group.size)) for c in heads}
    for coupling in heads:
        gone = data.draw(st.permutations(range(coupling.group.size)))
        _silence(net, coupling, gone[: coupling.group.size - widths[coupling.group.name]])
    pruned = prune(net, TOKENS.double(), PruningSpec.of(widths), dependencies=found)
    torch.testing.assert_close(outputs(pruned.model), outputs(net), rtol=1e-9, atol=1e-9)


def _pick(coupling: Coupling, kept: int) -> np.ndarray:
    """The last units of every cell: not those that a tie would remove by itself."""
    cells = np.unique(coupling.cell)
    away = (coupling.group.size - kept) // len(cells)
    parts = [np.flatnonzero(coupling.cell == c) for c in cells]
    return np.concatenate([p[len(p) - away :] for p in parts])


@torch.no_grad()
def _zero(net: nn.Module, cuts) -> None:
    modules = dict(net.named_modules())
    for cut in cuts:
        layer = modules[cut.layer]
        gone = np.setdiff1d(np.arange(width(layer, cut.side)), cut.kept(width(layer, cut.side)))
        if cut.side == "out":
            layer.weight[gone] = 0
            if layer.bias is not None:
                layer.bias[gone] = 0
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean[gone] = 0
        elif getattr(layer, "groups", 1) == 1:
            layer.weight[:, gone] = 0
        else:
            block, rows = width(layer, "in") // layer.groups, len(layer.weight) // layer.groups
            for i in gone:
                layer.weight[i // block * rows : (i // block + 1) * rows, i % block] = 0


@torch.no_grad()
def _silence(net: nn.Module, coupling: Coupling, units: list[int]) -> None:
    """Let nobody read some heads, and make them the lightest ones."""
    parameters = dict(net.named_parameters())
    for member in coupling.members:
        index = torch.from_numpy(member.index[np.isin(member.unit, units)])
        if member.side == "in":
            parameters[f"{member.layer}.weight"][:, index] = 0
        elif member.side == "out":
            parameters[f"{member.layer}.weight"][index] *= 1e-9
        elif member.side == "param" and member.layer.endswith("weight"):
            parameters[member.layer][index] *= 1e-9
