"""A sweep by global ranking, in this process: the ranking is the trained network's, and kept."""

import json

import pytest

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.folders import RANKING_FILE
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.profile_file import read_ranking
from autoprune.orchestration.request import SpaceRequest
from autoprune.orchestration.sweep import Budget
from autoprune.pruning.criteria import criterion_of
from autoprune.searchers.named import searcher_named
from tests.tiny import request

CRITERIA = {name: criterion_of(name) for name in ("taylor", "activation")}


def asked(tmp_path, trials: int, **changes):
    return request(
        tmp_path,
        searcher=searcher_named("ranked"),
        uniform_first=(),
        criteria=CRITERIA,
        budget=Budget(trials=trials),
        **changes,
    )


def specs_of(result):
    return [observation.trial.spec for observation in result.view.observations]


def test_what_is_asked_is_what_the_ranking_says_and_a_resume_goes_on_alike(tmp_path):
    whole = launch(asked(tmp_path / "one", 6), Tracking()).result
    ranking = read_ranking(whole.folder / RANKING_FILE)
    space = whole.view.space
    paths = [ranking.path(space, name) for name in ("taylor", "activation")]
    assert specs_of(whole) == [path.at(ratio) for ratio in (0.5, 0.75, 0.25) for path in paths]
    assert len({tuple(spec.kept) for spec in specs_of(whole)}) > 3

    part = launch(asked(tmp_path / "two", 2), Tracking()).result
    assert read_ranking(part.folder / RANKING_FILE) == ranking
    rest = launch(asked(tmp_path / "two", 6), Tracking(), folder=part.folder).result
    assert specs_of(rest) == specs_of(whole)
    assert rest.lost == ()


def test_a_ranking_that_is_damaged_or_gone_is_told_of(tmp_path):
    part = launch(asked(tmp_path, 2), Tracking()).result
    file = part.folder / RANKING_FILE
    text = file.read_text()
    for damage in ("{}", "[1]", '{"scores": 3}', '{"scores": {"l1": {"a": ["x"]}}}'):
        file.write_text(damage)
        with pytest.raises(AutopruneError, match=r"ranking\.json is damaged .*; restore it"):
            launch(asked(tmp_path, 4), Tracking(), folder=part.folder)
    other = {"scores": {name: {"0": [0.0]} for name in CRITERIA}}
    file.write_text(json.dumps(other))
    with pytest.raises(AutopruneError, match="by 'taylor' has 1 scores for the 8 units of group"):
        launch(asked(tmp_path, 4), Tracking(), folder=part.folder)
    file.write_text(text)
    assert launch(asked(tmp_path, 4), Tracking(), folder=part.folder).result.complete


def test_a_searcher_that_reads_no_ranking_gets_none(tmp_path):
    result = launch(request(tmp_path, budget=Budget(trials=1)), Tracking()).result
    assert not (result.folder / RANKING_FILE).exists()


def test_groups_that_the_space_leaves_out_are_not_ranked(tmp_path):
    result = launch(asked(tmp_path, 1, space=SpaceRequest(exclude=("0",))), Tracking()).result
    ranking = read_ranking(result.folder / RANKING_FILE)
    assert {name: set(groups) for name, groups in ranking.scores.items()} == {
        "taylor": {"5"},
        "activation": {"5"},
    }
