"""Recoveries: what they are called, what they do at once, and how trials train by them."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, FaultsError
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Measurement, Stage, Trial
from autoprune.evaluation import Progress, run_trial
from autoprune.orchestration.artifacts import read_snapshot
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.forecast import forecast
from autoprune.orchestration.planning import make_plan
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.profiling import profile_network
from autoprune.orchestration.request import conditions_now
from autoprune.orchestration.storage import InFolder
from autoprune.orchestration.work import work
from autoprune.pruning.distill import Distillation
from autoprune.pruning.healing import Healing, Recovery
from autoprune.pruning.recalibrate import recalibrate
from autoprune.pruning.reconstruct import Reconstruction, reconstruct
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.surgery import prune
from tests.pruning_tasks import Blobs, OwnFit, same, small_net
from tests.tiny import request

TASK = Blobs()
PLAN, IDLE = FitPlan(epochs=3), FitPlan(epochs=0)
TAUGHT = Distillation(weight=0.5, hints=0.5, hint_layers=("5",))
FITTED = Reconstruction(batches=2)
RECOVERIES = {
    "finetune": Recovery(PLAN),
    "distill": Recovery(PLAN, distillation=TAUGHT),
    "reconstruct": Recovery(IDLE, reconstruction=FITTED),
    "reconstruct_distill": Recovery(PLAN, reconstruction=FITTED, distillation=TAUGHT),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(request(tmp_path_factory.mktemp("outputs"), recoveries=RECOVERIES))


def trial_of(prepared: Prepared, recovery: str) -> Trial:
    return Trial(3, replace(prepared.plan.space.uniform(0.5), recovery=recovery), 11)


def networks_of(trial: Trial, prepared: Prepared) -> dict[Stage, dict[str, torch.Tensor]]:
    """The weights that a trial had at its end, and whatever it reported before."""
    found: dict[Stage, dict[str, torch.Tensor]] = {}

    def keep(progress: Progress) -> None:
        if progress.snapshot is not None:
            weights = progress.snapshot.state_dict
            found[progress.stage] = {name: tensor.clone() for name, tensor in weights.items()}

    outcome = run_trial(trial, prepared.context, report=keep).outcome
    assert isinstance(outcome, Measurement), outcome
    return found


@pytest.mark.parametrize(
    ("recovery", "name", "told"),
    [
        (Recovery(IDLE), "none", "batch norm over 16 batches"),
        (Recovery(PLAN), "finetune", "batch norm over 16 batches, 3 epochs of sgd"),
        (
            Recovery(PLAN, distillation=TAUGHT),
            "distill",
            "batch norm over 16 batches, 3 epochs of sgd with a teacher",
        ),
        (
            Recovery(IDLE, 4, reconstruction=FITTED),
            "reconstruct",
            "least squares over 2 batches, batch norm over 4 batches",
        ),
        (
            Recovery(PLAN, reconstruction=FITTED),
            "reconstruct_finetune",
            "least squares over 2 batches, batch norm over 16 batches, 3 epochs of sgd",
        ),
        (
            Recovery(PLAN, reconstruction=FITTED, distillation=TAUGHT),
            "reconstruct_distill",
            "least squares over 2 batches, batch norm over 16 batches, 3 epochs of sgd with a "
            "teacher",
        ),
    ],
)
def test_a_recovery_says_what_it_does(recovery: Recovery, name: str, told: str) -> None:
    assert recovery.name == name
    assert str(recovery) == told
    assert recovery.at_once.name == ("reconstruct" if recovery.reconstruction else "none")
    assert recovery.at_once.recalibration_batches == recovery.recalibration_batches


def test_what_cannot_be_is_told_together() -> None:
    with pytest.raises(FaultsError) as found:
        Recovery(IDLE, recalibration_batches=0, distillation=TAUGHT)
    assert found.value.faults == (
        "recalibration_batches is 0; choose 1 or more",
        "distillation is training, and fit.epochs is 0; choose 1 epoch or more, or no distillation",
    )


def test_mending_is_least_squares_and_then_recalibration() -> None:
    net = small_net().eval()
    before = copy.deepcopy(net.state_dict())
    pruned = prune(net, TASK.example(), PruningSpec.of({"0": 3, "5": 4}))
    cuts, twin = pruned.recipe.history, copy.deepcopy(pruned.model)
    recovery = Recovery(PLAN, 2, reconstruction=FITTED)
    Healing(recovery, TASK, net, cuts, seed=4).at_once(pruned.model)
    assert reconstruct(twin, net, cuts, TASK, plan=FITTED, seed=4) == ("5", "7")
    recalibrate(twin, TASK, batches=2, seed=4)
    assert same(pruned.model.state_dict(), twin.state_dict())
    assert same(net.state_dict(), before)


def test_every_step_is_guarded() -> None:
    steps: list[int] = []

    class Guard:
        def __enter__(self) -> None:
            steps.append(1)

        def __exit__(self, *_: object) -> None:
            steps.append(-1)

    net = small_net().eval()
    pruned = prune(net, TASK.example(), PruningSpec.of({"0": 3}))
    recovery = RECOVERIES["reconstruct_distill"]
    healing = Healing(recovery, TASK, net, pruned.recipe.history, seed=0, step_guard=Guard)
    healing.at_once(pruned.model)
    assert len(steps) == 2 * (1 + 2 + 1 + 3)  # the order, two batches, the solution, three batches
    list(healing.train(pruned.model))
    assert len(steps) == 2 * (1 + 2 + 1 + 3 + 3 * 3)
    assert set(map(sum, zip(steps[::2], steps[1::2], strict=True))) == {0}


def test_recoveries_heal_differently_and_leave_the_baseline_as_it_is(prepared: Prepared) -> None:
    model = prepared.context.model
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    found = {name: networks_of(trial_of(prepared, name), prepared) for name in RECOVERIES}
    ends = [networks[Stage.EVALUATE] for networks in found.values()]
    for i, one in enumerate(ends):
        assert not any(same(one, other) for other in ends[:i])
    assert same(model.state_dict(), before)
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("recovery", "stop"),
    [
        *(("finetune", 5), ("distill", 4), ("distill", 5), ("reconstruct_distill", 5)),
        ("reconstruct", 3),  # it begins anew: there was no snapshot yet
    ],
)
def test_going_on_from_a_snapshot_equals_never_stopping(
    prepared: Prepared, tmp_path: Path, recovery: str, stop: int
) -> None:
    trial = trial_of(prepared, recovery)
    whole = networks_of(trial, prepared)[Stage.EVALUATE]
    first = work(trial, prepared.context, InFolder(tmp_path))
    for _ in range(stop + 1):
        next(first)
    del first
    ends: list[Progress] = []
    resume = read_snapshot(trial_folder(tmp_path, trial.number))
    assert (resume is None) is (stop == 3)
    run_trial(trial, prepared.context, resume=resume, report=ends.append)
    assert ends[-1].snapshot is not None
    assert same(dict(ends[-1].snapshot.state_dict), whole)


def test_what_no_teacher_can_help_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    taught = {"distill": Recovery(PLAN, distillation=Distillation())}
    with pytest.raises(AutopruneError, match="OwnFit trains by a fit of its own"):
        make_plan(request(tmp_path, task=OwnFit(), recoveries=taught))
    hinted = {"distill": Recovery(PLAN, distillation=Distillation(hints=1.0, hint_layers=("x*",)))}
    with pytest.raises(AutopruneError, match=r"hint_layers: 'x\*' matches no layer; the layers"):
        make_plan(request(tmp_path, recoveries=hinted))
    one = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 1))

    class Regression(Blobs):
        def loss(self, model, batch):
            return model(batch[0]).square().mean()

    with pytest.raises(AutopruneError, match="two classes or more"):
        make_plan(request(tmp_path, model=one, task=Regression(), recoveries=taught))


def test_a_forecast_counts_the_teacher_and_the_least_squares(tmp_path: Path) -> None:
    asked = request(tmp_path, recoveries=RECOVERIES)
    before = copy.deepcopy(asked.model.state_dict())
    found = forecast(asked, make_plan(asked))
    assert found is not None
    assert found.trial_s > 0
    assert same(asked.model.state_dict(), before)


def test_a_profile_mends_as_the_first_recovery_does(tmp_path: Path) -> None:
    folders = set()
    for name in ("reconstruct_distill", "reconstruct", "distill"):
        asked = request(tmp_path, recoveries={name: RECOVERIES[name]})
        profiled = profile_network(prepare(asked), checks=0)
        assert profiled.profile.points
        folders.add(profiled.folder)
    assert len(folders) == 2, "what is trained does not matter to a profile"


def test_conditions_of_older_journals_are_told_as_now(tmp_path: Path) -> None:
    began = {
        "recoveries": "{'finetune': FitPlan(epochs=3, lr=0.02, optimizer='sgd', momentum=0.9, "
        "weight_decay=0.0005, warmup_epochs=0.5, grad_clip=None, amp='off')}",
        "limits": "TrialLimits(recalibration_batches=5, importance_batches=8, time_limit_s=None)",
        "device": "'cpu'",
    }
    asked = request(tmp_path, recoveries={"finetune": Recovery(PLAN, recalibration_batches=5)})
    now = asked.conditions
    assert conditions_now(began) == {name: now[name] for name in began}
    assert conditions_now(now) == now
    assert conditions_now({"device": "'cpu'"}) == {"device": "'cpu'"}
