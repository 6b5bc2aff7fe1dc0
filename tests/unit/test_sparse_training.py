"""Sparse training: in which steps, how much of it is learnt, and how a trial goes through it."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, FaultsError
from autoprune.domain.ladder import Ladder
from autoprune.domain.objective import Constraint
from autoprune.domain.trial import Measurement, Observation, Stage, Trial, TrialError
from autoprune.evaluation import Progress, run_trial
from autoprune.orchestration.artifacts import load, read_snapshot
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.forecast import forecast
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.planning import make_plan
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.request import GoalRequest
from autoprune.orchestration.session import resume, start
from autoprune.orchestration.storage import InFolder
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.work import work
from autoprune.pruning.coupling import Member
from autoprune.pruning.graph import trace
from autoprune.pruning.healing import Recovery
from autoprune.pruning.reconstruct import Reconstruction
from autoprune.pruning.recover import FitPlan, FitState, fit
from autoprune.pruning.sparsity.blocks import pieces_of, silent_units
from autoprune.pruning.sparsity.cost import MacCost
from autoprune.pruning.sparsity.groups import Longest
from autoprune.pruning.sparsity.plan import METHODS, Sparsity
from autoprune.pruning.sparsity.shrink import Shrinking, check_method
from autoprune.pruning.sparsity.training import train_sparsely
from autoprune.settings.compose import completed, compose_config, plain
from autoprune.settings.parts import recoveries_of
from tests.pruning_tasks import Blobs, OwnFit, Unsized, same, small_net
from tests.tiny import request

TASK = Blobs()
PLAN = FitPlan(epochs=2)
QUICK = Sparsity(epochs=3, strength=0.05, budget="macs", multiplier_lr=3.0)
RECOVERIES = {
    "finetune": Recovery(PLAN),
    "group_lasso": Recovery(PLAN, sparsity=QUICK),
    "overlap": Recovery(PLAN, sparsity=replace(QUICK, overlap=True)),
    "slimming": Recovery(
        PLAN, sparsity=replace(QUICK, method="slimming"), reconstruction=Reconstruction(batches=2)
    ),
    "alone": Recovery(FitPlan(epochs=0), sparsity=QUICK),
}
KEPT = {"0": 4, "5": 3}


def shrinking_of(net: nn.Module, plan: Sparsity, kept: Mapping[str, int] = KEPT) -> Shrinking:
    couplings = trace(net, TASK.example()).couplings
    cost = MacCost(net, TASK.example(), couplings)
    return Shrinking(net, couplings, plan, kept=kept, cost=cost)


def trained(
    net: nn.Module, plan: Sparsity, kept: Mapping[str, int] = KEPT
) -> tuple[Shrinking, list[float]]:
    """The network after sparse training, with the multiplier after every epoch."""
    shrinking = shrinking_of(net, plan, kept)
    found = [
        shrinking.multiplier
        for _ in train_sparsely(net, TASK, replace(PLAN, epochs=plan.epochs), shrinking, seed=0)
    ]
    return shrinking, found


def silent(net: nn.Module) -> dict[str, int]:
    couplings = trace(net, TASK.example()).couplings
    return {c.group.name: int(silent_units(net, c).sum()) for c in couplings}


@pytest.mark.parametrize(
    "plan",
    [QUICK, replace(QUICK, overlap=True), replace(QUICK, method="slimming", strength=0.2)],
    ids=["group lasso", "overlap", "slimming"],
)
def test_training_meets_its_budget_with_zeros(plan: Sparsity) -> None:
    net = small_net()
    shrinking, multipliers = trained(net, replace(plan, epochs=12))
    assert shrinking.metrics["sparsity_cost"] == pytest.approx(1.0)
    assert shrinking.metrics["sparsity_live"] == pytest.approx(7 / 14)
    assert silent(net) == {"0": 4, "5": 3}
    assert multipliers[0] > plan.strength
    assert multipliers[-1] == shrinking.multiplier


def test_the_multiplier_stays_where_it_is_once_the_budget_is_met() -> None:
    shrinking = shrinking_of(small_net(), replace(QUICK, strength=100.0))
    shrinking.after_step(1.0, 0.5)
    met = shrinking.multiplier
    assert shrinking.metrics["sparsity_cost"] == pytest.approx(1.0)
    shrinking.after_step(1.0, 0.5)
    assert shrinking.multiplier == met == 100.0


def test_the_multiplier_grows_by_its_rate_where_nothing_is_zero_yet() -> None:
    shrinking = shrinking_of(small_net(), replace(QUICK, strength=1e-9))
    for _ in range(4):
        shrinking.after_step(0.1, 0.25)
    assert shrinking.multiplier == pytest.approx(1e-9 * math.exp(QUICK.multiplier_lr))


def test_without_a_budget_the_multiplier_is_the_strength() -> None:
    _, multipliers = trained(small_net(), Sparsity(epochs=3, strength=0.01))
    assert multipliers == [0.01] * 3


def test_a_unit_that_costs_more_is_pulled_at_more() -> None:
    """Group 5 of the network has 128 inputs a unit, group 0 has 9 times 16 and 96 outputs."""
    plain, priced = (
        shrinking_of(small_net(), replace(QUICK, budget=budget)) for budget in ("none", "macs")
    )
    ratios = [b / a for a, b in zip(plain.weights, priced.weights, strict=True)]
    cost = MacCost(small_net(), TASK.example(), trace(small_net(), TASK.example()).couplings)
    prices = [(1 - cost({name: KEPT[name]})) / (size - KEPT[name]) for name, size in SIZES.items()]
    assert ratios[0] / ratios[1] == pytest.approx(prices[0] / prices[1])


SIZES = {"0": 8, "5": 6}


def test_groups_that_stay_whole_are_left_alone() -> None:
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    shrinking_of(net, QUICK, {"0": 8, "5": 3}).after_step(1.0, 1.0)
    assert torch.equal(net.get_parameter("0.weight"), before["0.weight"])
    assert not torch.equal(net.get_parameter("5.weight"), before["5.weight"])
    whole = shrinking_of(net, QUICK, SIZES)
    whole.after_step(1.0, 1.0)
    assert whole.metrics == {
        "sparsity_multiplier": QUICK.strength,
        "sparsity_cost": 1.0,
        "sparsity_live": 1.0,
    }


def test_what_is_frozen_is_left_alone() -> None:
    net = small_net()
    for parameter in net[5].parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    shrinking = shrinking_of(net, replace(QUICK, strength=100.0))
    shrinking.after_step(1.0, 1.0)
    assert torch.equal(net.get_parameter("5.weight"), before["5.weight"])
    assert shrinking.metrics["sparsity_live"] == 4 / 8


@pytest.mark.parametrize("overlap", [False, True])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(overlap: bool) -> None:
    plan = replace(QUICK, overlap=overlap, epochs=5)
    whole, broken = small_net(), small_net()
    trained(whole, plan)
    five = replace(PLAN, epochs=5)
    epochs = train_sparsely(broken, TASK, five, shrinking_of(broken, plan), seed=0)
    next(epochs)
    state = FitState.from_plain(next(epochs).state.to_plain())  # type: ignore[union-attr]
    weights = {name: tensor.clone() for name, tensor in broken.state_dict().items()}
    next(epochs)
    epochs.close()
    again = small_net(seed=9)
    again.load_state_dict(weights)
    shrinking = shrinking_of(again, plan)
    list(train_sparsely(again, TASK, five, shrinking, seed=0, resume=state))
    assert same(whole.state_dict(), again.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_grow_without_end_are_told_by_the_loss(method: str) -> None:
    net, wild = small_net(), FitPlan(epochs=2, lr=1e38, warmup_epochs=0)
    task = Blobs(samples=16)  # one step an epoch
    shrinking = shrinking_of(net, replace(QUICK, method=method))
    with pytest.raises(TrialError, match=r"the training loss became .*; lower the learning rate"):
        list(train_sparsely(net, task, wild, shrinking, seed=0))


def test_the_state_of_another_training_is_refused() -> None:
    with pytest.raises(AutopruneError, match="the state of the sparse training is of another one"):
        shrinking_of(small_net(), QUICK).restore({"multiplier": 1.0})


def test_a_split_without_a_length_moves_the_multiplier_once_an_epoch() -> None:
    spans = []

    class Hook:
        def after_step(self, lr: float, span: float) -> None:
            spans.append(span)

        def after_epoch(self) -> None:
            spans.append(-1.0)

        def state(self) -> Mapping[str, Any]:
            return {}

        def restore(self, state: Mapping[str, Any]) -> None:
            del state

    list(fit(small_net(), Unsized(), FitPlan(epochs=2), seed=0, hook=Hook()))
    assert spans == [1.0, 0.0, 0.0, -1.0] * 2
    spans.clear()
    list(fit(small_net(), TASK, FitPlan(epochs=1), seed=0, hook=Hook()))
    assert spans == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1.0])


def test_values_out_of_range_are_told_together() -> None:
    with pytest.raises(FaultsError) as found:
        Sparsity(
            epochs=0,
            method="lasso",
            strength=0,
            overlap=True,
            budget="mac",
            multiplier_lr=-1,
            rank_strength=0,
        )
    assert found.value.faults == (
        "method 'lasso' is not known; did you mean 'group_lasso'? Otherwise choose from "
        "['group_lasso', 'low_rank', 'slimming']",
        "budget 'mac' is not known; did you mean 'macs'? Otherwise choose from "
        "['latency', 'macs', 'none']",
        "epochs is 0; choose 1 or more",
        "strength is 0; choose a positive number",
        "multiplier_lr is -1; choose a positive number",
        "rank_strength is 0; choose a positive number",
        "overlap is true and method is lasso; choose group_lasso, or no overlap",
    )
    with pytest.raises(FaultsError, match="overlap is true and method is slimming; choose group"):
        Sparsity(method="slimming", overlap=True)


def test_a_recovery_says_that_it_trains_before_the_cut() -> None:
    assert RECOVERIES["slimming"].name == "slimming_reconstruct_finetune"
    assert str(RECOVERIES["group_lasso"]) == (
        "3 epochs of group_lasso to a budget of macs, batch norm over 16 batches, 2 epochs of sgd"
    )
    assert str(Sparsity(epochs=1)) == "1 epoch of group_lasso"
    assert RECOVERIES["alone"].name == "group_lasso"
    assert RECOVERIES["alone"].at_once == Recovery(FitPlan(epochs=0))
    assert RECOVERIES["group_lasso"].epochs == 5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(request(tmp_path_factory.mktemp("outputs"), recoveries=RECOVERIES))


def trial_of(prepared: Prepared, recovery: str) -> Trial:
    return Trial(3, replace(prepared.plan.space.uniform(0.5), recovery=recovery), 11)


def heard_of(trial: Trial, prepared: Prepared) -> tuple[list[Progress], Observation]:
    heard: list[Progress] = []
    found = run_trial(trial, prepared.context, report=heard.append)
    assert isinstance(found.outcome, Measurement), found.outcome
    return heard, found


def weights_of(progress: Progress) -> dict[str, torch.Tensor]:
    assert progress.snapshot is not None
    return {name: tensor.clone() for name, tensor in progress.snapshot.state_dict.items()}


def test_a_trial_measures_first_then_trains_then_cuts(prepared: Prepared) -> None:
    before = copy.deepcopy(prepared.context.model.state_dict())
    heard, found = heard_of(trial_of(prepared, "group_lasso"), prepared)
    stages = [(progress.stage, progress.epoch) for progress in heard]
    assert stages == [
        *((stage, 0) for stage in (Stage.PRUNE, Stage.RECALIBRATE, Stage.MEASURE, Stage.PROXY)),
        *((Stage.RECOVER, epoch) for epoch in (1, 2, 3, 4, 5)),
        (Stage.EVALUATE, 0),
    ]
    for progress in heard[4:7]:
        assert progress.snapshot is not None
        assert progress.snapshot.recipe.history == ()
        assert {"sparsity_multiplier", "sparsity_cost", "sparsity_live"} <= progress.metrics.keys()
        assert "accuracy" not in progress.metrics
    assert "sparsity_accuracy" in heard[7].metrics
    assert isinstance(found.outcome, Measurement)
    assert found.outcome.metrics["sparsity_multiplier"] > QUICK.strength
    assert same(prepared.context.model.state_dict(), before)
    last = heard[-1].snapshot
    assert last is not None
    assert last.done
    assert last.epoch == 5
    assert {cut.layer for cut in last.recipe.history} >= {"0", "5"}


def test_recoveries_end_in_different_networks_of_the_same_widths(prepared: Prepared) -> None:
    ends = {n: weights_of(heard_of(trial_of(prepared, n), prepared)[0][-1]) for n in RECOVERIES}
    shapes = [{n: w.shape for n, w in end.items()} for end in ends.values()]
    assert all(shape == shapes[0] for shape in shapes)
    values = list(ends.values())
    assert not any(same(one, two) for i, one in enumerate(values) for two in values[:i])


@pytest.mark.parametrize("recovery", ["group_lasso", "overlap", "slimming"])
@pytest.mark.parametrize("stop", [4, 6, 7])
def test_going_on_from_a_snapshot_equals_never_stopping(
    prepared: Prepared, tmp_path: Path, recovery: str, stop: int
) -> None:
    """Stopped in the middle of sparse training, at its end, and in the middle of healing."""
    trial = trial_of(prepared, recovery)
    heard, whole = heard_of(trial, prepared)
    first = work(trial, prepared.context, InFolder(tmp_path))
    for _ in range(stop + 1):
        next(first)
    del first
    kept = read_snapshot(trial_folder(tmp_path, trial.number))
    assert kept is not None
    assert kept.epoch == stop - 3
    ends: list[Progress] = []
    found = run_trial(trial, prepared.context, resume=kept, report=ends.append)
    assert same(weights_of(ends[-1]), weights_of(heard[-1]))
    assert isinstance(found.outcome, Measurement)
    assert isinstance(whole.outcome, Measurement)
    assert found.outcome.metrics == pytest.approx(whole.outcome.metrics | _speed(found))


def _speed(found: Observation) -> dict[str, float]:
    assert isinstance(found.outcome, Measurement)
    named = ("speedup", "latency", "throughput")
    return {n: v for n, v in found.outcome.metrics.items() if n.startswith(named)}


def test_a_constraint_ends_a_trial_before_it_trains(tmp_path: Path) -> None:
    goal = GoalRequest(("main", "params"), (Constraint("params", high=1),))
    ready = prepare(request(tmp_path, recoveries=RECOVERIES, goal=goal))
    heard, found = heard_of(trial_of(ready, "group_lasso"), ready)
    assert [progress.stage for progress in heard][-1] is Stage.PROXY
    assert isinstance(found.outcome, Measurement)
    assert found.outcome.stopped_by == "params <= 1"


def test_rungs_count_the_epochs_after_the_cut(tmp_path: Path) -> None:
    asked = request(tmp_path, recoveries=RECOVERIES, ladder=Ladder((0, 1)))
    ready = prepare(asked)
    context = replace(ready.context, rungs=(0, 1))
    heard: list[Progress] = []
    run_trial(trial_of(ready, "group_lasso"), context, report=heard.append)
    worths = {p.epoch: p.worth.rung for p in heard if p.worth is not None}
    assert worths == {0: 0, 4: 1}


def sweep(output: Path, trials: int, **changes: Any) -> Any:
    names = ("finetune", "group_lasso")
    return request(
        output,
        recoveries={name: RECOVERIES[name] for name in names},
        budget=Budget(trials=trials),
        **changes,
    )


def test_a_sweep_ranges_over_it_and_its_networks_come_back(tmp_path: Path) -> None:
    ready = prepare(sweep(tmp_path, 5))
    result = start(ready)
    assert result.complete
    found = {o.trial.spec.recovery: o for o in result.view.observations}
    assert found.keys() == {"finetune", "group_lasso"}
    for observation in found.values():
        folder = trial_folder(result.folder, observation.trial.number)
        network = load(folder, model=ready.context.model)
        assert network(TASK.example()).shape == (1, 4)
    assert resume(prepare(sweep(tmp_path, 6)), result.folder).complete


def test_a_budget_of_latency_needs_a_profile(tmp_path: Path) -> None:
    timed = {"group_lasso": Recovery(PLAN, sparsity=replace(QUICK, budget="latency"))}
    with pytest.raises(AutopruneError, match=r"'group_lasso' trains to a budget of latency.*pro"):
        make_plan(request(tmp_path, recoveries=timed))
    ready = prepare(request(tmp_path, recoveries=timed, profile=True))
    with pytest.raises(AutopruneError, match=r"set profile=true \(from Python, profile=True\), or"):
        start(ready)  # by itself, without the profile that `launch` makes
    launched = launch(
        request(tmp_path, recoveries=timed, profile=True, budget=Budget(trials=1)), Tracking()
    )
    (found,) = launched.result.view.observations
    assert isinstance(found.outcome, Measurement)
    assert found.outcome.metrics["sparsity_cost"] > 0
    assert found.outcome.metrics["sparsity_multiplier"] != QUICK.strength


def test_the_multiplier_falls_where_less_is_spent_than_may_be() -> None:
    """As a predicted latency may: here what is left costs nothing as soon as a unit is zero."""
    net = small_net()
    couplings = trace(net, TASK.example()).couplings

    def cost(live: Mapping[str, int]) -> float:
        return {SIZES["0"]: 1.0, KEPT["0"]: 0.5}.get(live.get("0", SIZES["0"]), 0.0)

    shrinking = Shrinking(net, couplings, QUICK, kept=KEPT, cost=cost)
    with torch.no_grad():
        for parameter in (*net[0].parameters(), *net[1].parameters()):
            parameter[0] = 0
    shrinking.after_step(1e-9, 1.0)
    assert shrinking.metrics["sparsity_cost"] == 0
    assert shrinking.multiplier == pytest.approx(QUICK.strength * math.exp(-QUICK.multiplier_lr))


def test_a_trial_without_a_prediction_says_so(tmp_path: Path) -> None:
    timed = {"group_lasso": Recovery(PLAN, sparsity=replace(QUICK, budget="latency"))}
    ready = prepare(request(tmp_path, recoveries=timed, profile=True))
    found = run_trial(trial_of(ready, "group_lasso"), ready.context).outcome
    assert "sparsity.budget is latency, which a profile predicts" in str(found)


def test_what_cannot_be_trained_so_is_refused_before_anything_is(tmp_path: Path) -> None:
    lasso = {"group_lasso": RECOVERIES["group_lasso"]}
    with pytest.raises(AutopruneError, match="OwnFit trains by a fit of its own, into which no"):
        make_plan(request(tmp_path, task=OwnFit(), recoveries=lasso))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    slim = {"slimming": RECOVERIES["slimming"]}
    with pytest.raises(AutopruneError, match=r"scales of batch norms, and Sequential has none"):
        make_plan(request(tmp_path, model=plain, recoveries=slim))
    check_method(QUICK, plain, trace(plain, TASK.example()).couplings)


def test_the_shipped_options_are_what_they_say() -> None:
    for name in ("group_lasso", "slimming", "low_rank"):
        config = plain(compose_config("sweep", [f"recovery={name}"]))
        ((found, recovery),) = recoveries_of(config).items()
        assert found == f"{name}_finetune"
        strength = 0.05 if name == "slimming" else 0.01
        asked = Sparsity(method=name, budget="macs", strength=strength)
        assert recovery == Recovery(FitPlan(epochs=8), sparsity=asked)
        del config["recovery"]["sparsity"]  # as in a config of before
        assert recoveries_of(completed(config)) == {"finetune": Recovery(FitPlan(epochs=8))}


def test_a_forecast_counts_it(tmp_path: Path) -> None:
    asked = request(tmp_path, recoveries={"group_lasso": RECOVERIES["group_lasso"]})
    found = forecast(asked, make_plan(asked))
    assert found is not None
    assert found.trial_s > 0


def test_journals_of_before_go_on(tmp_path: Path) -> None:
    told = request(tmp_path, recoveries={"finetune": Recovery(PLAN)}).conditions["recoveries"]
    assert "sparsity" not in told
    sparse = {"group_lasso": Recovery(PLAN, sparsity=Sparsity(epochs=2))}
    assert (
        "sparsity=Sparsity(epochs=2"
        in request(tmp_path, recoveries=sparse).conditions["recoveries"]
    )


def test_pinned_units_are_spared_and_whole_layers_are_none_of_its_business() -> None:
    net = small_net()
    first, second = trace(net, TASK.example()).couplings
    lengths = torch.tensor([5.0, 1.0, 4.0, 3.0, 2.0, 6.0, 7.0, 8.0])
    pinned = replace(first, pinned=(1, 4))
    found = Longest(pinned, 3, torch.device("cpu")).among(lengths)
    assert found.nonzero().flatten().tolist() == [1, 4, 7]
    zero = np.zeros(1, np.int64)
    blocks = replace(second, members=(Member("5", "block", zero, zero),))
    assert pieces_of(net, blocks, readers=True) == ()
    assert not silent_units(net, blocks).any()
    cost = MacCost(net, TASK.example(), [first, second])
    shrinking = Shrinking(net, [first, blocks], QUICK, kept=KEPT, cost=cost)
    assert len(shrinking.weights) == 1
