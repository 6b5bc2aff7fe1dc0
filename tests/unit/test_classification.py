"""Classification: what its batches, loss and metrics are, and what it refuses."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from autoprune.data import Splits, TensorSplit, digits
from autoprune.domain.errors import AutopruneError
from autoprune.pruning.recover import FitPlan, fit
from autoprune.tasks import Classification
from autoprune.tasks.classification import wilson


def splits_of(inputs: torch.Tensor, targets: torch.Tensor) -> Splits:
    return Splits(*3 * [TensorSplit(inputs, targets)])


@pytest.fixture(scope="module")
def data() -> Splits:
    return digits(side=8)


class Scores(nn.Module):
    """Returns the inputs as class scores."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1)


def test_accuracy_and_loss_are_those_of_the_whole_split() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 4, generator=generator)
    labels = torch.randint(0, 4, (50,), generator=generator)
    task = Classification(splits_of(scores, labels), batch_size=7, label_smoothing=0.3)
    found = task.evaluate(Scores(), task.batches("val"))
    accuracy = (scores.argmax(1) == labels).float().mean().item()
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["loss"] == pytest.approx(functional.cross_entropy(scores, labels).item())
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]


def test_label_smoothing_is_part_of_the_training_loss() -> None:
    scores, labels = torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    plain = Classification(splits_of(scores, labels))
    smooth = Classification(splits_of(scores, labels), label_smoothing=0.2)
    batch = (scores, labels)
    assert smooth.loss(Scores(), batch) > plain.loss(Scores(), batch)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_inside_the_unit_interval(counts: tuple[int, int]) -> None:
    correct, samples = counts
    low, high = wilson(correct, samples)
    assert 0.0 <= low <= correct / samples <= high <= 1.0
    assert high - low < 4.0 / (samples**0.5)


def test_wilson_gives_the_textbook_interval() -> None:
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(360, 360) == pytest.approx((0.98944, 1.0), abs=1e-5)


def test_a_pass_without_seed_keeps_order_and_every_sample(data: Splits) -> None:
    task = Classification(data, batch_size=50, augment="shift")
    labels = torch.cat([labels for _, labels in task.batches("train")])
    images = torch.cat([images for images, _ in task.batches("train")])
    assert torch.equal(labels, data.train.targets)
    assert torch.equal(images, data.train.inputs)


def test_a_shuffled_pass_leaves_out_a_last_batch_of_one() -> None:
    samples = splits_of(torch.zeros(9, 2), torch.arange(9) % 2)
    task = Classification(samples, batch_size=4)
    assert [len(labels) for _, labels in task.batches("train", seed=0)] == [4, 4]
    assert [len(labels) for _, labels in task.batches("train")] == [4, 4, 1]
    alone = Classification(splits_of(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)))
    assert [len(labels) for _, labels in alone.batches("train", seed=0)] == [1]


@given(st.integers(1, 40), st.integers(1, 12), st.none() | st.integers(0, 9))
def test_the_length_of_a_pass_is_the_number_of_its_batches(
    samples: int, batch_size: int, seed: int | None
) -> None:
    labels = torch.arange(samples)
    task = Classification(splits_of(torch.zeros(samples, 2), labels), batch_size=batch_size)
    found = task.batches("train", seed=seed)
    batches = [labels for _, labels in found]
    assert len(found) == len(batches) > 0
    left_out = samples - len(torch.cat(batches).unique())
    assert left_out == (seed is not None and samples > batch_size > 1 == samples % batch_size)


def test_a_pass_can_be_made_again(data: Splits) -> None:
    found = Classification(data, augment="shift").batches("train", seed=2)
    for (images, labels), (again, same) in zip(found, found, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)


def test_the_learning_rate_follows_its_schedule_by_steps() -> None:
    samples = splits_of(torch.randn(40, 3), torch.arange(40) % 3)
    task = Classification(samples, batch_size=4)
    plan = FitPlan(epochs=4, lr=0.1, warmup_epochs=1.5)
    rates = [epoch.lr for epoch in fit(nn.Linear(3, 3), task, plan, seed=0)]
    assert rates[0] == pytest.approx(0.1 * 10 / 15)  # of ten steps, warming up for fifteen
    assert 0.1 > rates[1] > rates[2] > rates[3]
    assert 0 < rates[3] < 0.001


def test_shifted_images_are_moved_copies_with_the_border_repeated() -> None:
    ramp = torch.arange(16.0).expand(1, 16, 16)
    images = torch.stack([ramp, ramp.mT]).repeat(20, 1, 1, 1)
    task = Classification(splits_of(images, torch.arange(40)), augment="shift", batch_size=40)
    ((shifted, order),) = task.batches("train", seed=3)
    moved = {d: (torch.arange(16) + d).clamp(0, 15).float() for d in (-2, -1, 0, 1, 2)}
    seen = set()
    for image, label in zip(shifted[:, 0], order, strict=True):
        line = image[0] if label % 2 == 0 else image[:, 0]
        matches = [offset for offset, expected in moved.items() if torch.equal(line, expected)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == {-2, -1, 0, 1, 2}


def test_mirroring_turns_about_half_of_the_images() -> None:
    images = torch.arange(4.0).expand(200, 1, 4, 4).clone()
    task = Classification(
        splits_of(images, torch.arange(200)), augment="flip_shift", batch_size=200
    )
    ((found, _),) = task.batches("train", seed=0)
    mirrored = (found[:, 0, 0, 0] > found[:, 0, 0, -1]).sum()
    assert 70 < mirrored < 130


@pytest.mark.parametrize("split", ["val", "test"])
def test_only_train_is_augmented(data: Splits, split: Any) -> None:
    task = Classification(data, batch_size=1000, augment="flip_shift")
    ((images, _),) = task.batches(split, seed=0)
    kept = getattr(data, split).inputs
    assert torch.equal(images.flatten(1).sum(1).sort().values, kept.flatten(1).sum(1).sort().values)


def test_pixels_are_scaled() -> None:
    pixels = torch.tensor([[0, 255]], dtype=torch.uint8)
    task = Classification(splits_of(pixels, torch.tensor([0])))
    ((inputs, _),) = task.batches("val")
    assert inputs.tolist() == [[-1.0, 1.0]]
    assert task.example().tolist() == [[-1.0, 1.0]]


def test_an_example_does_not_share_memory_with_the_data(data: Splits) -> None:
    task = Classification(data)
    before = data.train.inputs[0].clone()
    task.example().zero_()
    assert torch.equal(data.train.inputs[0], before)


def test_scikit_learn_agrees_on_the_labels(data: Splits) -> None:
    counts = torch.cat([part.targets for _, part in data]).bincount()
    assert torch.equal(counts, torch.from_numpy(load_digits().target).bincount())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; choose an integer above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; choose it in [0, 1)"),
        ({"augment": "flip"}, "augment is 'flip'; choose one of ['none', 'shift', 'flip_shift']"),
    ],
)
def test_options_out_of_range_are_refused(
    data: Splits, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AutopruneError, match=re.escape(message)):
        Classification(data, **options)


def test_data_of_another_kind_is_refused() -> None:
    with pytest.raises(AutopruneError, match=r"one int64 label a sample; the targets are torch.fl"):
        Classification(splits_of(torch.zeros(3, 2), torch.zeros(3)))
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(AutopruneError, match=r"needs float32 or uint8 inputs; they are int64"):
        Classification(splits_of(torch.zeros(3, 2, dtype=torch.int64), labels))
    with pytest.raises(AutopruneError, match=r"needs images .* the inputs are \[3, 2\]; choose"):
        Classification(splits_of(torch.zeros(3, 2), labels), augment="shift")


def test_a_network_with_too_few_classes_is_refused() -> None:
    task = Classification(splits_of(torch.zeros(3, 2), torch.tensor([0, 1, 2])))
    message = r"labels lie in 0..2 and the network scores 2 classes; set the model's num_classes"
    with pytest.raises(AutopruneError, match=message):
        task.evaluate(Scores(), task.batches("val"))
    with pytest.raises(AutopruneError, match=message):
        task.loss(Scores(), next(iter(task.batches("train"))))


def test_outputs_of_another_shape_are_refused(data: Splits) -> None:
    task = Classification(data, batch_size=3)
    batch = next(iter(task.batches("val")))
    with pytest.raises(AutopruneError, match=r"needs scores \[3, classes\] .* returned \[3, 1, 8"):
        task.loss(nn.Identity(), batch)

    class Tuple(nn.Module):
        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor]:
            return (inputs,)

    with pytest.raises(AutopruneError, match="it returned tuple; let forward return one row"):
        task.loss(Tuple(), batch)


def test_no_batches_are_refused(data: Splits) -> None:
    with pytest.raises(AutopruneError, match="no sample to evaluate on; give at least one batch"):
        Classification(data).evaluate(Scores(), [])
