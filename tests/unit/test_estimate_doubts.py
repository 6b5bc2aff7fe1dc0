"""Where pruning is a bad idea: every rule speaks at its limit, and not before it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autoprune.domain.latency import Prediction
from autoprune.domain.objective import Direction, Goal, Objective
from autoprune.domain.profile import Profile, ProfilePoint
from autoprune.domain.space import Axis, Group, PruningSpec, SearchSpace
from autoprune.domain.trial import Speedup
from autoprune.models import mobilenet
from autoprune.orchestration.baseline import late_fall
from autoprune.orchestration.planning import make_plan
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.understanding.doubts import (
    alone_fall,
    network_doubts,
    ratio_doubts,
)
from tests.pruning_tasks import Blobs
from tests.tiny import request

SPEED = Speedup(1.0, 0.9, 1.1, 1.0, 1.0, 10, "eager", "cpu", 0.1)
GROUPS = (Group("a", "channels", 10), Group("b", "channels", 10))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    asked = request(tmp_path_factory.mktemp("sweep"), task=Blobs(samples=400))
    found = prepare(asked)
    return replace(found, metrics={**found.metrics, "params": 2e5, "latency_ms": 1.0})


def with_metrics(prepared: Prepared, **metrics: float) -> Prepared:
    return replace(prepared, metrics={**prepared.metrics, **metrics})


def rules(prepared: Prepared) -> dict[str, str]:
    return {doubt.rule: doubt.text for doubt in network_doubts(prepared)}


def test_nothing_speaks_against_a_network_that_is_as_it_should_be(prepared: Prepared) -> None:
    assert network_doubts(prepared) == ()


def test_tiny_models(prepared: Prepared) -> None:
    few = rules(with_metrics(prepared, params=99_999.0))
    assert few["tiny model"].startswith("100k parameters, fewer than 100k: what a call costs")
    fast = rules(with_metrics(prepared, latency_ms=0.049))
    assert fast["tiny model"].startswith("0.049 ms a call, less than 0.05: ")
    assert rules(with_metrics(prepared, params=1e5, latency_ms=0.05)) == {}


def test_mobile_optimised_models(prepared: Prepared) -> None:
    net = mobilenet(width=0.5, in_channels=1)
    asked = request(prepared.request.output, task=Blobs(samples=400), model=net)
    plan = make_plan(asked)
    mobile = replace(
        prepared,
        request=asked,
        plan=plan,
        baseline=replace(prepared.baseline, model=net),
        metrics={**prepared.metrics, "macs": plan.costs["macs"]},
    )
    told = rules(mobile)["mobile-optimised"]
    assert "% of the MACs are in depthwise-separable convolutions, more than 50%: " in told
    assert "meter=onnxruntime 'precisions=[fp32,int8]'" in told


def test_little_data(prepared: Prepared) -> None:
    of_params = rules(with_metrics(prepared, params=4_000_001.0))
    assert of_params["little data"].startswith("400 samples in train for 4M parameters, fewer")
    assert "one for every 10,000: " in of_params["little data"]
    few = replace(prepared, request=replace(prepared.request, task=Blobs(samples=196)))
    assert rules(few)["little data"].startswith("49 samples a class in train, fewer than 50: ")
    enough = replace(prepared, request=replace(prepared.request, task=Blobs(samples=200)))
    assert rules(enough) == {}


class Wordless(Blobs):
    """Its batches tell nothing of how many samples they hold."""

    def batches(self, split: str, *, seed: int | None = None) -> list[Any]:
        return ["words"]


class Unlabelled(Blobs):
    """Its batches have no labels."""

    def batches(self, split: str, *, seed: int | None = None) -> list[Any]:
        return [(self.x, torch.zeros(len(self.x), 3))]


@pytest.mark.parametrize("task", [Wordless(), Unlabelled()])
def test_data_that_do_not_tell_are_not_judged(prepared: Prepared, task: Blobs) -> None:
    assert rules(replace(prepared, request=replace(prepared.request, task=task))) == {}


@pytest.mark.parametrize(
    ("losses", "share"),
    [
        ((1.0, 0.8, 0.6, 0.4, 0.2), 0.25),
        ((1.0, 0.3, 0.2, 0.11, 0.1), pytest.approx(1 / 90)),
        (tuple(10.0 - n for n in range(10)), pytest.approx(2 / 9)),
        ((1.0, 0.5, 0.2, 0.1), None),
        ((1.0, 0.5, 0.2, 0.1, 1.0), None),
        ((), None),
    ],
)
def test_the_share_of_the_fall_that_came_last(losses: Any, share: Any) -> None:
    assert late_fall(losses) == share


def test_unconverged_baselines(prepared: Prepared) -> None:
    falling = replace(prepared, baseline=replace(prepared.baseline, losses=(5.0, 4, 3, 2, 1)))
    told = rules(falling)["unconverged baseline"]
    assert told.startswith("the last fifth of its training made 25% of the fall of its loss, more")
    assert told.endswith("raise baseline.fit.epochs")
    doubted = replace(falling, doubts=("it was still improving",))
    (doubt,) = network_doubts(doubted)
    assert str(doubt) == "unconverged baseline: it was still improving"


def test_baselines_of_too_few_epochs(prepared: Prepared) -> None:
    def trained(epochs: int) -> Prepared:
        return replace(prepared, baseline=replace(prepared.baseline, history=(0.9,) * epochs))

    few = rules(trained(4))["unconverged baseline"]
    assert few.startswith("too few epochs to tell whether it had converged (4, fewer than 5): ")
    assert few.endswith("raise baseline.fit.epochs")
    assert rules(trained(5)) == rules(trained(0)) == {}


def profile(accuracy: dict[str, dict[int, float]]) -> Profile:
    """Groups of ten units that have the accuracy where they are cut alone to a width."""
    points = tuple(
        ProfilePoint({name: width}, SPEED, {"accuracy": value, "loss": 1.0 - value})
        for name, widths in accuracy.items()
        for width, value in widths.items()
    )
    return Profile(GROUPS, {"accuracy": 0.9, "loss": 0.1}, points)


FASTER = Prediction(2.0, 1.01, 4.0, unseen=8)
MAIN = Objective("accuracy", Direction.MAX)


def test_what_a_group_costs_alone_lies_on_lines_between_what_was_measured() -> None:
    known = profile({"a": {8: 0.8, 4: 0.4}})
    falls = [alone_fall(known, GROUPS[0], width, MAIN) for width in (10, 9, 8, 6, 4, 1)]
    assert falls == pytest.approx([0.0, 0.05, 0.1, 0.3, 0.5, 0.5])
    assert alone_fall(known, GROUPS[1], 5, MAIN) is None
    least = Objective("loss", Direction.MIN)
    assert alone_fall(known, GROUPS[0], 6, least) == pytest.approx(0.3)


def facts(low: int = 1) -> Any:
    """What the rules about ratios look at: a space, and a goal that gives away 0.05."""
    goal = Goal((MAIN, Objective("speedup", Direction.MAX)), (0.85, 1.0))
    space = SearchSpace(tuple(Axis(group, low, group.size) for group in GROUPS))
    return SimpleNamespace(goal=goal, plan=SimpleNamespace(space=space))


def test_ratios_beyond_the_cliff() -> None:
    known = profile({"a": {5: 0.84, 2: 0.2}, "b": {5: 0.86, 2: 0.7}})
    half = PruningSpec.of({"a": 5, "b": 5})
    (doubt,) = ratio_doubts(0.5, half, facts(), known, FASTER)
    assert str(doubt).startswith(
        "beyond the cliff: at a ratio of 0.5 1 of 2 groups, cut alone, cost more accuracy than the "
        "0.05 that anyone would give (the worst, a, 0.06, before recovery); choose a smaller ratio"
    )
    (doubt,) = ratio_doubts(0.8, PruningSpec.of({"a": 2, "b": 2}), facts(), known, FASTER)
    assert "2 of 2 groups" in doubt.text
    assert "the worst, a, 0.7" in doubt.text
    assert ratio_doubts(0.2, PruningSpec.of({"a": 8, "b": 8}), facts(), known, FASTER) == ()


def test_a_space_that_allows_less_than_was_asked() -> None:
    known = profile({})
    spec = facts(low=5).plan.space.uniform(0.2)
    (doubt,) = ratio_doubts(0.8, spec, facts(low=5), known, FASTER)
    assert str(doubt) == (
        "less than asked: at a ratio of 0.8 the space lets 50% of the units go; lower "
        "space.min_kept or space.step"
    )
    assert (
        ratio_doubts(0.5, facts(low=5).plan.space.uniform(0.5), facts(low=5), known, FASTER) == ()
    )


@pytest.mark.parametrize(
    ("speedup", "told"),
    [
        (
            Prediction(0.46, 0.31, 0.69, unseen=8),
            "slower: at a ratio of 0.3 the network is predicted to be slower than the unpruned one "
            "(0.46x, 95% interval 0.31 to 0.69); choose a larger ratio, or widths that kernels are "
            "made for (space.step=16)",
        ),
        (
            Prediction(1.0, 0.75, 1.33, unseen=8),
            "no certain gain: at a ratio of 0.3 the network may be no faster than the unpruned one "
            "(1.00x, 95% interval 0.75 to 1.33); choose a larger ratio, or more checks, which may "
            "narrow the interval",
        ),
        (FASTER, None),
        (Prediction(0.5, None, None, unseen=1), None),
    ],
)
def test_predictions_that_promise_no_speed(speedup: Prediction, told: str | None) -> None:
    spec = PruningSpec.of({"a": 7, "b": 7})
    found = [str(doubt) for doubt in ratio_doubts(0.3, spec, facts(), profile({}), speedup)]
    assert found == ([] if told is None else [told])
