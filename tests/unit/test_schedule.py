"""Schedules: what they are called, what they refuse, and how trials train in their rounds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch

from autoprune.domain.errors import AutopruneError, FaultsError
from autoprune.domain.ladder import Ladder
from autoprune.domain.objective import Constraint
from autoprune.domain.trial import Measurement, Stage, Trial
from autoprune.evaluation import Progress, Snapshot, run_trial
from autoprune.measurement.cost import costs
from autoprune.orchestration.artifacts import MODEL_FOLDER, load, read_outputs, read_snapshot
from autoprune.orchestration.folders import BASELINE_FILE, EARLY_FILE, trial_folder
from autoprune.orchestration.forecast import forecast
from autoprune.orchestration.planning import make_plan
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.request import BaselineRequest, SweepRequest
from autoprune.orchestration.session import resume, start
from autoprune.orchestration.storage import InFolder
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.work import work
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.distill import Distillation
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recipe import rebuild
from autoprune.pruning.reconstruct import Reconstruction
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.schedule import Schedule
from tests.pruning_tasks import Blobs, same, small_net
from tests.tiny import request

PLAN, IDLE = FitPlan(epochs=5), FitPlan(epochs=0)
TWICE = Schedule(2, "geometric")
REWIND, REWIND_TWICE = Schedule(rewind=True), Schedule(2, rewind=True)
TAUGHT = Distillation(weight=0.5, hints=0.5, hint_layers=("5",))
FITTED = Reconstruction(batches=2)
RECOVERIES = {
    "finetune": Recovery(PLAN),
    "once": Recovery(PLAN, schedule=Schedule(1, "geometric")),
    "iterative": Recovery(PLAN, schedule=TWICE),
    "all": Recovery(PLAN, reconstruction=FITTED, distillation=TAUGHT, schedule=TWICE),
    "rewind": Recovery(PLAN, schedule=REWIND),
    "iterative_rewind": Recovery(PLAN, schedule=REWIND_TWICE),
}
BASELINE = BaselineRequest(plan=FitPlan(epochs=4), identity={"network": 1}, keep_epoch=1)


def asked(folder: Path, **changes: Any) -> SweepRequest:
    return request(folder, **{"recoveries": RECOVERIES, "baseline": BASELINE, **changes})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(asked(tmp_path_factory.mktemp("outputs")))


def trial_of(prepared: Prepared, recovery: str) -> Trial:
    return Trial(3, replace(prepared.plan.space.uniform(0.25), recovery=recovery), 11)


def run(
    trial: Trial, prepared: Prepared, last: Snapshot | None = None
) -> tuple[Measurement, list[Progress]]:
    """A trial's outcome and what it told on its way, with weights as they were then."""
    heard: list[Progress] = []

    def hear(progress: Progress) -> None:
        if progress.snapshot is not None:
            weights = {k: v.clone() for k, v in progress.snapshot.state_dict.items()}
            progress = replace(progress, snapshot=replace(progress.snapshot, state_dict=weights))
        heard.append(progress)

    outcome = run_trial(trial, prepared.context, report=hear, resume=last).outcome
    assert isinstance(outcome, Measurement), outcome
    return outcome, heard


def end_of(heard: Sequence[Progress]) -> Snapshot:
    assert heard[-1].snapshot is not None
    assert heard[-1].snapshot.done
    return heard[-1].snapshot


def alike(one: Snapshot, other: Snapshot) -> bool:
    return same(one.state_dict, other.state_dict) and one.recipe == other.recipe


@pytest.mark.parametrize(
    ("recovery", "name", "told"),
    [
        (
            Recovery(PLAN, schedule=TWICE),
            "iterative_finetune",
            "2 geometric rounds of batch norm over 16 batches, 2 epochs (3 in the last) of sgd",
        ),
        (
            Recovery(FitPlan(epochs=4), reconstruction=FITTED, schedule=Schedule(4)),
            "reconstruct_iterative_finetune",
            "4 cubic rounds of least squares over 2 batches, batch norm over 16 batches, 1 epoch "
            "of sgd",
        ),
        (
            Recovery(PLAN, distillation=TAUGHT, schedule=Schedule(5)),
            "iterative_distill",
            "5 cubic rounds of batch norm over 16 batches, 1 epoch of sgd with a teacher",
        ),
        (
            Recovery(PLAN, schedule=REWIND),
            "rewind",
            "early weights, batch norm over 16 batches, 5 epochs of sgd",
        ),
        (
            Recovery(PLAN, distillation=TAUGHT, schedule=REWIND_TWICE),
            "iterative_rewind_distill",
            "2 cubic rounds of early weights, batch norm over 16 batches, 2 epochs (3 in the last) "
            "of sgd with a teacher",
        ),
    ],
)
def test_a_recovery_says_how_it_is_scheduled(recovery: Recovery, name: str, told: str) -> None:
    assert recovery.name == name
    assert str(recovery) == told
    assert recovery.at_once.name == ("reconstruct" if recovery.reconstruction else "none")
    assert "schedule=Schedule(" in repr(recovery)


def test_one_shot_is_told_in_journals_as_before_there_were_schedules() -> None:
    assert repr(Recovery(IDLE, 4)) == (
        "Recovery(fit=FitPlan(epochs=0, lr=0.02, optimizer='sgd', momentum=0.9, "
        "weight_decay=0.0005, warmup_epochs=0.5, grad_clip=None, amp='off'), "
        "recalibration_batches=4, reconstruction=None, distillation=None)"
    )


def test_what_cannot_be_is_told_together() -> None:
    with pytest.raises(FaultsError) as found:
        Schedule(0, "cubik")
    assert found.value.faults == (
        "rounds is 0; choose 1, which is one shot, or more",
        "shape 'cubik' is not known; did you mean 'cubic'? Otherwise choose from ['cubic', "
        "'geometric']",
    )
    with pytest.raises(FaultsError) as found:
        Recovery(IDLE, schedule=REWIND_TWICE, reconstruction=FITTED)
    assert found.value.faults == (
        "schedule has 2 rounds, and fit.epochs is 0; choose 2 epochs or more, so that every round "
        "trains, or fewer rounds",
        "schedule.rewind needs training, and fit.epochs is 0; choose 1 epoch or more, or no "
        "rewinding",
        "reconstruction fits weights that schedule.rewind sets back; choose one of them",
    )
    slow = FitPlan(epochs=5, warmup_epochs=2.5)
    assert Recovery(slow).fit == slow
    with pytest.raises(FaultsError, match=r"warmup_epochs is 2.5, and a .* has 2 of the 5 ep"):
        Recovery(slow, schedule=TWICE)


def test_one_round_is_one_shot_bit_for_bit(prepared: Prepared) -> None:
    ends = [end_of(run(trial_of(prepared, name), prepared)[1]) for name in ("finetune", "once")]
    assert alike(ends[0], replace(ends[1], recipe=ends[0].recipe))
    assert ends[0].recipe.history == ends[1].recipe.history


@pytest.mark.parametrize("name", ["iterative", "all", "iterative_rewind"])
def test_a_network_comes_to_its_widths_in_rounds(prepared: Prepared, name: str) -> None:
    trial = trial_of(prepared, name)
    outcome, heard = run(trial, prepared)
    trained = [p.snapshot for p in heard if p.stage is Stage.RECOVER]
    assert [p.epoch for p in heard if p.stage is Stage.RECOVER] == [1, 2, 3, 4, 5]
    shape = RECOVERIES[name].schedule
    (channels, neurons) = prepared.plan.dependencies.groups
    kept = [trial.spec.widths[group.name] for group in (channels, neurons)]
    wide = [shape.widths(g, k)[0] for g, k in zip((channels, neurons), kept, strict=True)]
    assert wide[0] > kept[0]
    shapes = [list(s.state_dict["5.weight"].shape) for s in trained if s is not None]
    assert shapes == [[wide[1], 16 * wide[0]]] * 2 + [[kept[1], 16 * kept[0]]] * 3

    done, context = end_of(heard), prepared.context
    rebuilt = rebuild(done.recipe, done.state_dict, model=context.model).eval()
    told = {**costs(rebuilt, context.task.example()), **evaluate(rebuilt, context.task, "val")}
    assert {key: outcome.metrics[key] for key in told} == told, "its figures are its own"
    assert done.recipe.spec == trial.spec


def test_units_are_chosen_by_what_the_weights_have_become(prepared: Prepared) -> None:
    """Where training made the unit that was cut at once one of the best, it stays."""
    histories = {}
    for name in ("finetune", "iterative", "iterative_rewind"):
        histories[name] = end_of(run(trial_of(prepared, name), prepared)[1]).recipe.history
    assert histories["finetune"] != histories["iterative"] or (
        histories["finetune"] != histories["iterative_rewind"]
    )


@pytest.mark.parametrize("name", ["iterative", "all", "rewind", "iterative_rewind"])
@pytest.mark.parametrize("epoch", [1, 2, 3, 5])
def test_going_on_from_a_snapshot_equals_never_stopping(
    prepared: Prepared, tmp_path: Path, name: str, epoch: int
) -> None:
    trial = trial_of(prepared, name)
    whole, heard = run(trial, prepared)
    first = work(trial, prepared.context, InFolder(tmp_path))
    while next(first).epoch < epoch:
        pass
    first.close()
    last = read_snapshot(trial_folder(tmp_path, trial.number))
    assert last is not None
    assert last.epoch == epoch
    resumed, again = run(trial, prepared, last)
    assert alike(end_of(again), end_of(heard))
    assert resumed.metrics["train_loss"] == whole.metrics["train_loss"]
    assert resumed.metrics["accuracy"] == whole.metrics["accuracy"]
    assert len(again) == 5 - epoch + 1


def test_a_trial_that_paused_ends_as_one_that_did_not(prepared: Prepared, tmp_path: Path) -> None:
    trial, rungs = trial_of(prepared, "iterative"), (0, 3)
    _, heard = run(trial, prepared)
    context = replace(prepared.context, rungs=rungs)
    for rung in range(2):
        steps = work(trial, context, InFolder(tmp_path))
        worth = None
        while worth is None or worth.rung != rung:
            worth = next(steps).worth
        steps.close()
        paused = read_snapshot(trial_folder(tmp_path, trial.number))
        assert paused is not None
        network = rebuild(paused.recipe, paused.state_dict, model=context.model)
        assert isinstance(worth.outcome, Measurement)
        params = costs(network, context.task.example())["params"]
        assert params == worth.outcome.metrics["params"], "it is judged as wide as it is measured"
    end = end_of(run(trial, replace(prepared, context=context), paused)[1])
    assert alike(end, end_of(heard))


def test_rungs_that_would_judge_a_wider_network_are_refused(tmp_path: Path) -> None:
    found = asked(tmp_path, ladder=Ladder((0, 1, 2, 3)))
    with pytest.raises(AutopruneError) as refused:
        make_plan(found)
    assert str(refused.value) == (
        "ladder.epochs [1, 2]: recovery 'iterative' cuts in 2 rounds, and up to epoch 2 its "
        "network is wider than the one that is measured; choose 0 and "
        "epochs above 2, or ladder=none"
    )
    assert make_plan(replace(found, ladder=Ladder((0, 3, 4)))).warnings == ()


def test_a_constraint_on_costs_ends_a_trial_before_any_round(prepared: Prepared) -> None:
    goal = replace(prepared.goal, constraints=(Constraint("macs", high=1.0),))
    context = replace(prepared.context, goal=goal)
    outcome = run_trial(trial_of(prepared, "iterative"), context).outcome
    assert isinstance(outcome, Measurement)
    assert outcome.stopped_by is not None
    assert Stage.RECOVER not in outcome.seconds


def test_early_weights_travel_with_what_trials_share(prepared: Prepared) -> None:
    trial = trial_of(prepared, "iterative_rewind")
    there = replace(prepared, context=cloudpickle.loads(cloudpickle.dumps(prepared.context)))
    assert alike(end_of(run(trial, there)[1]), end_of(run(trial, prepared)[1]))


def test_rewinding_makes_another_network(prepared: Prepared) -> None:
    ends = [end_of(run(trial_of(prepared, name), prepared)[1]) for name in ("finetune", "rewind")]
    assert ends[0].recipe.history == ends[1].recipe.history
    assert not alike(replace(ends[0], recipe=ends[1].recipe), ends[1])


class OwnFit(Blobs):
    """A task that trains by itself, and tells of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def fit(self, model, *, epochs, seed):
        self.asked.append(epochs)
        for _ in range(epochs):
            with torch.no_grad():
                model[7].bias += 0.1
            yield 0.5


def test_a_task_with_a_fit_of_its_own_is_asked_in_every_round(tmp_path: Path) -> None:
    task = OwnFit()
    only = {"iterative": RECOVERIES["iterative"]}
    ready = prepare(asked(tmp_path, task=task, recoveries=only, baseline=BaselineRequest()))
    _, heard = run(trial_of(ready, "iterative"), ready)
    assert task.asked == [2, 3]
    assert [p.epoch for p in heard if p.stage is Stage.RECOVER] == [1, 2, 3, 4, 5]


def test_rounds_are_forecast(tmp_path: Path) -> None:
    found = {}
    for rounds in (1, 6):
        recovery = Recovery(FitPlan(epochs=6), 100_000, schedule=Schedule(rounds))
        wanted = asked(tmp_path, recoveries={"one": recovery})
        told = forecast(wanted, make_plan(wanted))
        assert told is not None
        found[rounds] = told.trial_s
    assert found[6] > 3 * found[1], "mended once at once, and in each of six rounds"


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (
            BaselineRequest(),
            r"recovery 'rewind' rewinds to early weights of the baseline, and none are given; pass "
            r"early=, the network as it was early in its training, or choose a recovery without ",
        ),
        (
            BaselineRequest(checkpoint="weights.safetensors", keep_epoch=1),
            r"baseline.checkpoint has none; let it be trained \(baseline=train\), or choose a re",
        ),
        (
            BaselineRequest(plan=PLAN),
            r"baseline.keep_epoch is null, which keeps none; set it to an epoch, such as 2, or ",
        ),
        (
            BaselineRequest(plan=PLAN, keep_epoch=5),
            r"baseline.keep_epoch is 5 of 5 epochs; set a smaller one, or choose a recovery wit",
        ),
    ],
)
def test_no_early_weights_to_rewind_to(
    tmp_path: Path, baseline: BaselineRequest, message: str
) -> None:
    with pytest.raises(AutopruneError, match=message):
        asked(tmp_path, baseline=baseline)


def test_a_sweep_ranges_over_schedules_and_goes_on(tmp_path: Path) -> None:
    names = ("finetune", "iterative", "rewind")
    wanted = asked(
        tmp_path,
        recoveries={name: RECOVERIES[name] for name in names},
        budget=Budget(trials=6),
        uniform_first=(),
    )
    first = start(prepare(wanted))
    assert first.complete
    file = first.folder / EARLY_FILE
    # goes on as the command does: from the sweep's own files
    again = BaselineRequest(checkpoint=str(first.folder / BASELINE_FILE), early=str(file))
    more = replace(wanted, baseline=again, budget=Budget(trials=12))
    second = resume(prepare(more), first.folder)
    assert second.complete
    observations = second.view.observations
    assert {o.trial.spec.recovery for o in observations} == set(names)
    assert all(isinstance(o.outcome, Measurement) for o in observations)
    for member in second.view.front.members:
        assert isinstance(member.outcome, Measurement)
        place = trial_folder(second.folder, member.trial.number) / MODEL_FOLDER
        network = load(place, model=more.model)
        (expected,) = read_outputs(place)
        assert torch.equal(network(more.task.example()), expected)
        assert evaluate(network, more.task, "val")["accuracy"] == member.outcome.metrics["accuracy"]
    other = replace(more, baseline=replace(again, early=small_net(seed=5)))
    with pytest.raises(AutopruneError, match=r"early weights .* are not those this sweep began wi"):
        resume(prepare(other), first.folder)
    file.unlink()
    with pytest.raises(AutopruneError, match=r"early weights of the baseline .* is gone; restore"):
        prepare(more)
