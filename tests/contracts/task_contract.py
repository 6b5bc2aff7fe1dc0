"""What every task must keep, as a suite that any task can run.

Subclass it in a test file of your own and give the two fixtures::

    class TestMine(TaskContract):
        @pytest.fixture
        def task(self): return MyTask(...)

        @pytest.fixture
        def model(self): return my_network()

The suite trains for a few seconds, so give a small network and little data.
"""

import math
import pickle
from typing import Any, get_args

import pytest
import torch
from torch import nn

from autoprune.domain.objective import Direction
from autoprune.tasks import Split, Task, forward, move, tensors_of

SPLITS: tuple[Split, ...] = get_args(Split)


def same(one: list[Any], other: list[Any]) -> bool:
    """Whether two passes hold the same tensors in the same order."""
    left, right = tensors_of(one), tensors_of(other)
    return len(left) == len(right) and all(map(torch.equal, left, right))


def judge(task: Task, model: nn.Module, split: Split = "val") -> dict[str, float]:
    """The task's metrics of a model, as a search asks for them."""
    model.eval()
    return dict(task.evaluate(model, task.batches(split)))


class TaskContract:
    """The laws of `autoprune.tasks.Task`; give the fixtures `task` and `model`."""

    epochs = 5
    learning_rate = 0.01

    @pytest.fixture
    def task(self) -> Task:
        raise NotImplementedError("give a fixture `task`")

    @pytest.fixture
    def model(self) -> nn.Module:
        raise NotImplementedError("give a fixture `model`")

    def test_metrics_have_names_of_their_own(self, task: Task) -> None:
        names = [metric.name for metric in task.metrics]
        assert names
        assert len(set(names)) == len(names)

    def test_the_example_is_one_sample_that_the_network_takes(
        self, task: Task, model: nn.Module
    ) -> None:
        example = task.example()
        assert all(len(part) == 1 and part.device.type == "cpu" for part in tensors_of(example))
        with torch.no_grad():
            forward(model.eval(), move(example, "cpu"))

    @pytest.mark.parametrize("split", SPLITS)
    def test_every_split_has_batches_on_the_cpu(self, task: Task, split: Split) -> None:
        batches = list(task.batches(split))
        assert batches
        assert all(part.device.type == "cpu" for part in tensors_of(batches))

    @pytest.mark.parametrize("split", SPLITS)
    def test_a_pass_without_seed_is_always_the_same(self, task: Task, split: Split) -> None:
        assert same(list(task.batches(split)), list(task.batches(split)))

    def test_the_seed_alone_decides_a_shuffled_pass(self, task: Task) -> None:
        one = list(task.batches("train", seed=1))
        torch.rand(3)
        assert same(one, list(task.batches("train", seed=1)))
        assert not same(one, list(task.batches("train", seed=2)))
        assert not same(one, list(task.batches("train")))

    def test_global_randomness_is_left_alone(self, task: Task, model: nn.Module) -> None:
        state = torch.get_rng_state()
        for split in SPLITS:
            list(task.batches(split, seed=5))
        judge(task, model)
        assert torch.equal(state, torch.get_rng_state())

    def test_the_loss_is_a_finite_scalar_that_trains_every_parameter(
        self, task: Task, model: nn.Module
    ) -> None:
        loss = task.loss(model.train(), next(iter(task.batches("train", seed=0))))
        assert loss.shape == ()
        assert math.isfinite(loss.item())
        loss.backward()  # type: ignore[no-untyped-call]
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_evaluating_gives_every_metric_and_its_interval(
        self, task: Task, model: nn.Module
    ) -> None:
        found = judge(task, model)
        assert {metric.name for metric in task.metrics} <= set(found)
        assert all(math.isfinite(value) for value in found.values())
        for metric in task.metrics:
            value = found[metric.name]
            assert found.get(f"{metric.name}_low", value) <= value
            assert found.get(f"{metric.name}_high", value) >= value

    def test_evaluating_changes_nothing(self, task: Task, model: nn.Module) -> None:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        one, other = judge(task, model), judge(task, model)
        assert one == other
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        assert not model.training

    def test_the_cut_into_batches_does_not_change_the_metrics(
        self, task: Task, model: nn.Module
    ) -> None:
        batches = list(task.batches("val"))
        forth, back = task.evaluate(model.eval(), batches), task.evaluate(model, batches[::-1])
        assert dict(forth) == pytest.approx(dict(back), rel=1e-4)

    def test_it_pickles(self, task: Task, model: nn.Module) -> None:
        again = pickle.loads(pickle.dumps(task))
        assert same(list(task.batches("train", seed=1)), list(again.batches("train", seed=1)))
        assert judge(task, model) == judge(again, model)

    def test_training_betters_the_main_metric(self, task: Task, model: nn.Module) -> None:
        main = task.metrics[0]
        before = judge(task, model)[main.name]
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate)
        for epoch in range(self.epochs):
            model.train()
            for batch in task.batches("train", seed=epoch):
                optimizer.zero_grad()
                task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        after = judge(task, model)[main.name]
        assert after > before if main.direction is Direction.MAX else after < before
