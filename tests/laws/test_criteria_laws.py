"""Laws of criteria, over random networks."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.domain.space import UNEVEN_KINDS
from autoprune.pruning.coupling import Coupling, cuts_for
from autoprune.pruning.criteria import CRITERIA, Scoring, criterion_of, score
from autoprune.pruning.cuts import width
from autoprune.pruning.graph import Dependencies, trace
from tests.criteria_tasks import Noise
from tests.random_networks import EXAMPLE, random_net

law = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))

DATA = Noise((3, 5, 5))
BLOCKS = ("plain", "residual", "concat", "branches", "depthwise", "grouped", "shared", "nobn")
nets = st.builds(
    lambda kinds, flatten, seed: random_net(kinds, flatten, seed).double(),
    st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=2),
    st.booleans(),
    st.integers(0, 10_000),
)
READ = sorted(set(CRITERIA) - {"random", "se_gate"})
"""Those that look at what there is to see in these networks."""


def traced(net: nn.Module) -> Dependencies:
    return trace(net, EXAMPLE.double())


def scored(net: nn.Module, found: Dependencies, name: str) -> dict[str, torch.Tensor]:
    return score(net, found.couplings, criterion_of(name), Scoring(DATA, batches=2))


@pytest.mark.parametrize(
    ("name", "power"), [("l1", 1), ("l2", 2), ("lamp", 0), ("geometric_median", 1)]
)
@law
@given(nets, st.floats(0.1, 10))
def test_scores_of_weights_follow_their_scale(name, power, net, scale):
    found = traced(net)
    larger = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter *= scale
    before, after = scored(net, found, name), scored(larger, found, name)
    for group, scores in before.items():
        torch.testing.assert_close(after[group], scores * scale**power)


@pytest.mark.parametrize("name", READ)
@law
@given(nets, st.integers(0, 100))
@example(random_net(["branches", "residual"], flatten=False, seed=0).double(), 1)
def test_units_keep_their_scores_when_they_change_places(name, net, seed):
    found, rng = traced(net), np.random.default_rng(seed)
    # grouped layers allow no other places than within a block: take a group without
    free = [c for c in found.couplings if len(np.unique(c.cell)) == 1 and not _meets_blocks(net, c)]
    free = [c for c in free if c.group.kind not in UNEVEN_KINDS]  # a block's place is its own
    coupling = free[int(rng.integers(len(free)))]
    order = rng.permutation(coupling.group.size)
    before = scored(net, found, name)
    after = scored(_moved(net, coupling, order), found, name)
    moved = before[coupling.group.name][torch.from_numpy(order)]
    torch.testing.assert_close(after[coupling.group.name], moved, rtol=1e-6, atol=1e-9)
    for group in set(before) - {coupling.group.name}:
        torch.testing.assert_close(after[group], before[group], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(READ) - {"geometric_median"}))
@law
@given(nets, st.data())
def test_units_of_zeros_are_the_lowest(name, net, data):
    found = traced(net)
    layered = [c for c in found.couplings if c.group.kind not in UNEVEN_KINDS]
    coupling = data.draw(st.sampled_from(layered))
    gone = np.array(sorted(data.draw(st.sets(st.integers(0, coupling.group.size - 1), min_size=1))))
    _zero(net, coupling, gone)
    scores = scored(net, found, name)[coupling.group.name]
    assert scores[gone].max() == 0
    assert scores.min() == 0


@law
@given(nets)
def test_lamp_ranks_the_units_of_a_group_as_l2_does(net):
    found = traced(net)
    lamp, masses = scored(net, found, "lamp"), scored(net, found, "l2")
    for group, mass in masses.items():
        assert lamp[group].argsort().tolist() == mass.argsort().tolist()
        assert 0 < lamp[group].min() <= lamp[group].max() == 1


@law
@given(nets, st.floats(-5, 5))
def test_the_geometric_median_does_not_feel_a_shift_of_all_filters(net, shift):
    found = traced(net)
    shifted = copy.deepcopy(net)
    with torch.no_grad():
        for module in shifted.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight += shift
    before, after = (scored(n, found, "geometric_median") for n in (net, shifted))
    masses = scored(shifted, found, "l1")
    for group in found.groups:
        expected = (masses if group.kind in UNEVEN_KINDS else before)[group.name]
        torch.testing.assert_close(after[group.name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["activation", "apoz"])
@law
@given(nets)
def test_activations_do_not_feel_what_reads_them(name, net):
    """The last layer's weights change the loss, and nothing that was said before."""
    found = traced(net)
    before = scored(net, found, name)
    nn.init.normal_(net.fc2.weight)
    after = scored(net, found, name)
    assert all(torch.equal(before[group], after[group]) for group in before)


def _meets_blocks(net: nn.Module, coupling: Coupling) -> bool:
    modules = dict(net.named_modules())
    return any(getattr(modules.get(m.layer), "groups", 1) > 1 for m in coupling.members)


@torch.no_grad()
def _moved(net: nn.Module, coupling: Coupling, order: np.ndarray) -> nn.Module:
    """The same function with unit `order[i]` of a group in place i."""
    changed = copy.deepcopy(net)
    modules = dict(changed.named_modules())
    for member in coupling.members:
        layer = modules[member.layer]
        places = np.arange(width(layer, member.side))
        own = member.index[np.argsort(member.unit, kind="stable")]
        own = own.reshape(coupling.group.size, -1)
        places[own] = own[order]
        axis = 1 if member.side == "in" and isinstance(layer, (nn.Conv2d, nn.Linear)) else 0
        layer.weight.data = layer.weight.data.index_select(axis, torch.from_numpy(places))
        for name in ("bias", "running_mean", "running_var") if axis == 0 else ():
            tensor = getattr(layer, name, None)
            if tensor is not None:
                tensor.data = tensor.data[torch.from_numpy(places)]
    return changed


@torch.no_grad()
def _zero(net: nn.Module, coupling: Coupling, gone: np.ndarray) -> None:
    """Everything that units own is zero, also what norms add."""
    modules = dict(net.named_modules())
    for cut in cuts_for([coupling], {coupling.group.name: gone}) if len(gone) else ():
        layer = modules[cut.layer]
        units = np.concatenate([np.arange(start, stop) for start, stop in cut.removed])
        rows = torch.from_numpy(units)
        if cut.side == "in" and isinstance(layer, nn.Conv2d) and layer.groups > 1:
            out = layer.out_channels // layer.groups
            for unit in units:
                block, column = divmod(int(unit), layer.weight.shape[1])
                layer.weight[block * out : (block + 1) * out, column] = 0
        elif cut.side == "in" and isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight[:, rows] = 0
        else:
            layer.weight[rows] = 0
            if layer.bias is not None:
                layer.bias[rows] = 0
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean[rows] = 0
