"""A sweep that an agent steers, killed and resumed: it goes on learning from where it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from autoprune.cli import main
from autoprune.domain.protocols import Stateful
from autoprune.domain.trial import Observation
from autoprune.orchestration.folders import JOURNAL_FILE
from autoprune.orchestration.proposals import COUNTS_FILE, STATES_FOLDER, saved_states
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.view import view_of
from autoprune.searchers.named import build_searcher
from autoprune.settings.build import build_request
from autoprune.settings.compose import compose_config, plain
from tests.integration.test_kill_and_resume import Scene, run_until
from tests.tiny import WORDS, Driver

TRIALS = 9
AGENT = [
    *("sweep", *WORDS, "name=tiny", "output=out", f"budget.trials={TRIALS}"),
    *("searcher=sac", "searcher.learning.warm_up=2", "searcher.learning.gradient_steps=3"),
    *("uniform_first=[0.5]", "objective=quality_size"),
]


def saved(place: Path) -> dict[str, Any]:
    """A state as it is on the disk."""
    return {
        "facts": json.loads((place / "agent.json").read_text()),
        "tensors": torch.load(place / "agent.pt", weights_only=True),
    }


def equal(one: Any, other: Any) -> bool:
    """Whether two nests of containers hold the same numbers, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.slow  # a sweep of an agent, killed and resumed
def test_a_killed_agent_goes_on_learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def learnt(scene: Scene) -> bool:
        return any(int(s.name) >= 4 for s in saved_states(scene.folder / STATES_FOLDER))

    run_until(Driver(AGENT, tmp_path), tmp_path / "out", learnt)
    (journal,) = (tmp_path / "out").glob(f"*/{JOURNAL_FILE}")
    folder = journal.parent
    state = saved_states(folder / STATES_FOLDER)[-1]
    before = saved(state)
    told = json.loads((state / COUNTS_FILE).read_text())["told"]

    # a searcher just built that loads the state has the very weights, buffer and randomness
    request = build_request(plain(compose_config("sweep", AGENT[1:])))
    view = view_of(read_journal(journal))
    again = build_searcher(request.searcher, view.space, view.goal, request.seed)
    assert isinstance(again, Stateful)
    again.load(state)
    copy = tmp_path / "copy"
    copy.mkdir()
    again.save(copy)
    assert equal(saved(copy), before)

    # the resume restores it: what it had heard of is not told again
    heard: list[int] = []
    kind = type(again)
    tell = kind.tell

    def listening(self: Any, observation: Observation) -> None:
        heard.append(observation.trial.number)
        tell(self, observation)

    monkeypatch.setattr(kind, "tell", listening)
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "sweep=latest", "output=out"]) == 0
    after = view_of(read_journal(journal))
    assert sorted(o.trial.number for o in after.observations) == list(range(TRIALS))
    assert len(heard) == TRIALS - told
    (last,) = saved_states(folder / STATES_FOLDER)
    assert len(saved(last)["facts"]["memory"]["told"]) == TRIALS
    assert not equal(saved(last)["tensors"], before["tensors"]), "it went on learning"

    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    (parent,) = (
        run
        for run in client.search_runs([experiment.experiment_id])
        if "mlflow.parentRunId" not in run.data.tags
    )
    for name in ("episode_reward", "critic_loss", "entropy"):
        assert f"searcher/{name}" in parent.data.metrics
