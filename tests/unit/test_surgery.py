from dataclasses import dataclass

import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Cause, TrialError
from autoprune.pruning.bypass import Bypass
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.cuts import Cut, width
from autoprune.pruning.cutting import apply_cuts
from autoprune.pruning.graph import Dependencies, GraphError, trace
from autoprune.pruning.surgery import prune
from tests.pruning_tasks import Blobs, small_net

EXAMPLE = Blobs().example()


@dataclass
class Given:
    """A user's own criterion: fixed scores."""

    values: dict[str, list[float]]
    name: str = "given"

    def scores(self, model, couplings, scoring):
        del couplings, scoring
        nn.init.zeros_(model[0].weight)  # a criterion may use its copy up
        return {name: torch.tensor(values) for name, values in self.values.items()}


def test_the_lowest_scores_go_and_ties_go_by_index():
    net = small_net()
    own = Given({"0": [3.0, 1, 1, 1, 9, 0, 2, 5]})
    pruned = prune(net, EXAMPLE, PruningSpec.of({"0": 5}), criterion=own)
    kept = torch.tensor([0, 3, 4, 6, 7])
    assert torch.equal(pruned.model[0].weight, net[0].weight[kept])
    assert torch.equal(pruned.model[1].running_var, net[1].running_var[kept])
    assert pruned.recipe.history[0] == Cut("0", "out", ((1, 3), (5, 6)))
    assert pruned.recipe.spec == PruningSpec.of({"0": 5})


def test_blocks_of_a_grouped_layer_lose_equally_many():
    net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    own = Given({"0": [8.0, 7, 6, 5, 4, 3, 2, 1]})
    pruned = prune(net, EXAMPLE, PruningSpec.of({"0": 4}), criterion=own)
    assert pruned.recipe.history[0].removed == ((2, 4), (6, 8))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"1": 2}, "group '1' is not known"),
        ({"0": 9}, "group '0' keeps 9 of 8 channels; choose between 1 and 8 in steps of 1"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(widths, message):
    with pytest.raises(AutopruneError, match=message):
        prune(small_net(), EXAMPLE, PruningSpec.of(widths))


def test_a_width_off_the_step_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1))
    with pytest.raises(AutopruneError, match=r"keeps 5 of 8 channels; .* in steps of 4"):
        prune(net, EXAMPLE, PruningSpec.of({"0": 5}))


def test_an_empty_group_has_a_cause_of_its_own():
    with pytest.raises(TrialError, match="'5' keeps 0 of 6 neurons; choose between 1 and 6") as why:
        prune(small_net(), EXAMPLE, PruningSpec.of({"5": 0}))
    assert why.value.cause is Cause.EMPTY_GROUP


def test_a_result_that_is_not_what_was_asked_is_refused():
    net = small_net()
    found = trace(net, EXAMPLE)
    spec = PruningSpec.of({"0": 4, "5": 3})
    first, second = found.couplings
    lame = Coupling(first.group, first.members[:2], first.cell)
    with pytest.raises(GraphError, match="the pruned network does not run"):
        prune(net, EXAMPLE, spec, dependencies=Dependencies((lame, second)))
    halved = [m if m.side == "in" else _first_half(m) for m in first.members]
    wrong = Coupling(first.group, tuple(halved), first.cell)
    with pytest.raises(GraphError, match=r"does not run|were asked"):
        prune(net, EXAMPLE, spec, dependencies=Dependencies((wrong, second)))


def _first_half(member):
    keep = slice(0, len(member.index) // 2)
    return type(member)(member.layer, member.side, member.index[keep], member.unit[keep])


def test_a_result_that_is_not_finite_is_refused():
    net = small_net()
    found = trace(net, EXAMPLE)
    nn.init.constant_(net[7].weight, torch.inf)
    own = Given({"0": list(range(8))})
    with pytest.raises(TrialError, match="output on the example is not finite"):
        prune(net, EXAMPLE, PruningSpec.of({"0": 4}), criterion=own, dependencies=found)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ([Cut("9", "out", ((0, 1),))], "the network has no layer '9', which the cut names"),
        ([Cut("0", "out", ((0, 8),))], "removes 8 indices up to 7 of 8; it must leave one"),
        ([Cut("0", "out", ((8, 9),))], "stay in range"),
        ([Cut("2", "out", ((0, 1),))], "ReLU cannot be cut; the layers that can: "),
        ([Cut("0", "out", ((0, 1),)), Cut("0", "out", ((2, 3),))], "'0' is cut twice on its out"),
        ([Cut("0.weight", "param", ((0, 1),), axis=7)], "is on axis 7 of 4"),
        ([Cut("1", "in", ((0, 1),))], "'1' is of inputs, and a BatchNorm2d has none besides its"),
        ([Cut("0", "heads", ((0, 1),))], "Conv2d has no heads to cut"),
        ([Cut("", "block", ((0, 1),))], "the network has no layer '', which the cut names"),
    ],
)
def test_cuts_that_do_not_fit_are_refused(cuts, message):
    with pytest.raises(AutopruneError, match=message):
        apply_cuts(small_net(), cuts)


def test_modules_inside_of_one_that_goes_may_be_cut_too():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))
    cuts = [Cut(name, side, ((0, 1),)) for name, side in (("0", "block"), ("0.1", "branch"))]
    apply_cuts(net, cuts)
    assert isinstance(net[0], Bypass)


def test_an_uneven_cut_of_a_grouped_layer_is_refused():
    net = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2))
    with pytest.raises(AutopruneError, match=r"with \[3, 4\] units; keep equally many in each"):
        apply_cuts(net, [Cut("0", "out", ((0, 1),))])


@pytest.mark.parametrize("removed", [(), ((2, 1),), ((0, 2), (1, 3)), ((-1, 2),), ((0, 2), (2, 3))])
def test_ranges_ascend_apart(removed):
    with pytest.raises(AutopruneError, match="give ascending, separate ranges"):
        Cut("0", "out", removed)


@pytest.mark.parametrize(
    ("layer", "side", "shape"),
    [
        (nn.Conv1d(4, 6, 3), "in", (6, 3, 3)),
        (nn.ConvTranspose2d(4, 6, 2), "out", (4, 5, 2, 2)),
        (nn.ConvTranspose2d(4, 6, 2, groups=1), "in", (3, 6, 2, 2)),
        (nn.Embedding(9, 4), "out", (9, 3)),
        (nn.PReLU(4), "out", (3,)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), "out", (3,)),
        (nn.LayerNorm(4), "out", (3,)),
        (nn.Conv2d(4, 4, 3, groups=4), "out", (3, 1, 3, 3)),
    ],
)
def test_every_layer_that_can_be_cut(layer, side, shape):
    net = nn.Sequential(layer)
    before = width(layer, side)
    apply_cuts(net, [Cut("0", side, ((1, 2),))])
    assert tuple(layer.weight.shape) == shape
    assert width(layer, side) == before - 1


def test_a_tied_weight_is_cut_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    cut = [Cut(name, side, ((1, 2),)) for name in "01" for side in ("in", "out")]
    apply_cuts(net, cut)
    assert net[1].weight is net[0].weight
    assert tuple(net[0].weight.shape) == (3, 3)
