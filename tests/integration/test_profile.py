"""Profiles of a real network: what they hold, that they are kept, and who learns from them."""

import json
from dataclasses import replace

import pytest
from plotly.offline import get_plotlyjs

from autoprune.cli import main
from autoprune.domain.bounds import Bounds
from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Constraint
from autoprune.orchestration.folders import PROFILE_FILE
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.profiling import profile_network
from autoprune.orchestration.request import GoalRequest, SpaceRequest
from tests.pruning_tasks import Blobs, small_net
from tests.tiny import WORDS, request


def test_every_group_is_measured_and_judged_alone_and_nothing_twice(tmp_path):
    prepared = prepare(request(tmp_path))
    heard = []

    def told(*progress):
        heard.append(progress)

    found = profile_network(prepared, checks=3, report=told)
    groups = {axis.group.name for axis in prepared.plan.space.axes}
    assert {name for point in found.profile.points for name in point.widths} == groups
    assert all(len(point.widths) == 1 for point in found.profile.points)
    assert [set(point.widths) for point in found.profile.checks] == [groups] * 3
    for point in (*found.profile.points, *found.profile.checks):
        assert point.speedup.samples > 0
        assert {"accuracy", "macs", "params"} <= point.metrics.keys()
        assert point.metrics["macs"] < found.profile.baseline["macs"]
    assert [done for _, done, _ in heard] == list(range(1, len(heard) + 1))
    assert {total for _, _, total in heard} == {len(heard)}
    assert found.error.count == 3
    assert found.corrected.count == 3

    heard.clear()
    again = profile_network(prepared, checks=5, report=told)
    assert len(heard) == 2, "what was measured before is not measured again"
    assert again.profile.points == found.profile.points
    assert again.profile.checks[:3] == found.profile.checks


def test_a_profile_that_was_interrupted_goes_on(tmp_path):
    prepared = prepare(request(tmp_path))

    def interrupted(*progress):
        if progress[1] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_network(prepared, checks=0, report=interrupted)
    heard = []
    profile_network(prepared, checks=0, report=lambda _, done, total: heard.append((done, total)))
    assert heard[0][0] == 4
    assert len(heard) == heard[0][1] - 3


def test_two_at_a_time_would_lose_each_others_points(tmp_path):
    prepared = prepare(request(tmp_path))

    def meanwhile(*_):
        profile_network(prepared, checks=0)

    with pytest.raises(
        AutopruneError, match=r"another process profiles this network into .*; wait"
    ):
        profile_network(prepared, checks=0, report=meanwhile)


def test_points_of_a_wider_space_are_kept_and_not_shown(tmp_path):
    profile_network(prepare(request(tmp_path)), checks=0)
    narrow = replace(request(tmp_path), space=SpaceRequest(Bounds("*", min_kept=0.5)))
    found = profile_network(prepare(narrow), checks=0)
    legal = {axis.group.name: axis.widths for axis in prepare(narrow).plan.space.axes}
    shown = [(name, width) for p in found.profile.points for name, width in p.widths.items()]
    assert all(width in legal[name] for name, width in shown)
    kept = json.loads((found.folder / PROFILE_FILE).read_text())["points"]
    assert len(kept) > len(shown)


def test_constraints_of_the_search_do_not_cut_it_short(tmp_path):
    goal = GoalRequest(("main", "params"), (Constraint("params", high=1.0),))
    found = profile_network(prepare(request(tmp_path, goal=goal)), checks=0)
    assert found.profile.points
    assert not found.failures


def test_other_weights_have_a_profile_of_their_own(tmp_path):
    first = profile_network(prepare(request(tmp_path)), checks=0)
    second = profile_network(prepare(request(tmp_path, model=small_net(seed=1))), checks=0)
    assert first.folder != second.folder


def test_other_data_and_other_inputs_have_a_profile_of_their_own(tmp_path):
    places = {
        profile_network(prepare(request(tmp_path, task=task)), checks=0).folder
        for task in (Blobs(), Blobs(samples=40))
    }
    assert len(places) == 2


def test_a_network_with_one_group_is_checked_like_any_other(tmp_path):
    asked = request(tmp_path, space=SpaceRequest(exclude=("5",)))
    found = profile_network(prepare(asked), checks=3)
    assert len(found.profile.checks) == 3
    assert found.error.count == 3


def test_the_model_learns_from_the_sweeps_of_the_same_network(tmp_path):
    asked = request(tmp_path)
    launch(asked, Tracking())
    found = profile_network(prepare(asked), checks=2)
    assert len(found.measured) == 4
    assert found.error.count == 2
    assert found.corrected.count == 6


def test_the_command_shows_a_table_writes_a_page_and_takes_what_is_kept(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["profile", *WORDS, "checks=2", "name=own"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "baseline epoch 1  accuracy " in out, "training takes a while"
    assert "Each group alone, without fine-tuning" in out
    assert "latency model  from single groups alone: median error" in out
    (folder,) = (tmp_path / "outputs" / "profiles").iterdir()
    page = (folder / "profile.html").read_text()
    assert "own: what each group gives and costs" in page
    assert "://" not in page.replace(get_plotlyjs(), "")

    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kept = json.loads((folder / PROFILE_FILE).read_text())
    assert found["profile"] == {key: kept[key] for key in found["profile"]}
    assert found["latency_model"]["profile_alone"]["count"] == 2
    assert found["failures"] == []

    assert main(["profile", *WORDS, "checks=-1"]) == 2
    assert "checks is -1; choose 0 or more" in capsys.readouterr().err


def test_a_damaged_profile_is_said_with_the_remedy(tmp_path):
    prepared = prepare(request(tmp_path))
    found = profile_network(prepared, checks=0)
    (found.folder / PROFILE_FILE).write_text(json.dumps({"groups": 3}))
    with pytest.raises(AutopruneError, match=r"profile\.json is damaged .* delete it: the net"):
        profile_network(prepared, checks=0)
