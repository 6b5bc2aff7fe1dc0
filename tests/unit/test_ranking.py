"""Global ranking: what is refused, how a network is ranked, and the searcher's turns."""

import math

import pytest
import torch
from torch import nn

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Direction, Goal, Objective
from autoprune.domain.ranking import Ranking
from autoprune.domain.space import Axis, Group, SearchSpace
from autoprune.pruning.criteria import Scoring, criterion_of
from autoprune.pruning.graph import trace
from autoprune.pruning.ranking import rank
from autoprune.searchers import RankedSearcher
from autoprune.searchers.named import build_searcher
from tests.pruning_tasks import Blobs, small_net

SPACE = SearchSpace(
    (Axis(Group("a", "channels", 4), 1, 4), Axis(Group("b", "channels", 8, 2), 2, 8)),
    criteria=("l1", "taylor"),
)
SCORES = {"a": (1.0, 2.0, 3.0, 6.0), "b": (0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0)}
RANKING = Ranking({"l1": SCORES, "taylor": {"a": (0.0,) * 4, "b": (0.0,) * 8}})
GOAL = Goal((Objective("accuracy", Direction.MAX),), (0.5,))


@pytest.mark.parametrize(
    ("normalisation", "order"),
    [
        # a's units over its mean 2.1: 0.95, 0.95, 0.95; b's pairs, whose mean is 1: 0, 1, 1
        ("mean", "baaabb"),
        # a over 2.4: 0.83; b over 2: 0, 0.5, 0.5
        ("max", "bbbaaa"),
        # a: -0.58 standard deviations; b: -1.41, 0, 0
        ("gaussian", "baaabb"),
        # a: 2; b: 0, 1, 1
        ("none", "bbbaaa"),
    ],
)
def test_the_lowest_normalised_scores_go_first(normalisation: str, order: str) -> None:
    ranking = Ranking({"l1": {**SCORES, "a": (2.0, 2.0, 2.0, 2.4)}})
    path = ranking.path(SPACE, "l1", normalisation=normalisation)
    assert "".join("ab"[number] for number in path.narrowed) == order
    assert path.at(1.0).widths == {"a": 4, "b": 8}
    assert path.at(10 / 12).widths == {"a": 4, "b": 6}
    assert path.at(0.0).widths == {"a": 1, "b": 2}


def test_scores_that_do_not_differ_take_turns() -> None:
    assert RANKING.path(SPACE, "taylor").narrowed == (0, 1, 0, 1, 0, 1)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: RANKING.path(SPACE, "l2"),
            "ranked criterion 'l2' is not known; choose from",
        ),
        (
            lambda: RANKING.path(SPACE, "l1", normalisation="sum"),
            r"normalisation 'sum' is not known.*choose from \['gaussian', 'max', 'mean', 'none'\]",
        ),
        (
            lambda: Ranking({"l1": {"a": SCORES["a"]}}).path(SPACE, "l1"),
            "the ranking by 'l1' has 0 scores for the 8 units of group 'b'; rank the network that",
        ),
        (
            lambda: Ranking({"l1": {**SCORES, "a": (-1.0, 0, 1, 2)}}).path(SPACE, "l1"),
            "normalisation 'mean' divides scores that are 0 or more, and criterion 'l1' gives "
            "group 'a' -1; choose gaussian",
        ),
        (
            lambda: Ranking({"l1": {"a": (math.nan,)}}),
            r"the ranking by 'l1' has scores of \['a'\] that are not finite",
        ),
        (lambda: RANKING.path(SPACE, "l1").at(1.5), r"a kept ratio lies in \[0, 1\], got 1.5"),
        (
            lambda: RankedSearcher(SPACE, GOAL, 0, normalisation="maxx"),
            "normalisation 'maxx' is not known; did you mean 'max'",
        ),
        (
            lambda: RankedSearcher(SPACE, GOAL, 0, ratios=()),
            "the ranked searcher has no ratio; name at least one",
        ),
        (
            lambda: RankedSearcher(SPACE, GOAL, 0, ratios=(0.5, 1.5)),
            r"ratios has \[1.5\]; choose kept ratios in \(0, 1\]",
        ),
        (
            lambda: RankedSearcher(SPACE, GOAL, 0).ask(0),
            "the ranked searcher has no ranking of the network's units; pass one as `ranking`",
        ),
    ],
)
def test_what_cannot_be_ranked(ask, message: str) -> None:
    with pytest.raises(AutopruneError, match=message):
        ask()


def test_a_networks_units_stand_in_the_order_in_which_they_go() -> None:
    net, task = small_net(), Blobs()
    found = trace(net, task.example())
    criteria = {name: criterion_of(name) for name in ("l2", "taylor")}
    ranking = rank(net, found.couplings, criteria, Scoring(task))
    assert set(ranking.scores) == {"l2", "taylor"}
    for groups in ranking.scores.values():
        assert {name: len(scores) for name, scores in groups.items()} == {"0": 8, "5": 6}
        assert all(list(scores) == sorted(scores) for scores in groups.values())


def test_blocks_that_stay_equally_wide_lose_a_unit_each() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    for layer in net:
        nn.init.zeros_(layer.bias)
        nn.init.zeros_(layer.weight)
    net[0].weight.data[:, 0, 0, 0] = torch.tensor([4.0, 3, 1, 2])
    found = trace(net, torch.randn(1, 1, 3, 3))
    ranking = rank(net, found.couplings, {"l1": criterion_of("l1")}, Scoring())
    # the lower of 4 and 3 with the lower of 1 and 2, then the others
    assert ranking.scores["l1"]["0"] == (3, 1, 4, 2)
    space = build_space(found.groups, Bounds(min_kept=0.5))
    assert space.axes[0].widths == (2, 4)
    assert ranking.path(space, "l1").at(0.5).widths["0"] == 2


def test_every_criterion_has_its_turn_at_every_ratio() -> None:
    searcher = build_searcher(RankedSearcher, SPACE, GOAL, 0, ranking=RANKING)
    asked = [searcher.ask(number) for number in range(4)]
    assert [spec.criterion for spec in asked] == ["l1", "taylor", "l1", "taylor"]
    paths = [RANKING.path(SPACE, name) for name in SPACE.criteria]
    assert asked == [path.at(ratio) for ratio in (0.5, 0.75) for path in paths]


def test_the_grid_is_refined_until_the_path_is_used_up() -> None:
    space = SearchSpace(SPACE.axes)
    searcher = RankedSearcher(space, GOAL, 0, ranking=RANKING, ratios=(0.5,))
    path = RANKING.path(space, "l1")
    asked = {searcher.ask(number) for number in range(4)}
    assert path.at(0.5) in asked
    assert len(asked) == 4
    wide = RankedSearcher(space, GOAL, 0, ranking=RANKING, ratios=(1.0, 0.01))
    whole = {path.after(step) for step in range(len(path.narrowed) + 1)}
    assert {wide.ask(number) for number in range(len(whole))} == whole
