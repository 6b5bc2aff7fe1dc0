"""Laws of sparse training: proximal steps, what belongs to a unit, and cuts that take zeros."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.domain.space import UNEVEN_KINDS, Group, PruningSpec
from autoprune.measurement.cost import costs
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.criteria import criterion_of
from autoprune.pruning.graph import Dependencies, trace
from autoprune.pruning.sparsity.blocks import pieces_of, silent_units
from autoprune.pruning.sparsity.cost import MacCost
from autoprune.pruning.sparsity.groups import Lasso, Longest
from autoprune.pruning.sparsity.penalties import Block, Latent
from autoprune.pruning.sparsity.plan import Sparsity
from autoprune.pruning.sparsity.prox import (
    block_factors,
    singular_value_threshold,
    soft_threshold,
)
from autoprune.pruning.sparsity.shrink import Shrinking
from autoprune.pruning.sparsity.training import ZerosFirst
from autoprune.pruning.surgery import prune
from tests.random_networks import BATCH, EXAMPLE, nets

many = settings(max_examples=60, deadline=None)
law = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
numbers = st.floats(-10, 10).map(lambda x: round(x, 9))  # the square of a tiny one is zero
thresholds = st.floats(1e-3, 5)


def matrices(rows: int, columns: int) -> st.SearchStrategy[torch.Tensor]:
    cells = st.lists(numbers, min_size=rows * columns, max_size=rows * columns)
    return cells.map(lambda values: torch.tensor(values, dtype=torch.float64).view(rows, columns))


def blocks(x: torch.Tensor, threshold: float) -> torch.Tensor:
    """The rows of x, each a block, after the step."""
    return x * block_factors(x.norm(dim=1), threshold)[:, None]


STEPS = {
    "blocks": (blocks, lambda y: y.norm(dim=1).sum()),
    "entries": (soft_threshold, lambda y: y.abs().sum()),
    "singular values": (singular_value_threshold, lambda y: torch.linalg.svdvals(y).sum()),
}


def test_a_block_in_closed_form() -> None:
    found = blocks(torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=torch.float64), 3.0)
    torch.testing.assert_close(found[0], torch.tensor([1.2, 1.6], dtype=torch.float64))
    assert found[1].tolist() == [0.0, 0.0]


def test_entries_in_closed_form() -> None:
    x = torch.tensor([3.0, -2.0, 0.5, -0.5])
    assert soft_threshold(x, 1.0).tolist() == [2.0, -1.0, 0.0, 0.0]


@many
@given(matrices(3, 3), thresholds)
def test_singular_values_in_closed_form(x: torch.Tensor, threshold: float) -> None:
    found = torch.linalg.svdvals(singular_value_threshold(x, threshold))
    expected = (torch.linalg.svdvals(x) - threshold).clamp_min(0)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", STEPS)
@many
@given(matrices(3, 4), matrices(3, 4), thresholds)
def test_a_step_is_the_best_point(
    kind: str, x: torch.Tensor, other: torch.Tensor, threshold: float
) -> None:
    """No y has a smaller |y - x|^2 / 2 + t f(y), whether far away or near by; and it is unique,
    since the first term grows with the distance from it.
    """
    step, penalty = STEPS[kind]

    def value(y: torch.Tensor) -> torch.Tensor:
        return (y - x).square().sum() / 2 + threshold * penalty(y)

    best = step(x, threshold)
    for y in (other, best + 1e-3 * other, 0.5 * best, torch.zeros_like(x), x):
        away = (y - best).square().sum() / 2
        assert value(y) + 1e-8 >= value(best) + away * (1 - 1e-9)


@pytest.mark.parametrize("kind", STEPS)
@many
@given(matrices(3, 4), matrices(3, 4), thresholds)
def test_a_step_brings_no_two_points_further_apart(
    kind: str, x: torch.Tensor, y: torch.Tensor, threshold: float
) -> None:
    step, _ = STEPS[kind]
    apart = (step(x, threshold) - step(y, threshold)).norm()
    assert apart <= (x - y).norm() + 1e-7


@pytest.mark.parametrize("kind", STEPS)
@many
@given(matrices(3, 4))
def test_a_step_of_no_length_changes_nothing(kind: str, x: torch.Tensor) -> None:
    step, _ = STEPS[kind]
    assert torch.equal(step(x, 0.0), x)


@many
@given(matrices(2, 3), thresholds)
def test_short_blocks_are_exactly_zero(x: torch.Tensor, threshold: float) -> None:
    found = blocks(x, threshold)
    short = x.norm(dim=1) <= threshold
    assert (found[short] == 0).all()
    assert (found[~short].norm(dim=1) > 0).all()


@many
@given(matrices(4, 3), matrices(4, 3), thresholds, st.integers(1, 4))
def test_sparing_the_longest_is_the_best_point_of_what_the_others_weigh(
    x: torch.Tensor, other: torch.Tensor, threshold: float, kept: int
) -> None:
    """The penalty is the length of the 4 - kept shortest blocks together."""
    coupling = Coupling(Group("g", "neurons", 4), (), np.zeros(4, np.int64))
    longest = Longest(coupling, kept, torch.device("cpu"))
    spared = longest.among(x.norm(dim=1))
    assert spared.sum() == kept
    best = torch.where(spared[:, None], x, blocks(x, threshold))

    def value(y: torch.Tensor) -> torch.Tensor:
        short = y.norm(dim=1).sort().values[: 4 - kept].sum()
        return (y - x).square().sum() / 2 + threshold * short

    for y in (other, best + 1e-3 * other, 0.5 * best, torch.zeros_like(x), x, blocks(x, threshold)):
        assert value(y) + 1e-8 >= value(best)


def thinned(found: Dependencies) -> list[Coupling]:
    """The groups that sparse training is for: all units of one own equally much."""
    return [c for c in found.couplings if c.group.kind not in UNEVEN_KINDS]


def kept_of(draw: st.DataObject, found: Dependencies) -> dict[str, int]:
    groups = [coupling.group for coupling in thinned(found)]
    return {
        group.name: group.step * draw.draw(st.integers(1, group.size // group.step))
        for group in groups
    }


def shrunk(net: nn.Module, found: Dependencies, kept: Mapping[str, int], **plan: object) -> None:
    """The network after proximal steps that take all they may."""
    couplings = thinned(found)
    cost = MacCost(net, EXAMPLE.to(next(net.parameters()).dtype), couplings)
    asked = Sparsity(**{"strength": 1.0, **plan})  # type: ignore[arg-type]
    shrinking = Shrinking(net, couplings, asked, kept=kept, cost=cost)
    for _ in range(30):
        shrinking.after_step(0.2, 0.0)
    assert shrinking.metrics["sparsity_cost"] == pytest.approx(1.0)


@law
@given(nets, st.data(), st.booleans())
def test_units_go_to_zero_and_no_more_than_the_cut_takes(
    net: nn.Module, data: st.DataObject, overlap: bool
) -> None:
    found = trace(net, EXAMPLE)
    kept = kept_of(data, found)
    shrunk(net, found, kept, overlap=overlap)
    for coupling in thinned(found):
        name, size = coupling.group.name, coupling.group.size
        silent = silent_units(net, coupling).numpy()
        assert silent.sum() == size - kept[name]
        cells = [silent[coupling.cell == cell].sum() for cell in np.unique(coupling.cell)]
        assert len(set(cells)) == 1


@pytest.mark.parametrize("criterion", ["l1", "geometric_median", "random", "bn_scale"])
@law
@given(nets, st.data(), st.sampled_from(["group_lasso", "overlap", "slimming"]))
def test_zero_units_go_without_changing_the_output(
    criterion: str, net: nn.Module, data: st.DataObject, kind: str
) -> None:
    """Whatever the criterion: here every unit goes through ReLU, which takes zero to zero."""
    if any(isinstance(module, nn.GroupNorm) for module in net.modules()):
        return  # its statistics depend on the units that went
    net = net.double()
    found = trace(net, EXAMPLE.double())
    kept = kept_of(data, found)
    method = "slimming" if kind == "slimming" else "group_lasso"
    shrunk(net, found, kept, method=method, overlap=kind == "overlap")
    spec = PruningSpec.of(kept, criterion=criterion)
    by = ZerosFirst(criterion_of(criterion))
    pruned = prune(net, EXAMPLE.double(), spec, criterion=by, dependencies=found)
    with torch.no_grad():
        whole, cut = net(BATCH.double()), pruned.model(BATCH.double())
    torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-9)


def test_a_sigmoid_of_zero_is_not_zero() -> None:
    """Where the law above does not hold: the units are zero, what is read of them is not."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)).double()
    example = torch.ones(1, 4, dtype=torch.float64)
    found = trace(net, example)
    with torch.no_grad():
        net[0].weight[1] = net[0].bias[1] = 0
    spec = PruningSpec.of({"0": 2})
    pruned = prune(net, example, spec, dependencies=found).model
    assert silent_units(net, found.couplings[0]).tolist() == [False, True, False]
    assert not torch.allclose(pruned(example), net(example))
    with torch.no_grad():  # what nothing reads goes without a trace, whatever comes after it
        net[2].weight[:, 1] = 0
    pruned = prune(net, example, spec, dependencies=found).model
    torch.testing.assert_close(pruned(example), net(example))


@law
@given(nets, st.data())
def test_macs_are_those_that_are_measured(net: nn.Module, data: st.DataObject) -> None:
    found = trace(net, EXAMPLE)
    kept = kept_of(data, found)
    share = MacCost(net, EXAMPLE, thinned(found))(kept)
    pruned = prune(net, EXAMPLE, PruningSpec.of(kept), dependencies=found).model
    whole, cut = (costs(model, EXAMPLE)["macs"] for model in (net, pruned))
    assert share == pytest.approx(cut / whole, rel=1e-6)


@law
@given(nets, st.booleans())
def test_a_units_pieces_are_its_own(net: nn.Module, readers: bool) -> None:
    """What is zero in all pieces of a unit are the unit's weights, and nothing of other units."""
    for coupling in thinned(trace(net, EXAMPLE)):
        units = coupling.group.size
        pieces = pieces_of(net, coupling, readers=readers)
        counts = [piece.sums(torch.ones_like(piece.tensor), units) for piece in pieces]
        for piece, count in zip(pieces, counts, strict=True):
            only = torch.zeros(units)
            only[-1] = 1.0
            mask = piece.spread(only, rest=0.0).expand_as(piece.tensor)
            assert mask.sum() == count[-1] > 0
            assert count.min() == count.max()


def latent(net: nn.Module, couplings: Sequence[Coupling], kept: int) -> Latent:
    blocks = [
        Block(
            pieces_of(net, coupling, readers=True),
            Longest(coupling, kept, torch.device("cpu")),
            coupling.group.size,
        )
        for coupling in couplings
    ]
    return Latent(blocks)


@law
@given(nets, st.floats(1e-3, 1.0))
@torch.no_grad()
def test_latent_variables_of_one_group_are_its_weights(net: nn.Module, threshold: float) -> None:
    """Nothing overlaps: the step is block soft-thresholding of the weights themselves."""
    net, twin = net.double(), copy.deepcopy(net).double()
    (coupling,) = [c for c in trace(net, EXAMPLE.double()).couplings if c.group.name == "fc1"]
    pieces = pieces_of(twin, coupling, readers=True)
    lasso = Lasso(pieces, Longest(coupling, 3, torch.device("cpu")), coupling.group.size)
    assert latent(net, [coupling], 3).shrink([threshold]) == [lasso.shrink(threshold)]
    for name, weight in net.named_parameters():
        torch.testing.assert_close(weight, twin.get_parameter(name))


@law
@given(nets, st.integers(0, 1000))
@torch.no_grad()
def test_without_a_threshold_the_weights_are_where_the_optimizer_took_them(
    net: nn.Module, seed: int
) -> None:
    net = net.double()
    couplings = thinned(trace(net, EXAMPLE.double()))
    whole = latent(net, couplings, 1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for weight in net.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight += 0.1 * noise
        expected = copy.deepcopy(net.state_dict())
        assert whole.shrink([0.0] * len(couplings)) == [c.group.size for c in couplings]
        for name, weight in net.named_parameters():
            torch.testing.assert_close(weight, expected[name])
