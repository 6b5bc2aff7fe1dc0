"""The task contract over the built-in task and two that a user might write."""

import math

import pytest
import torch
from torch import nn

from autoprune.data import digits
from autoprune.domain.space import PruningSpec
from autoprune.models import mlp, vgg
from autoprune.pruning.graph import trace
from autoprune.pruning.surgery import prune
from autoprune.tasks import Classification, Task
from tests.contracts.task_contract import TaskContract, judge
from tests.examples_tasks import (
    CausalConvolutions,
    diabetes,
    language_model,
    regressor,
    sentences,
)


class TestClassification(TaskContract):
    epochs = 2

    @pytest.fixture
    def task(self) -> Task:
        return Classification(digits(side=8), label_smoothing=0.1, augment="shift")

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return vgg(width=4, depth=8, in_channels=1, image_side=8)


class TestClassificationOfVectors(TaskContract):
    epochs = 2

    @pytest.fixture
    def task(self) -> Task:
        return Classification(digits(side=8))

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return mlp(width=32, in_channels=1, image_side=8)


class TestRegression(TaskContract):
    @pytest.fixture
    def task(self) -> Task:
        return diabetes()

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return regressor(width=32)

    def test_a_perfect_predictor_scores_one(self, task: Task) -> None:
        batches = [(targets, targets) for _, targets in task.batches("val")]
        assert dict(task.evaluate(nn.Identity(), batches)) == {"r2": 1.0, "mae": 0.0}


class TestLanguageModel(TaskContract):
    epochs = 2

    @pytest.fixture
    def task(self) -> Task:
        return sentences(count=400)

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return language_model(width=24)

    def test_no_token_sees_a_later_one(self, task: Task, model: nn.Module) -> None:
        tokens = task.example()
        assert isinstance(tokens, torch.Tensor)
        changed = tokens.clone()
        changed[:, 12] = (changed[:, 12] + 1) % 7
        before, after = model(tokens), model(changed)
        torch.testing.assert_close(before[:, :, :12], after[:, :, :12])
        assert not torch.equal(before[:, :, 12:], after[:, :, 12:])

    def test_equal_scores_have_the_vocabularys_perplexity(
        self, task: Task, model: nn.Module
    ) -> None:
        assert isinstance(model, CausalConvolutions)
        for parameter in model.head.parameters():
            nn.init.zeros_(parameter)
        vocabulary = model.head.out_channels
        assert math.isclose(judge(task, model)["perplexity"], vocabulary, rel_tol=1e-4)


@pytest.mark.parametrize(
    ("model", "task"),
    [(regressor(width=16), diabetes()), (language_model(width=16), sentences(count=100))],
    ids=["regressor", "language model"],
)
def test_the_examples_networks_can_be_pruned(model: nn.Module, task: Task) -> None:
    example = task.example()
    groups = trace(model, example).groups
    assert {group.size for group in groups} == {16}
    spec = PruningSpec.of({group.name: 14 for group in groups})
    pruned = prune(model, example, spec).model
    layers = [m for m in pruned.modules() if isinstance(m, (nn.Linear, nn.Conv1d))][:-1]
    assert [layer.weight.shape[0] for layer in layers] == [14] * len(layers)
    assert pruned(example).shape == model(example).shape
