"""Laws of global ranking."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.domain.ranking import NORMALISATIONS, Ranking
from autoprune.domain.space import Axis, Group, SearchSpace
from tests.strategies import spaces

law = settings(max_examples=40, deadline=None)


def ranking_of(space: SearchSpace, seed: int, *, lowest: float = 0.0) -> Ranking:
    rng = np.random.default_rng(seed)
    return Ranking(
        {
            criterion: {
                g.name: tuple(np.sort(lowest + rng.gamma(0.5, rng.gamma(1.0), g.size)).tolist())
                for g in space.groups
            }
            for criterion in space.criteria
        }
    )


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@law
@given(space=spaces(), seed=st.integers(0, 1000))
def test_every_step_makes_one_group_narrower_to_its_next_legal_width(normalisation, space, seed):
    path = ranking_of(space, seed).path(space, space.criteria[0], normalisation=normalisation)
    count = len(path.narrowed)
    assert count == sum(len(axis.widths) - 1 for axis in space.axes)
    places = sorted({0, count, *np.random.default_rng(seed).integers(0, count + 1, 20).tolist()})
    for at in places:
        space.check(path.after(at))
    for at in places[:-1]:
        before, after = path.after(at).widths, path.after(at + 1).widths
        changed = [axis for axis in space.axes if before[axis.group.name] != after[axis.group.name]]
        assert len(changed) == 1
        widths, name = changed[0].widths, changed[0].group.name
        assert widths.index(before[name]) == widths.index(after[name]) + 1
    assert path.after(0).widths == {a.group.name: a.widths[-1] for a in space.axes}
    assert path.after(count).widths == {a.group.name: a.widths[0] for a in space.axes}


@law
@given(space=spaces(), seed=st.integers(0, 1000), ratio=st.floats(0, 1))
def test_a_ratio_is_met_as_nearly_as_the_path_can(space, seed, ratio):
    path = ranking_of(space, seed).path(space, space.criteria[-1])
    total = sum(group.size for group in space.groups)
    spec = path.at(ratio)
    assert spec.criterion == space.criteria[-1]
    kept = sum(spec.widths.values()) / total
    assert abs(kept - ratio) <= min(abs(share - ratio) for share in path.shares) + 1e-12
    assert all(wide > narrow for wide, narrow in pairwise(path.shares))


@law
@given(space=spaces(), seed=st.integers(0, 1000), ratio=st.floats(0, 1))
def test_a_lower_ratio_widens_no_group(space, seed, ratio):
    path = ranking_of(space, seed).path(space, space.criteria[0], normalisation="gaussian")
    wide, narrow = path.at(ratio).widths, path.at(ratio / 2).widths
    assert all(narrow[name] <= width for name, width in wide.items())


@pytest.mark.parametrize("normalisation", ["mean", "max", "gaussian"])
@law
@given(space=spaces(), seed=st.integers(0, 1000), power=st.integers(-10, 10))
def test_the_unit_of_a_groups_scores_does_not_matter(normalisation, space, seed, power):
    """Powers of two, which change no rounding."""
    criterion = space.criteria[0]
    ranking = ranking_of(space, seed)
    first = space.groups[0].name
    groups = dict(ranking.scores[criterion])
    groups[first] = tuple(score * 2.0**power for score in groups[first])
    other = Ranking({criterion: groups})
    assert (
        ranking.path(space, criterion, normalisation=normalisation).narrowed
        == other.path(space, criterion, normalisation=normalisation).narrowed
    )


@law
@given(
    sizes=st.lists(st.integers(2, 12), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    ratio=st.floats(0, 1),
)
def test_unit_by_unit_the_globally_lowest_go(sizes, seed, ratio):
    """Where every width from 0 is legal but 0 itself: each group's best unit stays."""
    space = SearchSpace(
        tuple(Axis(Group(f"g{i}", "channels", size), 1, size) for i, size in enumerate(sizes))
    )
    ranking = ranking_of(space, seed)
    spec = ranking.path(space, "l1", normalisation="mean").at(ratio)
    normal = {name: np.array(s) / np.mean(s) for name, s in ranking.scores["l1"].items()}
    gone = sorted(
        score
        for name, scores in normal.items()
        for score in scores[: len(scores) - spec.widths[name]]
    )
    could_go = [
        s for name, all_ in normal.items() for s in all_[len(all_) - spec.widths[name] : -1]
    ]
    assert not gone or not could_go or gone[-1] <= min(could_go)


@law
@given(space=spaces(), seed=st.integers(0, 1000))
def test_a_ranking_comes_back_from_json(space, seed):
    ranking = ranking_of(space, seed, lowest=-1.0)
    assert Ranking.from_json(json.loads(json.dumps(ranking.to_json()))) == ranking


@law
@given(size=st.integers(2, 40), count=st.integers(1, 5), ratio=st.floats(0.05, 1))
def test_groups_that_are_alike_are_cut_alike(size, count, ratio):
    space = SearchSpace(
        tuple(Axis(Group(f"g{i}", "channels", size), 1, size) for i in range(count))
    )
    scores = tuple(range(size))
    ranking = Ranking({"l1": {group.name: scores for group in space.groups}})
    widths = ranking.path(space, "l1").at(ratio).widths.values()
    assert max(widths) - min(widths) <= 1
