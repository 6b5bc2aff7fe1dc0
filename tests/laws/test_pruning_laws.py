"""Laws of pruning over random networks."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.domain.space import UNEVEN_KINDS, PruningSpec
from autoprune.pruning.bypass import Bypass
from autoprune.pruning.coupling import Coupling, cuts_for
from autoprune.pruning.criteria import unit_sums
from autoprune.pruning.cuts import width
from autoprune.pruning.graph import Dependencies, trace
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.surgery import prune
from tests.random_networks import BATCH, EXAMPLE, nets

law = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_spec(draw: st.DrawFn, found: Dependencies, criterion: str = "l1") -> PruningSpec:
    widths = {}
    for group in found.groups:
        widths[group.name] = group.step * draw(st.integers(1, group.size // group.step))
    return PruningSpec.of(widths, criterion=criterion)


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(BATCH)


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
@given(nets)
def test_a_full_width_spec_changes_nothing(net):
    found = trace(net, EXAMPLE)
    spec = PruningSpec.of({g.name: g.size for g in found.groups})
    pruned = prune(net, EXAMPLE, spec, dependencies=found)
    assert pruned.recipe.history == ()
    assert torch.equal(outputs(pruned.model), outputs(net))


@law
@given(nets, st.data())
def test_kept_widths_are_as_asked_and_the_baseline_is_untouched(net, data):
    before = copy.deepcopy(net.state_dict())
    found = trace(net, EXAMPLE)
    spec = data.draw(st.composite(some_spec)(found, data.draw(st.sampled_from(["l2", "random"]))))
    pruned = prune(net, EXAMPLE, spec, dependencies=found)
    modules = dict(pruned.model.named_modules())
    for coupling in found.couplings:
        group, kept = coupling.group, spec.widths[coupling.group.name]
        owners = [g for g in found.groups if group.name in g.layers and g is not group]
        if group.kind == "blocks":
            there = [not isinstance(modules[m.layer], Bypass) for m in coupling.members]
            assert sum(there) == kept
            assert all(there[unit] for unit in coupling.pinned)
        elif not owners and group.name in modules:  # or its block is gone
            assert width(modules[group.name], "out") == kept
    assert outputs(pruned.model).shape == outputs(net).shape
    after = net.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in net.parameters())


@law
@given(nets, st.data())
def test_units_that_are_zero_go_without_a_trace(net, data):
    net = net.double()
    found = trace(net, EXAMPLE.double())
    even = Dependencies(tuple(c for c in found.couplings if c.group.kind not in UNEVEN_KINDS))
    draw = data.draw(st.composite(some_spec)(even))
    zeroed = {c.group.name: _pick(c, draw.widths[c.group.name]) for c in even.couplings}
    _zero(net, cuts_for(found.couplings, zeroed))
    has_group_norm = any(isinstance(m, nn.GroupNorm) for m in net.modules())
    pruned = prune(net, EXAMPLE.double(), draw, dependencies=found)
    with torch.no_grad():
        whole, cut = net(BATCH.double()), pruned.model(BATCH.double())
    if not has_group_norm:  # its statistics do depend on the units that went
        torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-9)
    for coupling in even.couplings:
        sums = unit_sums(net, coupling, lambda w: w.abs())
        assert (sums[zeroed[coupling.group.name]] == 0).all()


@law
@given(nets, st.data())
def test_a_recipe_rebuilds_the_network_bit_for_bit(net, data):
    found = trace(net, EXAMPLE)
    spec = data.draw(st.composite(some_spec)(found, "random"))
    pruned = prune(net, EXAMPLE, spec, dependencies=found)
    recipe = Recipe.from_json(json.loads(json.dumps(pruned.recipe.to_json())))
    assert recipe == pruned.recipe
    rebuilt = rebuild(recipe, pruned.model.state_dict(), model=net).eval()
    assert torch.equal(outputs(rebuilt), outputs(pruned.model))
    rebuilt(BATCH).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in rebuilt.parameters())


@law
@given(nets, st.data())
def test_the_order_of_the_groups_does_not_matter(net, data):
    found = trace(net, EXAMPLE)
    criterion = data.draw(st.sampled_from(["bn_scale", "l2", "random"]))
    spec = data.draw(st.composite(some_spec)(found, criterion))
    backwards = Dependencies(found.couplings[::-1], found.refused)
    one, two = (prune(net, EXAMPLE, spec, dependencies=d) for d in (found, backwards))
    assert one.recipe == two.recipe
    assert torch.equal(outputs(one.model), outputs(two.model))


@law
@given(nets)
def test_tracing_is_deterministic_and_leaves_no_mark(net):
    net.train()
    state, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    first, second = trace(net, EXAMPLE), trace(net, EXAMPLE)
    assert first.groups == second.groups
    assert first.refused == second.refused
    assert torch.equal(rng, torch.get_rng_state())
    assert all(m.training for m in net.modules())
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())


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
