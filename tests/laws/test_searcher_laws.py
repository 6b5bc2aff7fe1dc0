"""Laws of searchers that hold for whatever they are told.

Agents are left out: what was told before is what their networks were trained on.
"""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.domain.protocols import SearcherFactory
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Cause, Failure, Measurement, Observation, Outcome, Stage, Trial
from autoprune.searchers import FrontierSearcher, OptunaSearcher, RandomSearcher, UniformSearcher
from tests.contracts.searcher_contract import GOAL, SPACE, harder

FACTORIES: dict[str, SearcherFactory] = {
    "uniform": UniformSearcher,
    "random": RandomSearcher,
    "frontier": FrontierSearcher,
    "nsga2": partial(OptunaSearcher, options={"population_size": 4}),
    "nsga3": partial(OptunaSearcher, sampler="nsga3", options={"population_size": 4}),
    "tpe": partial(OptunaSearcher, sampler="tpe", options={"n_startup_trials": 4}),
}
METRICS = st.fixed_dictionaries({"accuracy": st.floats(0.5, 0.9), "speedup": st.floats(1.0, 9.0)})
OUTCOMES = st.one_of(
    st.just(Failure(Stage.RECOVER, Cause.NAN_LOSS, "the loss is NaN")),
    st.builds(Measurement, METRICS),
    st.builds(Measurement, METRICS, stopped_by=st.just("the ladder")),
)
EARLIER = st.lists(st.lists(OUTCOMES, max_size=2), min_size=14, max_size=14)


def proposals(factory: SearcherFactory, earlier: list[list[Outcome]]) -> list[PruningSpec]:
    """What is asked where trial by trial `earlier` outcomes are told before the last one."""
    searcher, asked = factory(SPACE, GOAL, 3), []
    for number, outcomes in enumerate(earlier):
        trial = Trial(number, searcher.ask(number), number)
        asked.append(trial.spec)
        for rung, outcome in enumerate(outcomes):
            searcher.tell(Observation(trial, outcome, rung=rung))
        searcher.tell(Observation(trial, harder(trial.spec)))
    return asked


@pytest.mark.parametrize("name", FACTORIES)
@given(earlier=EARLIER)
@settings(max_examples=15, deadline=None)
def test_what_was_told_before_the_last_leaves_no_trace(
    name: str, earlier: list[list[Outcome]]
) -> None:
    factory = FACTORIES[name]
    assert proposals(factory, earlier) == proposals(factory, [[] for _ in earlier])
