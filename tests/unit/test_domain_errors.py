"""Every error the domain raises: rule, value and remedy in its message."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.errors import AutopruneError, FaultsError, unknown
from autoprune.domain.objective import (
    Constraint,
    Direction,
    Goal,
    Metric,
    Objective,
    build_goal,
)
from autoprune.domain.space import Axis, Group, PruningSpec, SearchSpace
from autoprune.domain.trial import Cause, Measurement, Speedup, TrialError

GROUP = Group("conv", "channels", 64, step=8)
AXIS = Axis(GROUP, 8, 64)
SPACE = SearchSpace((AXIS,), criteria=("l1", "l2"))
ACCURACY = Objective("accuracy", Direction.MAX)
TASK = (Metric("accuracy"),)


def speedup(ratio: float = 2.0, low: float = 1.9, noise: float = 0.1) -> Speedup:
    return Speedup(
        ratio,
        low,
        high=2.1,
        baseline_ms=2.0,
        candidate_ms=1.0,
        samples=9,
        runtime="eager",
        device="cpu",
        noise=noise,
    )


def goal(names: list[str], **more: Any) -> Goal:
    return build_goal(names, TASK, {"accuracy": 0.9, "macs": 100.0}, **more)


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "group size": (lambda: Group("a", "channels", 0), "group 'a' has 0 units; it needs at least 1"),
    "group step": (lambda: Group("a", "channels", 4, step=0), "has step 0; choose 1 or more"),
    "axis bounds": (
        lambda: Axis(GROUP, 10, 65),
        "group 'conv': bounds 10..65 of 64 units; choose 1 <= low <= high <= 64",
    ),
    "axis step": (
        lambda: Axis(GROUP, 9, 15),
        "no multiple of its step 8 lies in 9..15 of 64 units; widen the bounds or lower the step",
    ),
    "spec pairs": (lambda: PruningSpec(None), "a spec keeps pairs of a group and its units"),
    "spec units": (
        lambda: PruningSpec.of({"a": 2.0}),  # type: ignore[dict-item]
        "a spec keeps whole numbers of units, got {'a': 2.0}; round them",
    ),
    "spec order": (
        lambda: PruningSpec((("b", 1), ("a", 1))),
        "names each group once, in sorted order, got ['b', 'a']; use PruningSpec.of",
    ),
    "spec twice": (lambda: PruningSpec((("a", 1), ("a", 2))), "got ['a', 'a']"),
    "no axis": (lambda: SearchSpace(()), "has no group; nothing could be pruned"),
    "same names": (
        lambda: SearchSpace((AXIS, AXIS)),
        "group names must be unique, got ['conv', 'conv']",
    ),
    "no criterion": (
        lambda: SearchSpace((AXIS,), criteria=()),
        "name at least one criterion, one recovery and one precision",
    ),
    "point length": (
        lambda: SPACE.decode([0.5]),
        "a point of this space has 2 numbers, got 1",
    ),
    "point NaN": (lambda: SPACE.decode([np.nan, 0.5]), "is made of numbers, got NaN"),
    "ratio": (lambda: SPACE.uniform(1.5), "a kept ratio lies in [0, 1], got 1.5"),
    "other groups": (
        lambda: SPACE.check(PruningSpec.of({"fc": 8})),
        "the spec and the space differ in groups ['conv', 'fc']",
    ),
    "width": (
        lambda: SPACE.encode(PruningSpec.of({"conv": 0})),
        "group 'conv' keeps 0 of 64 units; choose between 8 and 64 in steps of 8",
    ),
    "criterion": (
        lambda: SPACE.check(PruningSpec.of({"conv": 8}, criterion="l3")),
        "criterion 'l3' is not one of ('l1', 'l2')",
    ),
    "recovery": (
        lambda: SPACE.check(PruningSpec.of({"conv": 8}, recovery="rest")),
        "recovery 'rest' is not one of ('finetune',)",
    ),
    "precision": (
        lambda: SPACE.check(PruningSpec.of({"conv": 8}, precision="int8")),
        "precision 'int8' is not one of ('fp32',)",
    ),
    "no precision": (
        lambda: SearchSpace((AXIS,), precisions=()),
        "name at least one criterion, one recovery and one precision",
    ),
    "bounds": (
        lambda: Bounds("conv*", min_kept=0.5, max_kept=0.2),
        "bounds of 'conv*': min_kept 0.5 and max_kept 0.2; choose 0 < min_kept <= max_kept <= 1",
    ),
    "bounds step": (lambda: Bounds(step=0), "bounds of '*': step 0; choose 1 or more"),
    "pattern": (
        lambda: build_space([GROUP], Bounds(), exclude=["fc*"]),
        "pattern 'fc*' matches no group; the groups are ['conv']",
    ),
    "override pattern": (
        lambda: build_space([GROUP], Bounds(), overrides=[Bounds("fc")]),
        "pattern 'fc' matches no group",
    ),
    "all excluded": (
        lambda: build_space([GROUP], Bounds(), exclude=["*"]),
        "space.exclude ['*'] leaves no group of ['conv'] to prune",
    ),
    "constraint": (
        lambda: Constraint("speedup", low=3, high=2),
        "constraint on 'speedup': 3..2; give a lower bound, an upper bound, or both with low <= h",
    ),
    "open constraint": (lambda: Constraint("macs"), "constraint on 'macs': -inf..inf"),
    "objectives": (
        lambda: Goal((ACCURACY, ACCURACY), (0.0, 0.0)),
        "name each objective once and at least one, got ['accuracy', 'accuracy']",
    ),
    "no objective": (lambda: Goal((), ()), "name each objective once and at least one, got []"),
    "reference length": (
        lambda: Goal((ACCURACY,), (0.0, 1.0)),
        "has 2 values for 1 objectives; give one value an objective",
    ),
    "reference": (
        lambda: Goal((ACCURACY,), (float("nan"),)),
        "the reference point (nan,) must be of finite numbers",
    ),
    "no metric": (
        lambda: build_goal(["main"], (), {}),
        "the task has no metric; name at least one in its `metrics`",
    ),
    "metric": (
        lambda: goal(["main", "speedpu"]),
        "metric 'speedpu' is not known; did you mean 'speedup'? Otherwise choose from ['accuracy',",
    ),
    "constrained metric": (
        lambda: goal(["main"], constraints=[Constraint("mac", high=1.0)]),
        "metric 'mac' is not known; did you mean 'macs'?",
    ),
    "reference of none": (
        lambda: goal(["main", "speedup"], reference={"macs": 5.0}),
        "reference names ['macs'], which are no objectives; choose from ['accuracy', 'speedup']",
    ),
    "baseline": (
        lambda: goal(["main", "peak_memory_mb"]),
        "objective 'peak_memory_mb' was not measured of the baseline, which has "
        "['accuracy', 'macs']; leave it out or give its reference",
    ),
    "speed": (lambda: speedup(ratio=float("inf")), "speed must be positive and finite"),
    "noise": (lambda: speedup(noise=float("nan")), "noise is finite and not negative, got nan"),
    "interval": (
        lambda: speedup(ratio=1.5),
        "a speedup lies inside its interval: 1.9 <= 1.5 <= 2.1",
    ),
    "measurement": (
        lambda: Measurement({"accuracy": float("nan"), "macs": 1.0}),
        "a measurement holds finite numbers only, got {'accuracy': nan}",
    ),
    "seconds": (
        lambda: Measurement({}, seconds={"prune": float("inf")}),
        "a measurement holds finite numbers only, got {'seconds of prune': inf}",
    ),
}


@pytest.mark.parametrize(("act", "message"), CASES.values(), ids=CASES)
def test_message(act: Callable[[], object], message: str) -> None:
    with pytest.raises(AutopruneError, match=re.escape(message)):
        act()


def test_unknown_without_a_near_miss() -> None:
    error = unknown("sampler", "zebra", ["tpe", "gp"])
    assert str(error) == "sampler 'zebra' is not known; choose from ['gp', 'tpe']"


def test_faults_come_together() -> None:
    error = FaultsError(["one", "two"])
    assert error.faults == ("one", "two")
    assert str(error) == "one\ntwo"


def test_a_trial_error_has_its_cause() -> None:
    assert TrialError(Cause.GRAPH, "no graph").cause is Cause.GRAPH


def test_goal_by_default() -> None:
    """The edge of what anyone would deploy: 5% of the baseline, its own MACs, no speed-up."""
    built = goal(["main", "speedup", "macs"], constraints=[Constraint("main", low=0.8)])
    assert built.reference == pytest.approx((0.855, 1.0, 100.0))
    assert built.maximise == (True, True, False)
    assert built.constraints == (Constraint("accuracy", low=0.8),)
    assert goal(["main"], reference={"main": 0.5}).reference == (0.5,)


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (Constraint("speedup", low=2), "speedup >= 2"),
        (Constraint("macs", high=1e6), "macs <= 1e+06"),
        (Constraint("params", 1, 5), "1 <= params <= 5"),
    ],
)
def test_a_constraint_reads_as_one_writes_it(constraint: Constraint, text: str) -> None:
    assert str(constraint) == text


def test_a_goal_needs_a_metric_of_the_task():
    accuracy = Metric("accuracy", Direction.MAX, 0.05)
    with pytest.raises(AutopruneError, match=r"hold no metric of the task.*add main \(accuracy\)"):
        build_goal(["speedup", "size_mb"], [accuracy], {"accuracy": 0.9, "size_mb": 3.0})
    found = build_goal(["speedup", "main"], [accuracy], {"accuracy": 0.9})
    assert found.main.metric == "accuracy"
