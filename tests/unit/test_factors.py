"""Layers of low rank as two: which, with what weights, in recipes, and in a trial where it pays."""

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import SPEED_METRICS, Direction
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Cause, Measurement, Speedup, Trial, TrialError
from autoprune.evaluation import Progress, run_trial
from autoprune.evaluation.factoring import factored_where_faster
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.pruning.factors import Factor, factor_layers, low_ranks, put_factors
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.sparsity.plan import Sparsity
from autoprune.pruning.surgery import prune
from autoprune.tasks.protocol import Inputs
from tests.pruning_tasks import Blobs
from tests.random_networks import BATCH, nets
from tests.tiny import request

TASK = Blobs()
law = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


def lower(net: nn.Module, name: str, rank: int) -> None:
    """Leave a layer the best weight of a rank."""
    weight = net.get_parameter(f"{name}.weight")
    left, values, right = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    weight.data.copy_(best.view_as(weight))


def wide(seed: int = 0) -> nn.Sequential:
    """Two layers that would pay at rank 2: 16 to 12 units, 12 channels by 3 by 3 to 8."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 8, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 12),
            nn.ReLU(),
            nn.Linear(12, 4),
        ).eval()


def test_layers_of_low_rank_are_found_by_what_they_save() -> None:
    net = wide()
    before = low_ranks(net)
    lower(net, "3", 2)
    lower(net, "6", 3)
    assert [factor for factor in low_ranks(net) if factor not in before] == [
        Factor("3", 2),  # 2 (8 + 108) products for 8 times 108
        Factor("6", 3),  # 3 (12 + 32) for 12 times 32
    ]


@law
@given(nets)
def test_at_its_whole_rank_a_layer_computes_the_same(net: nn.Module) -> None:
    net = net.double()
    factors = [
        Factor(name, min(len(layer.weight), layer.weight[0].numel()))
        for name, layer in net.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.weight.dim() > 1
        if getattr(layer, "groups", 1) == 1
    ]
    with torch.no_grad():
        expected = net(BATCH.double())
        state = torch.get_rng_state()
        factor_layers(net, factors)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(net(BATCH.double()), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_two_layers_have_the_best_weight_of_their_rank(rank: int) -> None:
    net, best = wide(), wide()
    lower(best, "3", rank)
    lower(best, "6", rank)
    factor_layers(net, [Factor("3", rank), Factor("6", rank)])
    assert [type(module) for module in net[3]] == [nn.Conv2d, nn.Conv2d]
    assert net[3][0].stride == (2, 2)
    x = torch.randn(3, 1, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(net(x), best(x), rtol=1e-4, atol=1e-5)


def test_one_dimension_and_padding_modes_are_kept() -> None:
    layer = nn.Conv1d(4, 6, 3, padding=2, dilation=2, padding_mode="circular")
    net = nn.Sequential(layer)
    x = torch.randn(2, 4, 9)
    expected = net(x)
    factor_layers(net, [Factor("0", 6)])
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_weights_that_are_not_finite_have_no_rank() -> None:
    net = wide()
    net[3].weight.data[0, 0] = torch.nan
    with pytest.raises(TrialError, match="layer '3' has weights that are not finite") as found:
        low_ranks(net)
    assert found.value.cause is Cause.NAN_LOSS


def test_what_others_share_or_groups_divide_stays_one_layer() -> None:
    shared = nn.Linear(8, 8)
    tied = nn.Linear(8, 8)
    tied.weight = shared.weight
    net = nn.Sequential(shared, tied, nn.Conv2d(8, 8, 3, groups=2))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert low_ranks(net) == ()
    for name in ("0", "2", "9"):
        with pytest.raises(AutopruneError, match=f"layer '{name}' cannot be factored; a convo"):
            put_factors(net, [Factor(name, 1)])


@pytest.mark.parametrize("rank", [0, -1, 9])
def test_a_rank_that_no_weight_has_is_refused(rank: int) -> None:
    with pytest.raises(AutopruneError, match=f"'3' is factored at rank {rank}; choose between 1"):
        put_factors(wide(), [Factor("3", rank)])


def factored() -> tuple[nn.Module, Recipe]:
    net = wide()
    example = TASK.example()
    pruned = prune(net, example, PruningSpec.of({"0": 9, "6": 8}))
    factors = (Factor("3", 2), Factor("6", 4))
    factor_layers(pruned.model, factors)
    return pruned.model, replace(pruned.recipe, factors=factors)


def test_a_recipe_rebuilds_factored_layers_bit_for_bit() -> None:
    model, recipe = factored()
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    rebuilt = rebuild(again, model.state_dict(), model=wide(seed=5)).eval()
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(rebuilt(x), model(x))
    rebuilt(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in rebuilt.parameters())


def test_a_recipe_without_factors_is_written_and_read_as_before() -> None:
    _, recipe = factored()
    plain = replace(recipe, factors=()).to_json()
    assert "factors" not in plain
    assert Recipe.from_json(plain).factors == ()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({}, "'factors' is a dict, not a list"),
        (["3"], "a factored layer is a str, not a dict"),
        ([{"layer": "3"}], "'rank' is missing"),
        ([{"layer": 3, "rank": 1}], "'layer' is a int, not a str"),
        ([{"layer": "3", "rank": True}], "'rank' is a bool, not a int"),
        ([{"layer": "3", "rank": 1}] * 2, "a recipe factors a layer twice"),
        ([{"layer": "3", "rank": 10**9}], "at rank 1000000000; choose between 1 and 8"),
        ([{"layer": "3.0", "rank": 1}, {"layer": "3", "rank": 1}], "'3.0' cannot be factored"),
        ([{"layer": str(i), "rank": 1} for i in range(100_001)], "100001 factored layers; a"),
    ],
)
def test_hostile_factors_are_refused(factors: Any, message: str) -> None:
    model, recipe = factored()
    plain = recipe.to_json() | {"factors": factors}
    with pytest.raises(AutopruneError, match=message):
        rebuild(Recipe.from_json(plain), model.state_dict(), model=wide())


class ByParameters:
    """A meter by which a network takes the longer the more parameters it has."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        return SPEED_METRICS

    def check(self, model: nn.Module, example: Inputs) -> None:
        model(example)

    def measure(self, candidate: nn.Module, baseline: nn.Module, example: Inputs) -> Speedup:
        candidate(example)
        times = [float(sum(p.numel() for p in net.parameters())) for net in (baseline, candidate)]
        ratio = times[0] / times[1]
        return Speedup(ratio, ratio, ratio, *times, 1, "formula", "none", noise=0.0)


RECOVERY = Recovery(
    FitPlan(epochs=1),
    sparsity=Sparsity(epochs=3, method="low_rank", strength=0.01, budget="macs", rank_strength=2.0),
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("outputs")
    recoveries = {"low_rank": RECOVERY}
    return prepare(request(folder, model=wide(), meter=ByParameters(), recoveries=recoveries))


def test_a_layer_stays_one_where_two_are_no_faster(prepared: Prepared) -> None:
    net = wide()
    lower(net, "3", 2)
    model, factors = factored_where_faster(net, prepared.context)
    assert Factor("3", 2) in factors
    assert isinstance(net[3], nn.Conv2d)
    assert isinstance(model.get_submodule("3"), nn.Sequential)

    class Slower(ByParameters):
        def measure(self, candidate: nn.Module, baseline: nn.Module, example: Inputs) -> Speedup:
            return super().measure(baseline, candidate, example)

    slower = replace(prepared.context, meter=Slower())
    assert factored_where_faster(net, slower)[1] == ()


def test_a_network_that_reads_its_layers_itself_keeps_them(prepared: Prepared) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)
            nn.init.zeros_(self.layer.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x.flatten(1), self.layer.weight)

    net = Reads()
    assert low_ranks(net) == (Factor("layer", 1),)
    assert factored_where_faster(net, prepared.context)[1] == ()


def test_a_trial_factors_what_is_of_low_rank_and_is_measured_anew(prepared: Prepared) -> None:
    spec = replace(prepared.plan.space.uniform(0.75), recovery="low_rank")
    heard: list[Progress] = []
    found = run_trial(Trial(1, spec, 5), prepared.context, report=heard.append).outcome
    assert isinstance(found, Measurement), found
    last = heard[-1].snapshot
    assert last is not None
    assert found.metrics["sparsity_factored"] == len(last.recipe.factors) > 0
    before = next(p.metrics for p in heard if "speedup" in p.metrics)
    assert found.metrics["speedup"] > before["speedup"]
    assert found.metrics["params"] < heard[0].metrics["params"]
    assert found.speedup is not None
    assert found.speedup.ratio == found.metrics["speedup"]
    weights = copy.deepcopy(dict(last.state_dict))
    recipe = Recipe.from_json(json.loads(json.dumps(last.recipe.to_json())))
    rebuilt = rebuild(recipe, weights, model=wide(seed=8)).eval()
    with torch.no_grad():
        assert torch.equal(rebuilt(TASK.example()), last.outputs[0])


def test_going_on_with_a_factored_network(prepared: Prepared) -> None:
    two = {"low_rank": replace(RECOVERY, fit=FitPlan(epochs=2))}
    context = replace(prepared.context, recoveries=two)
    trial = Trial(1, replace(prepared.plan.space.uniform(0.75), recovery="low_rank"), 5)
    heard: list[Progress] = []
    kept: list[dict[str, torch.Tensor]] = []

    def keep(progress: Progress) -> None:
        heard.append(progress)
        state = progress.snapshot.state_dict if progress.snapshot else {}
        kept.append({name: tensor.clone() for name, tensor in state.items()})

    run_trial(trial, context, report=keep)
    middle = next(i for i, p in enumerate(heard) if p.epoch == 4)
    snapshot = heard[middle].snapshot
    assert snapshot is not None
    assert snapshot.recipe.factors
    resumed: list[Progress] = []
    run_trial(
        trial,
        context,
        resume=replace(snapshot, state_dict=kept[middle]),
        report=resumed.append,
    )
    assert resumed[-1].snapshot is not None
    end = resumed[-1].snapshot.state_dict
    assert end.keys() == kept[-1].keys()
    assert all(torch.equal(end[name], kept[-1][name]) for name in end)
