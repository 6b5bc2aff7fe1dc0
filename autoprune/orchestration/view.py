"""What a sweep looks like at one moment: the one input of every report about it."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Goal
from autoprune.domain.pareto import ParetoFront
from autoprune.domain.space import SearchSpace
from autoprune.domain.trial import Observation
from autoprune.orchestration.history import STATES, LastTold, state_of
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.record import JournalError, Lost, Record, last_told


@dataclass(frozen=True)
class SweepView:
    """A sweep's facts and its observations so far, in order of arrival.

    `baseline` holds the unpruned network's metrics under the same names as a trial's
    (``accuracy``, ``latency_ms``, ``macs``, ``params``, ``size_mb``, ...). `run_ids` maps trial
    numbers to MLflow runs as far as they are known. `search_s` is the wall time since the first
    trial started, `busy_s` the time that slots spent on trials, together, and `trials` the
    number of trials the budget allows (None where only time bounds it). `output` is the folder
    that holds the sweep's; empty for the default one. `from_python` tells that no config says how
    the sweep was asked for. `figures` are of the search itself: how a searcher's
    learning goes, and how well the rungs of a ladder predict. `lost` counts by cause how often
    trials were lost with their workers and run again.
    """

    sweep_id: str
    experiment: str
    goal: Goal
    space: SearchSpace
    baseline: Mapping[str, float]
    observations: Sequence[Observation] = ()
    run_ids: Mapping[int, str] = field(default_factory=dict)
    trials: int | None = None
    slots: int = 1
    search_s: float = 0.0
    busy_s: float = 0.0
    output: str = ""
    from_python: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)

    def command(self, verb: str) -> str:
        """What to type to do `verb` with this sweep, on the command line or in Python."""
        if self.from_python and verb == "promote":
            return "front.promote(max_drop=0.01)"
        if self.from_python and verb == "resume":
            return f'autoprune.search(..., resume="{self.sweep_id}")'
        where = f" output={shlex.quote(self.output)}" if self.output else ""
        select = " select.max_accuracy_drop=0.01" if verb == "promote" else ""
        return f"autoprune {verb} sweep={self.sweep_id}{where}{select}"

    @cached_property
    def front(self) -> ParetoFront:
        """The Pareto front of the observations."""
        known = self.observations
        return known.front if isinstance(known, LastTold) else ParetoFront(self.goal, known)

    @property
    def hypervolume(self) -> float:
        """The front's hypervolume against the goal's reference point."""
        return self.front.hypervolume()

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many trials are in every state of `STATES`."""
        if isinstance(self.observations, LastTold):
            return self.observations.counts
        found = Counter(map(state_of, self.observations))
        return {state: found[state] for state in STATES}

    @property
    def utilisation(self) -> float:
        """The share of the slots' time that went into trials, in [0, 1]."""
        available = self.slots * self.search_s
        return min(self.busy_s / available, 1.0) if available > 0 else 0.0


def view_of(record: Record | Journal) -> SweepView:
    """A sweep as its journal tells it. Raises JournalError where its header does not."""
    try:
        return _view_of(record)
    except AutopruneError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise JournalError(
            f"the journal's header does not say what was searched ({error!r}); it was changed "
            "after it was written: restore it from a copy, or start a new sweep"
        ) from error


def _view_of(record: Record | Journal) -> SweepView:
    header, events = record.header, record.events
    observations = tuple(last_told(events).values())
    return SweepView(
        sweep_id=header["sweep_id"],
        experiment=header["experiment"],
        goal=Goal.from_json(header["goal"]),
        space=SearchSpace.from_json(header["space"]),
        baseline=header["baseline"],
        observations=observations,
        trials=record.budget["trials"],
        slots=header["slots"],
        lost=Counter(str(event.failure.cause) for event in events if isinstance(event, Lost)),
        search_s=events[-1].at - events[0].at if events else 0.0,
        busy_s=sum(observation.seconds for observation in observations),
        output=header["output"],
        from_python=header["config"] is None,
    )
