"""Hypothesis strategies for the domain's facts."""

import math

from hypothesis import strategies as st

from autoprune.domain.objective import Constraint, Direction, Goal, Objective
from autoprune.domain.space import PRECISIONS, Axis, Group, PruningSpec, SearchSpace
from autoprune.domain.trial import Cause, Failure, Measurement, Observation, Speedup, Stage, Trial

names = st.text(min_size=1, max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-6, max_value=1e6)


@st.composite
def axes(draw: st.DrawFn, name: str = "group") -> Axis:
    size = draw(st.integers(1, 300))
    low = draw(st.integers(1, size))
    high = draw(st.integers(low, size))
    first = [step for step in range(1, high + 1) if math.ceil(low / step) * step <= high]
    step = draw(st.sampled_from(first if high < size else [*first, size]))
    return Axis(Group(name, draw(st.sampled_from(["channels", "neurons"])), size, step), low, high)


@st.composite
def spaces(draw: st.DrawFn, max_axes: int = 5) -> SearchSpace:
    unique = draw(st.lists(names, min_size=1, max_size=max_axes, unique=True))
    return SearchSpace(
        tuple(draw(axes(name)) for name in unique),
        criteria=tuple(draw(st.lists(names, min_size=1, max_size=3, unique=True))),
        recoveries=tuple(draw(st.lists(names, min_size=1, max_size=3, unique=True))),
        precisions=tuple(
            draw(st.lists(st.sampled_from(PRECISIONS), min_size=1, max_size=2, unique=True))
        ),
    )


@st.composite
def spaces_with_indices(draw: st.DrawFn) -> tuple[SearchSpace, tuple[int, ...]]:
    space = draw(spaces())
    return space, tuple(draw(st.integers(0, len(options) - 1)) for options in space.options)


specs = st.builds(
    PruningSpec.of,
    st.dictionaries(names, st.integers(1, 4096), min_size=1, max_size=6),
    criterion=names,
    recovery=names,
    precision=st.sampled_from(PRECISIONS),
)
trials = st.builds(Trial, st.integers(0, 10**6), specs, st.integers(0, 2**32 - 1))


@st.composite
def speedups(draw: st.DrawFn) -> Speedup:
    low, ratio, high = sorted(draw(st.tuples(positive, positive, positive)))
    return Speedup(
        ratio,
        low,
        high,
        baseline_ms=draw(positive),
        candidate_ms=draw(positive),
        samples=draw(st.integers(1, 1000)),
        runtime=draw(names),
        device=draw(names),
        noise=draw(st.floats(0, 10)),
        settled=draw(st.booleans()),
    )


measurements = st.builds(
    Measurement,
    st.dictionaries(names, finite, max_size=5),
    speedup=st.none() | speedups(),
    stopped_by=st.none() | names,
    seconds=st.dictionaries(st.sampled_from([s.value for s in Stage]), positive, max_size=3),
)
failures = st.builds(Failure, st.sampled_from(Stage), st.sampled_from(Cause), st.text())
outcomes = measurements | failures
observations = st.builds(Observation, trials, outcomes, host=st.text(), seconds=positive)


@st.composite
def constraints(draw: st.DrawFn, metric: str | None = None) -> Constraint:
    low, high = sorted(draw(st.tuples(finite, finite)))
    metric = draw(names) if metric is None else metric
    kind = draw(st.sampled_from(["low", "high", "both"]))
    if kind == "low":
        return Constraint(metric, low=low)
    return Constraint(metric, high=high) if kind == "high" else Constraint(metric, low, high)


@st.composite
def goals(draw: st.DrawFn) -> Goal:
    metrics = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    return Goal(
        tuple(Objective(metric, draw(st.sampled_from(Direction))) for metric in metrics),
        tuple(draw(finite) for _ in metrics),
        tuple(draw(st.lists(constraints(), max_size=3))),
    )
