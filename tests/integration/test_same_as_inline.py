"""One slot, one seed: Ray Tune and the inline executor run the very same sweep."""

from functools import partial

import ray

from autoprune.domain.trial import Measurement, Observation
from autoprune.orchestration.executors.inline import InlineExecutor
from autoprune.orchestration.folders import JOURNAL_FILE
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.record import Asked, Told, read_journal
from autoprune.orchestration.request import Executor
from autoprune.orchestration.session import SweepResult, start
from autoprune.orchestration.sweep import Budget
from autoprune.searchers.optuna import OptunaSearcher
from tests.tiny import ray_slots, request

TRIALS = 10
# a population of four: the later proposals are bred from the accuracies of the earlier trials
NSGA2 = partial(OptunaSearcher, sampler="nsga2", options={"population_size": 4})


def run(output, executor: Executor) -> SweepResult:
    asked = request(
        output,
        executor=executor,
        searcher=NSGA2,
        budget=Budget(trials=TRIALS),
        seed=3,
    )
    return start(prepare(asked))


def found(observation: Observation) -> dict[str, float]:
    """What a trial found out, less what was timed."""
    assert isinstance(observation.outcome, Measurement), observation.outcome
    timed = ("speedup", "latency", "throughput")
    return {k: v for k, v in observation.outcome.metrics.items() if not k.startswith(timed)}


def test_one_slot_of_ray_tune_does_what_inline_does(tmp_path):
    results = [run(tmp_path / "inline", InlineExecutor()), run(tmp_path / "ray", ray_slots(1))]
    assert not ray.is_initialized(), "the executor leaves the cluster that it started"
    both = [read_journal(result.folder / JOURNAL_FILE).events for result in results]

    assert [type(event) for event in both[1]] == [type(event) for event in both[0]]
    assert len(both[0]) == 2 * TRIALS
    proposals = [[event.trial for event in events if isinstance(event, Asked)] for events in both]
    assert proposals[0] == proposals[1]
    assert len({trial.spec for trial in proposals[0]}) == TRIALS
    told = [[event.observation for event in events if isinstance(event, Told)] for events in both]
    outcomes = [list(map(found, observations)) for observations in told]
    assert outcomes[0] == outcomes[1]  # every metric, bit for bit
    assert len({outcome["accuracy"] for outcome in outcomes[0]}) > 1
    fronts = [[m.trial.number for m in result.view.front.members] for result in results]
    assert fronts[0] == fronts[1]
