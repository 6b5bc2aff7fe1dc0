"""Whole sweeps of tasks other than classification, in this process."""

import json

import pytest
import torch

from autoprune.domain.objective import Direction
from autoprune.domain.trial import Measurement
from autoprune.orchestration.artifacts import load, read_outputs
from autoprune.orchestration.launch import Listeners, Tracking, launch
from autoprune.orchestration.request import BaselineRequest, GoalRequest
from autoprune.orchestration.sweep import Budget
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from tests import examples_tasks
from tests.tiny import meter, ray_slots, request

pytestmark = pytest.mark.usefixtures("cluster")


def regression():
    return examples_tasks.diabetes(), examples_tasks.regressor(width=32)


def language():
    return examples_tasks.sentences(count=200), examples_tasks.language_model(width=16, depth=2)


@pytest.mark.parametrize(
    ("make", "main", "direction"),
    [(regression, "r2", Direction.MAX), (language, "perplexity", Direction.MIN)],
)
@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_task_of_the_users_own_goes_all_the_way(tmp_path, make, main, direction, executor):
    task, model = make()
    plan = FitPlan(epochs=3, lr=0.01, optimizer="adamw")
    slots = {} if executor == "inline" else {"executor": ray_slots(2)}
    asked = request(
        tmp_path,
        task=task,
        model=model,
        baseline=BaselineRequest(plan=plan, identity={"task": main}),
        recoveries={"finetune": Recovery(FitPlan(epochs=1, lr=0.01, optimizer="adamw"))},
        goal=GoalRequest(("main", "speedup")),
        uniform_first=(0.75, 0.25),
        meter=meter(),
        budget=Budget(trials=4),
        **slots,
    )
    epochs = []
    hear = Listeners(on_epoch=lambda _, value: epochs.append(value))
    result = launch(asked, Tracking(), listeners=hear).result

    assert result.complete
    assert len(epochs) == 3
    sign = 1 if direction is Direction.MAX else -1
    assert sign * epochs[-1] > sign * epochs[0]
    view = result.view
    assert view.counts == {"finished": 4, "paused": 0, "stopped": 0, "failed": 0}
    assert (view.goal.main.metric, view.goal.main.direction) == (main, direction)
    assert view.goal.reference[1] == 1.0
    assert sign * view.baseline[main] > sign * view.goal.reference[0]
    best = view.front.members[0]
    for member in view.front.members[1:]:
        assert sign * value(best, main) > sign * value(member, main)

    report = json.loads((result.folder / "pareto.json").read_text())
    assert report["counts"] == view.counts
    assert [row["trial"] for row in report["front"]] == [m.trial.number for m in view.front.members]
    kept = sorted(int(path.name) for path in (result.folder / "trials").iterdir())
    assert kept == sorted(m.trial.number for m in view.front.members)
    folder = result.folder / "trials" / f"{best.trial.number:04d}" / "model"
    network = load(folder, model=model)
    with torch.no_grad():
        (saved,), found = read_outputs(folder), network(task.example())
    assert torch.equal(saved, found)


def value(observation, name: str) -> float:
    assert isinstance(observation.outcome, Measurement)
    return observation.outcome.metrics[name]


def test_a_baseline_is_trained_once(tmp_path):
    asked = request(
        tmp_path,
        budget=Budget(trials=1),
        baseline=BaselineRequest(plan=FitPlan(epochs=2), identity={"one": 1}),
    )
    epochs: list[int] = []
    hear = Listeners(on_epoch=lambda number, _: epochs.append(number))
    for _ in range(2):
        launch(asked, Tracking(), listeners=hear)
    assert epochs == [1, 2]


def test_the_wall_budget_ends_a_sweep(tmp_path):
    asked = request(tmp_path, budget=Budget(trials=10_000, wall_s=1.0))
    result = launch(asked, Tracking()).result
    assert result.complete
    assert 1 <= len(result.view.observations) < 10_000
    assert result.view.search_s >= 1.0


def test_the_trial_budget_in_seconds_ends_a_sweep(tmp_path):
    asked = request(tmp_path, budget=Budget(trial_s=0.5), executor=ray_slots(1))
    result = launch(asked, Tracking()).result
    assert result.complete
    assert result.view.busy_s >= 0.5
    last = result.view.observations[-1].seconds
    assert result.view.busy_s - last < 0.5
