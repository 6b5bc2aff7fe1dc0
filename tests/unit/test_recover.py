import io
import math
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, FaultsError
from autoprune.domain.objective import Metric
from autoprune.domain.trial import Cause, TrialError
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.recalibrate import recalibrate
from autoprune.pruning.recover import FitPlan, FitState, fit
from tests.pruning_tasks import Blobs, Unsized, same, small_net

TASK = Blobs()


class Guard:
    def __init__(self) -> None:
        self.entered, self.inside = 0, False

    @contextmanager
    def __call__(self):
        assert not self.inside
        self.entered, self.inside = self.entered + 1, True
        yield
        self.inside = False


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(optimizer):
    plan = FitPlan(epochs=5, lr=0.01, optimizer=optimizer, grad_clip=1.0)
    whole = small_net()
    expected = list(fit(whole, TASK, plan, seed=3))

    broken = small_net()
    epochs = fit(broken, TASK, plan, seed=3)
    next(epochs)
    second = next(epochs)
    assert second.state is not None
    file = io.BytesIO()
    torch.save(second.state.to_plain(), file)
    weights = {k: v.clone() for k, v in broken.state_dict().items()}
    next(epochs)  # what happens after the checkpoint must not reach into it
    epochs.close()

    file.seek(0)
    state = FitState.from_plain(torch.load(file, weights_only=True))
    torch.rand(7)  # the state of the process's generator does not matter
    resumed = small_net(seed=9)
    resumed.load_state_dict(weights)
    rest = list(fit(resumed, TASK, plan, seed=3, resume=state))
    assert [(e.number, e.loss, e.lr) for e in rest] == [
        (e.number, e.loss, e.lr) for e in expected[2:]
    ]
    assert same(resumed.state_dict(), whole.state_dict())


def test_the_seed_fixes_the_run_and_only_the_seed():
    plan = FitPlan(epochs=1, lr=0.05)
    nets = [small_net() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        torch.rand(seed)
        list(fit(net, TASK, plan, seed=seed))
    one, again, other = (net.state_dict() for net in nets)
    assert same(one, again)
    assert not same(one, other)


def test_training_learns_and_leaves_modes_and_random_numbers_alone():
    net = small_net().eval()
    rng = torch.get_rng_state()
    guard = Guard()
    losses = []
    for epoch in fit(net, TASK, FitPlan(epochs=12, lr=0.1), seed=0, step_guard=guard):
        losses.append(epoch.loss)
        assert not guard.inside
        assert not net.training
        assert torch.equal(rng, torch.get_rng_state())
    assert losses[-1] < losses[0] / 2
    assert evaluate(net, TASK, "val")["accuracy"] > 0.9
    assert guard.entered == 12 * 3


def test_frozen_parameters_do_not_train():
    net = small_net()
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    list(fit(net, TASK, FitPlan(epochs=1), seed=0))
    assert torch.equal(net[0].weight, before)
    with pytest.raises(AutopruneError, match="no trainable parameter; unfreeze some or set epo"):
        list(fit(net.requires_grad_(False), TASK, FitPlan(epochs=1), seed=0))
    assert list(fit(net, TASK, FitPlan(epochs=0), seed=0)) == []


def test_the_rate_warms_up_and_falls_along_a_cosine():
    plan = FitPlan(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [plan.lr_at(i / 4, step=1 / 4) for i in range(40)]
    assert rates[:8] == pytest.approx([(i + 1) / 8 for i in range(8)])
    assert rates[8] == 1.0
    assert all(a > b for a, b in pairwise(rates[8:]))
    assert 0 < rates[-1] < 0.01
    assert FitPlan(epochs=1, lr=1.0, warmup_epochs=0).lr_at(0, step=1) == 1.0
    assert FitPlan(epochs=1, lr=1.0, warmup_epochs=3).lr_at(0.5, step=0.5) == pytest.approx(1 / 3)


def test_a_pass_without_a_length_changes_the_rate_by_epochs():
    plan = FitPlan(epochs=3, lr=1e-3, warmup_epochs=1)
    stepped = [e.lr for e in fit(small_net(), TASK, plan, seed=0)]
    whole = [e.lr for e in fit(small_net(), Unsized(), plan, seed=0)]
    assert whole == [plan.lr_at(epoch, step=1) for epoch in range(3)]
    assert stepped == [plan.lr_at(epoch + 2 / 3, step=1 / 3) for epoch in range(3)]


def test_a_loss_that_is_not_a_number_says_where():
    class Poisoned(Blobs):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def loss(self, model, batch):
            self.calls += 1
            return super().loss(model, batch) * (math.nan if self.calls == 5 else 1)

    epochs = fit(small_net(), Poisoned(), FitPlan(epochs=3, lr=0.01), seed=0)
    next(epochs)
    with pytest.raises(TrialError, match="became nan at epoch 2, step 2; lower the learn") as why:
        next(epochs)
    assert why.value.cause is Cause.NAN_LOSS


def test_a_state_of_another_run_is_refused():
    plan = FitPlan(epochs=2)
    state = next(fit(small_net(), TASK, plan, seed=0)).state
    with pytest.raises(AutopruneError, match="made with seed 0, this run has 1"):
        next(fit(small_net(), TASK, plan, seed=1, resume=state))
    half = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(AutopruneError, match="is of another network or optimizer"):
        next(fit(half, TASK, plan, seed=0, resume=state))
    with pytest.raises(AutopruneError, match="the training state is damaged"):
        FitState.from_plain({"epoch": 1})
    with pytest.raises(AutopruneError, match="train split has no batch; give it data"):
        next(fit(small_net(), Blobs(samples=0), plan, seed=0))


class OwnFit(Blobs):
    loss_now = 1.0

    def fit(self, model, *, epochs, seed):
        del seed
        for _ in range(epochs):
            assert model.training
            with torch.no_grad():
                model[7].bias += torch.rand(4)
            yield self.loss_now


def test_a_task_with_its_own_fit_trains_by_it():
    nets, guard = [small_net().eval() for _ in range(2)], Guard()
    for net in nets:
        done = list(fit(net, OwnFit(), FitPlan(epochs=2), seed=1, step_guard=guard))
    assert [(e.number, e.loss, e.state) for e in done] == [(1, 1.0, None), (2, 1.0, None)]
    assert guard.entered == 4
    assert same(*(net.state_dict() for net in nets))
    state = FitState(1, 1, {}, {})
    with pytest.raises(AutopruneError, match="own fit cannot resume; train from the start"):
        next(fit(nets[0], OwnFit(), FitPlan(epochs=2), seed=1, resume=state))
    task = OwnFit()
    task.loss_now = math.inf
    with pytest.raises(TrialError, match="own fit returned a loss of inf at epoch 1"):
        next(fit(nets[0], task, FitPlan(epochs=2), seed=1))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"epochs": -1}, "epochs is -1; choose 0 or more"),
        ({"lr": 0}, "lr is 0; choose a positive number"),
        ({"lr": math.nan}, "lr is nan"),
        ({"momentum": 1.0}, r"momentum is 1.0; choose a number in \[0, 1\)"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"grad_clip": 0}, "grad_clip is 0"),
        ({"optimizer": "adam"}, "optimizer 'adam' is not known; did you mean 'adamw'"),
        ({"amp": "fp8"}, "amp 'fp8' is not known"),
    ],
)
def test_plans_are_validated(field, message):
    with pytest.raises(AutopruneError, match=message):
        FitPlan(**({"epochs": 1} | field))


def test_recalibration_is_the_mean_over_batches_and_nothing_else_changes():
    net = small_net()
    net[1].running_mean.fill_(50)
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" not in k}
    guard, rng = Guard(), torch.get_rng_state()
    recalibrate(net, TASK, batches=2, seed=4, step_guard=guard)
    with torch.no_grad():
        means = [net[0](x).mean((0, 2, 3)) for x, _ in list(TASK.batches("train", seed=4))[:2]]
    torch.testing.assert_close(net[1].running_mean, torch.stack(means).mean(0))
    assert guard.entered == 2
    assert net[1].momentum == 0.1
    assert not net[1].training
    assert net[4].training
    assert torch.equal(rng, torch.get_rng_state())
    changed = [k for k, v in before.items() if not torch.equal(v, net.state_dict()[k])]
    assert changed == ["1.num_batches_tracked"]


def test_recalibration_of_a_network_without_batch_norm_does_nothing():
    guard = Guard()
    recalibrate(nn.Sequential(nn.Linear(2, 2)), TASK, batches=2, seed=0, step_guard=guard)
    assert guard.entered == 0


def test_recalibration_needs_batches():
    with pytest.raises(AutopruneError, match="over 0 batches; choose 1 or more"):
        recalibrate(small_net(), TASK, batches=0, seed=0)
    with pytest.raises(AutopruneError, match="no batch to recalibrate batch norm with"):
        recalibrate(small_net(), Blobs(samples=0), batches=1, seed=0)


def test_evaluation_restores_the_mode_and_guards_every_batch():
    class Counting(Blobs):
        def evaluate(self, model, batches):
            assert not model.training
            assert not torch.is_grad_enabled()
            self.seen = []
            for batch in batches:
                assert guard.inside
                self.seen.append(batch)
            return {"accuracy": torch.tensor(0.5), "accuracy_low": 0.4}

    net, task, guard = small_net(), Counting(), Guard()
    net[1].eval()
    found = evaluate(net, task, "val", step_guard=guard)
    assert found == {"accuracy": 0.5, "accuracy_low": pytest.approx(0.4)}
    assert len(task.seen) == guard.entered == 3
    assert net.training
    assert not net[1].training


def test_evaluation_wants_every_metric():
    class Lacking(Blobs):
        metrics = (Metric("accuracy"), Metric("f1"))

    with pytest.raises(AutopruneError, match=r"returned \['accuracy'\] without \['f1'\]"):
        evaluate(small_net(), Lacking(), "val")


def test_every_fault_of_a_plan_is_told_at_once():
    with pytest.raises(FaultsError) as caught:
        FitPlan(epochs=-1, lr=0.0, optimizer="sdg", amp="bf61")
    assert len(caught.value.faults) == 4
    assert "did you mean 'sgd'" in str(caught.value)
