"""Laws of schedules: how wide networks are after every round, and cutting what was cut before."""

import copy
import json
import math
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.domain.space import UNEVEN_KINDS, Group, PruningSpec
from autoprune.pruning.coupling import Coupling, cuts_for
from autoprune.pruning.criteria import Scoring, criterion_of
from autoprune.pruning.cuts import Cut, Indices
from autoprune.pruning.cutting import apply_cuts
from autoprune.pruning.further import compose, restrict
from autoprune.pruning.graph import trace
from autoprune.pruning.healing import Healing, Recovery
from autoprune.pruning.isolation import outputs_of
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.rounds import Choosing, Rounds, rewind
from autoprune.pruning.schedule import SHAPES, Schedule
from autoprune.pruning.surgery import Pruned, prune
from tests.pruning_tasks import same
from tests.random_networks import BATCH, EXAMPLE, Images, nets

law = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
schedules = st.builds(Schedule, st.integers(1, 12), st.sampled_from(sorted(SHAPES)), st.booleans())


@st.composite
def targets(draw: st.DrawFn) -> tuple[Group, int]:
    """A group and a legal width of it; a step need not divide the size."""
    size = draw(st.integers(1, 300))
    step = draw(st.integers(1, size))
    kept = draw(st.sampled_from([*range(step, size + 1, step), size]))
    return Group("group", "channels", size, step), kept


@given(targets(), schedules)
def test_widths_are_legal_and_fall_to_the_one_that_was_asked(
    target: tuple[Group, int], schedule: Schedule
) -> None:
    group, kept = target
    widths = schedule.widths(group, kept)
    assert len(widths) == schedule.rounds
    assert widths[-1] == kept
    assert all(width % group.step == 0 or width == group.size for width in widths)
    assert all(one >= other for one, other in pairwise((group.size, *widths)))


@given(targets(), schedules)
def test_widths_are_as_near_to_the_shape_as_steps_allow(
    target: tuple[Group, int], schedule: Schedule
) -> None:
    group, kept = target
    for number, width in enumerate(schedule.widths(group, kept), start=1):
        share = number / schedule.rounds
        if schedule.shape == "geometric":
            wanted = math.exp((1 - share) * math.log(group.size) + share * math.log(kept))
        else:
            wanted = group.size - (group.size - kept) * (1 - (1 - share) ** 3)
        assert abs(width - wanted) <= group.step / 2 + 1e-9


@given(st.integers(1, 12), st.integers(0, 40))
def test_rounds_share_out_all_epochs(rounds: int, total: int) -> None:
    schedule = Schedule(rounds)
    shares = schedule.epochs(total)
    assert (len(shares), sum(shares)) == (rounds, total)
    assert len(set(shares[:-1])) <= 1
    assert 0 <= shares[-1] - shares[0] < rounds
    trained = [number for number, share in enumerate(shares) for _ in range(share)]
    assert [schedule.round_of(epoch, total) for epoch in range(1, total + 1)] == trained
    assert schedule.round_of(0, total) == 0


@st.composite
def some_units(draw: st.DrawFn, couplings: Sequence[Coupling], left: int = 1) -> dict[str, Indices]:
    """Units to remove of every group: equally many of every cell, which keeps `left` or more."""
    found = {}
    for coupling in couplings:
        cells = [np.flatnonzero(coupling.cell == cell) for cell in np.unique(coupling.cell)]
        count = draw(st.integers(0, len(cells[0]) - left))
        gone = [draw(st.permutations(cell.tolist()))[:count] for cell in cells]
        found[coupling.group.name] = np.array(list(chain(*gone)), np.int64)
    return found


def some_cuts(data: st.DataObject, couplings: Sequence[Coupling], left: int = 1) -> tuple[Cut, ...]:
    return cuts_for(couplings, data.draw(some_units(couplings, left)))


def cut(net: nn.Module, *histories: Sequence[Cut]) -> nn.Module:
    found = copy.deepcopy(net)
    for history in histories:
        apply_cuts(found, history)
    return found


def facts(couplings: Sequence[Coupling]) -> list[object]:
    """All that couplings say, comparable; members in any order of theirs and of their indices."""
    return [
        (
            coupling.group,
            sorted(
                (m.layer, m.side, m.axis, sorted(np.stack([m.index, m.unit], 1).tolist()))
                for m in coupling.members
            ),
            np.unique(coupling.cell, return_inverse=True)[1].tolist(),
        )
        for coupling in couplings
    ]


def even(couplings: Sequence[Coupling]) -> tuple[Coupling, ...]:
    """Those that are cut in rounds."""
    return tuple(c for c in couplings if c.group.kind not in UNEVEN_KINDS)


@law
@given(nets, st.data())
def test_cutting_twice_is_cutting_once(net: nn.Module, data: st.DataObject) -> None:
    whole = even(trace(net, EXAMPLE).couplings)
    first = some_cuts(data, whole)
    then = some_cuts(data, restrict(whole, first))
    once, twice = cut(net, compose(first, then)), cut(net, first, then)
    assert same(once.state_dict(), twice.state_dict())
    assert torch.equal(outputs_of(once, BATCH), outputs_of(twice, BATCH))
    both = restrict(restrict(whole, first), then)
    assert facts(both) == facts(restrict(whole, compose(first, then)))


@law
@given(nets, st.data())
def test_units_of_a_cut_network_are_the_old_ones_that_are_left(
    net: nn.Module, data: st.DataObject
) -> None:
    whole = even(trace(net, EXAMPLE).couplings)
    gone = data.draw(some_units(whole))
    left = restrict(whole, cuts_for(whole, gone))
    further = data.draw(some_units(left))
    together = {}
    for coupling in whole:
        name = coupling.group.name
        stay = np.setdiff1d(np.arange(coupling.group.size), gone[name])
        together[name] = np.union1d(gone[name], stay[further[name]])
    composed = compose(cuts_for(whole, gone), cuts_for(left, further))
    assert composed == cuts_for(whole, together)


@law
@given(nets, st.data())
def test_what_is_restricted_is_what_a_new_trace_would_find(
    net: nn.Module, data: st.DataObject
) -> None:
    whole = even(trace(net, EXAMPLE).couplings)
    history = some_cuts(data, whole, left=2)  # one unit, or one in a cell, is no group
    again = even(trace(cut(net, history), EXAMPLE).couplings)
    assert facts(again) == facts(restrict(whole, history))


@law
@given(nets, st.data())
def test_cutting_nothing_changes_nothing(net: nn.Module, data: st.DataObject) -> None:
    whole = even(trace(net, EXAMPLE).couplings)
    history = some_cuts(data, whole)
    assert facts(restrict(whole, ())) == facts(whole)
    assert compose(history, ()) == compose((), history) == history


TASK = Images()


def in_rounds(
    net: nn.Module, spec: PruningSpec, recovery: Recovery, early: nn.Module | None = None
) -> tuple[Pruned, list[Pruned]]:
    """The network that is cut at once, and that of every epoch."""
    found, scoring = trace(net, EXAMPLE), Scoring(TASK, seed=5, batches=1)
    once = prune(net, EXAMPLE, spec, scoring=scoring, dependencies=found)
    choosing = Choosing(found, criterion_of(spec.criterion), scoring)
    healing = Healing(recovery, TASK, net, once.recipe.history, seed=5)
    start = Pruned(copy.deepcopy(once.model), once.recipe)
    return once, [p for p, _ in Rounds(healing, choosing, early).train(start)]


@st.composite
def some_spec(draw: st.DrawFn, groups: Sequence[Group]) -> PruningSpec:
    widths = {g.name: g.step * draw(st.integers(1, g.size // g.step)) for g in groups}
    return PruningSpec.of(widths, criterion=draw(st.sampled_from(["l1", "random", "fisher"])))


@law
@given(nets, st.data(), st.integers(2, 3), st.sampled_from(sorted(SHAPES)))
def test_a_recipe_of_many_rounds_rebuilds_the_network_bit_for_bit(
    net: nn.Module, data: st.DataObject, rounds: int, shape: str
) -> None:
    spec = data.draw(some_spec(trace(net, EXAMPLE).groups))
    before = copy.deepcopy(net)
    plan = FitPlan(epochs=rounds, lr=1e-3)
    recovery = Recovery(plan, 1, schedule=Schedule(rounds, shape))
    once, networks = in_rounds(net, spec, recovery)
    assert len(networks) == rounds
    assert same(net.state_dict(), before.state_dict())
    for found in networks:
        recipe = Recipe.from_json(json.loads(json.dumps(found.recipe.to_json())))
        assert recipe == found.recipe
        rebuilt = rebuild(recipe, found.model.state_dict(), model=net).eval()
        assert torch.equal(outputs_of(rebuilt, BATCH), outputs_of(found.model, BATCH))
    for one, other in pairwise(networks):
        removed = {(c.layer, c.side, c.axis): c for c in other.recipe.history}
        assert all(
            set(_indices(c)) <= set(_indices(removed[c.layer, c.side, c.axis]))
            for c in one.recipe.history
        )
    last = networks[-1]
    assert last.recipe.spec == spec
    shapes = [{name: t.shape for name, t in p.model.state_dict().items()} for p in (once, last)]
    assert shapes[0] == shapes[1], "what is measured is as wide as what is kept"


def _indices(cut: Cut) -> list[int]:
    return [index for ends in cut.removed for index in range(*ends)]


@law
@given(nets, st.data(), st.integers(1, 2))
def test_rewound_units_have_the_weights_that_they_had_early(
    net: nn.Module, data: st.DataObject, rounds: int
) -> None:
    spec = data.draw(some_spec(trace(net, EXAMPLE).groups))
    early = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in early.parameters():
            parameter.add_(1.0)
    before = copy.deepcopy(early)
    still = FitPlan(epochs=rounds, lr=1e-30, weight_decay=0.0, warmup_epochs=0)
    recovery = Recovery(still, 1, schedule=Schedule(rounds, rewind=True))
    _, networks = in_rounds(net, spec, recovery, early)
    last = networks[-1]
    expected = dict(cut(early, last.recipe.history).named_parameters())
    found = dict(last.model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rewind(last.model, early, last.recipe.history)
    assert same(last.model.state_dict(), cut(early, last.recipe.history).state_dict())
    assert same(early.state_dict(), before.state_dict())
