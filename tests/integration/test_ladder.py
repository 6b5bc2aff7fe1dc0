"""Sweeps on a ladder of fidelities: the same one in this process and in slots of Ray Tune."""

import json
from dataclasses import replace

import pytest
import torch

from autoprune.domain.ladder import Ladder
from autoprune.domain.trial import Measurement, Stage, Trial
from autoprune.evaluation import run_trial
from autoprune.orchestration.artifacts import MODEL_FOLDER, load, read_outputs, read_snapshot
from autoprune.orchestration.executors.inline import InlineExecutor
from autoprune.orchestration.folders import JOURNAL_FILE, trial_folder
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.planning import make_plan
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.record import Told, read_journal
from autoprune.orchestration.session import resume, start
from autoprune.orchestration.storage import InFolder
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.work import work
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from tests.tiny import ray_slots, request

LADDER = Ladder((0, 1), reduction=2.0)
RECOVERY = {"finetune": Recovery(FitPlan(epochs=3))}
TRIALS = 8


@pytest.mark.parametrize("executor", [InlineExecutor(), ray_slots(2)], ids=["inline", "ray"])
def test_trials_pause_and_the_best_go_on(tmp_path, executor):
    asked = request(
        tmp_path,
        executor=executor,
        ladder=LADDER,
        recoveries=RECOVERY,
        budget=Budget(trials=TRIALS),
    )
    launched = launch(asked, Tracking(f"sqlite:///{tmp_path}/mlflow.db"))
    result = launched.result

    assert result.complete
    assert launched.warnings == ()
    counts = result.view.counts
    assert counts["paused"] + counts["finished"] == TRIALS
    assert 0 < counts["finished"] < TRIALS
    assert all(member.rung is None for member in result.view.front.members)
    events = read_journal(result.folder / JOURNAL_FILE).events
    told = [event.observation for event in events if isinstance(event, Told)]
    by_rung = {r: {o.trial.number for o in told if o.rung == r} for r in (0, 1, None)}
    assert by_rung[0] == set(range(TRIALS)), "every trial begins at the bottom"
    assert by_rung[0] > by_rung[1] > set()
    assert by_rung[None] <= by_rung[1]
    for observation in result.view.observations:
        assert isinstance(observation.outcome, Measurement)
        epochs = observation.outcome.seconds.get(Stage.RECOVER, 0.0) > 0
        assert epochs == (observation.rung != 0)
    for member in result.view.front.members:
        place = trial_folder(result.folder, member.trial.number) / MODEL_FOLDER
        network = load(place, model=asked.model)
        (expected,) = read_outputs(place)
        assert torch.equal(network(asked.task.example()), expected)
    report = json.loads((result.folder / "pareto.json").read_text())
    assert report["counts"] == counts


def test_a_trial_that_paused_ends_as_one_that_did_not(tmp_path):
    """Paused on every rung and taken up by another worker each time: bit for bit the same."""
    prepared = prepare(request(tmp_path, recoveries=RECOVERY))
    trial = Trial(0, prepared.plan.space.uniform(0.5), 11)
    straight = run_trial(trial, prepared.context).outcome
    context = replace(prepared.context, rungs=LADDER.epochs)
    rungs = []
    while True:
        steps = work(trial, context, InFolder(tmp_path))
        worth = None
        try:
            while worth is None or worth.rung in rungs:
                worth = next(steps).worth
        except StopIteration as end:
            climbed = end.value.outcome
            break
        steps.close()
        rungs.append(worth.rung)
        snapshot = read_snapshot(trial_folder(tmp_path, 0))
        assert snapshot is not None
        assert (snapshot.epoch, snapshot.done) == (LADDER.epochs[worth.rung], False)
        main = prepared.goal.main.metric
        assert worth.outcome.metrics[main] == snapshot.metrics[main]
    assert rungs == [0, 1]
    timed = ("speedup", "latency", "throughput")
    for name, value in straight.metrics.items():
        if not name.startswith(timed):
            assert climbed.metrics[name] == value, name


def test_a_sweep_that_was_stopped_goes_on_from_its_rungs(tmp_path):
    asked = request(tmp_path, ladder=LADDER, recoveries=RECOVERY, budget=Budget(trials=5))
    first = start(prepare(asked))
    assert first.view.counts["paused"]
    more = request(tmp_path, ladder=LADDER, recoveries=RECOVERY, budget=Budget(trials=10))
    second = resume(prepare(more), first.folder)
    assert second.complete
    assert len(second.view.observations) == 10
    events = read_journal(second.folder / JOURNAL_FILE).events
    told = [(e.observation.trial.number, e.observation.rung) for e in events if isinstance(e, Told)]
    assert len(set(told)) == len(told), "nothing is told twice"


def test_a_ladder_of_other_rungs_does_not_compare(tmp_path):
    asked = request(tmp_path, ladder=LADDER, recoveries=RECOVERY, budget=Budget(trials=1))
    first = start(prepare(asked))
    other = request(tmp_path, ladder=Ladder((0, 2)), recoveries=RECOVERY, budget=Budget(trials=2))
    with pytest.raises(ValueError, match=r"would not compare with new ones: rungs was \(0, 1\)"):
        resume(prepare(other), first.folder)


def test_a_ladder_that_is_for_nothing(tmp_path):
    wanted = {"recoveries": {"finetune": Recovery(FitPlan(epochs=2))}, "budget": Budget(trials=1)}
    with pytest.raises(ValueError, match=r"ladder.epochs is \[2\], and recovery ends after 2 ep"):
        make_plan(request(tmp_path, ladder=Ladder((2,)), **wanted))
    plan = make_plan(request(tmp_path, ladder=Ladder((0, 3)), **wanted))
    assert "ladder.epochs [3] lie beyond the end of recovery, at 2 epochs" in plan.warnings
