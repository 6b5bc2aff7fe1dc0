import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.domain.errors import AutopruneError, FaultsError
from autoprune.domain.space import PruningSpec
from autoprune.pruning.distill import Distillation, Distilled
from autoprune.pruning.recover import FitPlan, fit
from autoprune.pruning.surgery import prune
from tests.criteria_tasks import Noise
from tests.pruning_tasks import Blobs, OwnFit, small_net
from tests.unit.test_blocks import TOKENS, WIDTH, layers
from tests.unit.test_concat import inception

TASK = Blobs()
BATCH = TASK.batches("train")[0]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_student_that_agrees_pays_its_task_alone():
    net = small_net().eval()
    distilled = Distilled(TASK, copy.deepcopy(net), Distillation(weight=0.25, temperature=3.0))
    assert distilled.loss(net, BATCH).item() == pytest.approx(0.75 * TASK.loss(net, BATCH).item())
    assert hooks(net) == 0
    assert hooks(distilled.teacher) == 0


def test_the_divergence_is_that_of_two_distributions():
    """Two classes, student even and teacher at odds of e^(2/T): T^2 sum p log(2 p)."""

    class Fixed(nn.Module):
        def __init__(self, odds: float) -> None:
            super().__init__()
            self.odds = nn.Parameter(torch.tensor([odds, 0.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.odds.expand(len(x), 2)

    class Free(Blobs):
        def loss(self, model, batch):
            return 0.0 * model(batch[0]).sum()

    for temperature in (1.0, 4.0):
        plan = Distillation(weight=1.0, temperature=temperature)
        loss = Distilled(Free(), Fixed(2.0), plan).loss(Fixed(0.0), BATCH)
        p = 1 / (1 + math.exp(-2.0 / temperature))
        expected = temperature**2 * sum(q * math.log(2 * q) for q in (p, 1 - p))
        assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (5, 7, 3), (5, 3, 2, 2)])
def test_classes_are_found_in_scores_of_every_shape(shape):
    class Scores(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            self.scores = nn.Parameter(torch.randn(shape, generator=generator))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.scores.sum(), "logits": self.scores}

    class Free(Blobs):
        def loss(self, model, batch):
            return 0.0 * model(batch[0])["loss"]

    student, teacher = Scores(0), Scores(1)
    axis = 2 if len(shape) == 3 else 1
    found = Distilled(Free(), teacher, Distillation(1.0, 1.0)).loss(student, BATCH)
    p = teacher.scores.softmax(axis)
    log = student.scores.log_softmax(axis)
    expected = (p * (p.log() - log)).sum(axis).mean()
    assert torch.allclose(found, expected, atol=1e-6)


def test_without_weight_it_is_the_task():
    net = small_net().eval()
    distilled = Distilled(TASK, small_net(seed=5), Distillation(weight=0.0))
    assert distilled.loss(net, BATCH).item() == TASK.loss(net, BATCH).item()


def test_gradients_reach_the_student_alone():
    net, teacher = small_net(), small_net(seed=5)
    Distilled(TASK, teacher, Distillation(weight=1.0)).loss(net, BATCH).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training


def test_hints_compare_the_units_that_are_left():
    net = small_net(dropout=0.0).eval()
    pruned = prune(net, TASK.example(), PruningSpec.of({"0": 3, "5": 4}))
    plan = Distillation(weight=0.0, hints=2.0, hint_layers=("0",))
    distilled = Distilled(TASK, net, plan, cuts=pruned.recipe.history)
    task = TASK.loss(pruned.model, BATCH).item()
    assert distilled.loss(pruned.model, BATCH).item() == pytest.approx(task)
    with torch.no_grad():
        pruned.model[0].weight *= 0
        pruned.model[0].bias *= 0
    task = TASK.loss(pruned.model, BATCH).item()
    assert distilled.loss(pruned.model, BATCH).item() == pytest.approx(task + 2.0)
    both = Distillation(weight=0.0, hints=2.0, hint_layers=("0", "5"))
    distilled = Distilled(TASK, net, both, cuts=pruned.recipe.history)
    assert hooks(net) == hooks(pruned.model) == 0
    assert math.isfinite(distilled.loss(pruned.model, BATCH).item())


class LastAxis(nn.Module):
    """Linear layers over the channels of images that come last, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x.permute(0, 2, 3, 1)).relu()).mean((1, 2))


def series() -> nn.Module:
    layers = (nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 6, 3, padding=1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("net", "layer", "shape"), [(LastAxis(), "inner", (3, 5, 5)), (series(), "0", (3, 7))]
)
def test_hints_compare_units_wherever_a_layer_puts_them(net, layer, shape):
    task, net = Noise(shape), net.eval()
    batch = task.batches("train")[0]
    pruned = prune(net, task.example(), PruningSpec.of({layer: 3}))
    plan = Distillation(weight=0.0, hints=1.0, hint_layers=(layer,))
    distilled = Distilled(task, copy.deepcopy(net), plan, cuts=pruned.recipe.history)
    told = task.loss(pruned.model, batch).item()
    assert distilled.loss(pruned.model, batch).item() == pytest.approx(told)


@pytest.mark.parametrize(
    ("net", "shape", "group", "hinted"),
    [
        (layers(), (TOKENS, WIDTH), "layers.0:blocks", "layers.*.inner"),
        (inception(), (3, 9, 9), "2.one.0:branches", "2.*"),
    ],
)
def test_layers_that_are_gone_give_no_hints(net, shape, group, hinted):
    task = Noise(shape, classes=2)
    batch = task.batches("train")[0]
    pruned = prune(net, task.example(), PruningSpec.of({group: 2}))
    plan = Distillation(weight=0.0, hints=1.0, hint_layers=(hinted,))
    distilled = Distilled(task, copy.deepcopy(net), plan, cuts=pruned.recipe.history)
    assert math.isfinite(distilled.loss(pruned.model, batch).item())
    whole = Distilled(task, copy.deepcopy(net), plan)
    assert whole.loss(net, batch).item() == pytest.approx(task.loss(net, batch).item())


def test_an_attention_gives_no_hint_of_a_layer_that_it_never_calls():
    net = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    plan = Distillation(hints=1.0, hint_layers=("*out_proj",))
    with pytest.raises(AutopruneError, match="matches no layer; the layers are linear1, linear2"):
        Distilled(TASK, net, plan)


def test_training_by_it_brings_the_student_to_its_teacher():
    teacher = small_net(dropout=0.0)
    list(fit(teacher, TASK, FitPlan(epochs=10), seed=0))
    student = small_net(dropout=0.0, seed=7)

    def apart() -> float:
        student.eval()
        return float(F.mse_loss(student(TASK.x).softmax(1), teacher(TASK.x).softmax(1)))

    distilled = Distilled(TASK, teacher, Distillation(weight=1.0, temperature=2.0))
    before = apart()
    list(fit(student, distilled, FitPlan(epochs=30, lr=0.1), seed=0))
    assert apart() < before / 4
    assert distilled.metrics == TASK.metrics
    assert torch.equal(distilled.example(), TASK.example())
    assert distilled.evaluate(student, distilled.batches("val"))["accuracy"] > 0.5


class Regression(Blobs):
    def loss(self, model, batch):
        return model(batch[0])[:, :1].square().mean()


class Inside(Blobs):
    def loss(self, model, batch):
        return F.cross_entropy(model[7](model[:7](batch[0])), batch[1])


def test_tasks_that_no_teacher_can_help():
    net = small_net()
    with pytest.raises(AutopruneError, match=r"a fit of its own.*; choose a recovery without dist"):
        Distilled(OwnFit(), net, Distillation())
    with pytest.raises(AutopruneError, match="does not call the network itself"):
        Distilled(Inside(), net, Distillation()).loss(small_net(), BATCH)
    one = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    with pytest.raises(AutopruneError, match=r"two classes or more.*\[\[16, 1\]\]"):
        Distilled(Regression(), one, Distillation()).loss(copy.deepcopy(one), BATCH)
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(AutopruneError, match=r"the student scores \[16, 4\] and the teacher"):
        Distilled(TASK, other, Distillation()).loss(net, BATCH)


def test_a_pattern_without_a_layer():
    plan = Distillation(hints=1.0, hint_layers=("conv*",))
    with pytest.raises(AutopruneError, match=r"'conv\*' matches no layer; the layers are 0, 1"):
        Distilled(TASK, small_net(), plan)


def test_layers_that_are_never_called_give_no_hints():
    net = small_net()
    net.add_module("spare", nn.Identity())
    net.spare.weighted = nn.Linear(2, 2)
    only = Distillation(hints=1.0, hint_layers=("spare.*",))
    message = "hint_layers: the network never calls spare.weighted; choose layers that it calls"
    with pytest.raises(AutopruneError, match=message):
        Distilled(TASK, copy.deepcopy(net), only).loss(net, BATCH)
    among = Distillation(hints=1.0, hint_layers=("spare.*", "0"))
    assert math.isfinite(Distilled(TASK, copy.deepcopy(net), among).loss(net, BATCH).item())


def test_values_out_of_range_are_told_together():
    with pytest.raises(FaultsError) as found:
        Distillation(weight=2.0, temperature=0.0, hints=1.0)
    assert found.value.faults == (
        "weight is 2.0; choose a number in [0, 1]",
        "temperature is 0.0; choose a positive number",
        "hints is 1 and hint_layers is []; give both, or neither",
    )
