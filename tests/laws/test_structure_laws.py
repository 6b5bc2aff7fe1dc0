"""Laws of heads, blocks and embeddings, over random transformers."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.space import PruningSpec
from autoprune.pruning.bypass import Bypass
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.cuts import width
from autoprune.pruning.graph import trace
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.surgery import prune
from tests.random_networks import TOKENS, TOKENS_BATCH, token_nets
from tests.tiny import one_thread

law = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))

_one_thread = pytest.fixture(autouse=True)(one_thread)


@torch.no_grad()
def outputs(net: nn.Module) -> torch.Tensor:
    return net.eval()(TOKENS_BATCH.to(next(net.parameters()).dtype))


@st.composite
def some_spec(draw: st.DrawFn, net: nn.Module) -> PruningSpec:
    space = build_space(trace(net, TOKENS).groups, Bounds(min_kept=0.01))
    return space.at([draw(st.integers(0, len(options) - 1)) for options in space.options])


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
@given(token_nets)
def test_a_full_width_spec_changes_nothing(net):
    found = trace(net, TOKENS)
    spec = PruningSpec.of({g.name: g.size for g in found.groups})
    pruned = prune(net, TOKENS, spec, dependencies=found)
    assert pruned.recipe.history == ()
    assert torch.equal(outputs(pruned.model), outputs(net))


@law
@given(token_nets, st.data())
def test_kept_units_are_as_asked_and_come_back_from_a_recipe(net, data):
    before = copy.deepcopy(net.state_dict())
    found, spec = trace(net, TOKENS), data.draw(some_spec(net))
    pruned = prune(net, TOKENS, spec, dependencies=found)
    modules = dict(pruned.model.named_modules())
    for coupling in found.couplings:
        group, kept = coupling.group, spec.widths[coupling.group.name]
        if group.kind == "blocks":
            there = [not isinstance(modules[m.layer], Bypass) for m in coupling.members]
            assert sum(there) == kept
        elif not isinstance(modules.get(group.name), (Bypass, type(None))):  # its block is there
            side = "heads" if group.kind == "heads" else "out"
            assert width(modules[group.name], side) == kept
    recipe = Recipe.from_json(json.loads(json.dumps(pruned.recipe.to_json())))
    again = rebuild(recipe, pruned.model.state_dict(), model=net)
    assert torch.equal(outputs(again), outputs(pruned.model))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


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
