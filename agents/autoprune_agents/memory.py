"""The outcomes that a searcher has heard of, as episodes to learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autoprune.domain.latency import LatencyModel, Timing
from autoprune.domain.objective import Goal
from autoprune.domain.space import FP32
from autoprune.domain.trial import Measurement, Observation
from autoprune_agents.outcomes import Outcomes
from autoprune_agents.replay import HindsightBuffer
from autoprune_agents.walk import Walk

FIRST_FIT = 16
"""Timings of trials with which the latency model is fitted for the first time."""


class EpisodeMemory:
    """Trials as the episodes that end with their specs, in a buffer, whoever proposed them.

    What is told again of a trial replaces what was told before; where the buffer is full the
    oldest trial makes room. The latency model of `walk` is fitted to `timings` and those of the
    trials whenever their number has doubled, and all episodes are then walked again.
    """

    def __init__(
        self, goal: Goal, walk: Walk, buffer: HindsightBuffer, *, timings: Sequence[Timing]
    ) -> None:
        self.walk = walk
        self._goal, self._buffer, self._timings = goal, buffer, tuple(timings)
        self._told: dict[int, tuple[int, Observation]] = {}
        self._next_fit = FIRST_FIT

    def tell(self, observation: Observation) -> Outcomes:
        """Take in an outcome; it alone, in the units of all, as the reward sees it."""
        slot = self._slot(observation.trial.number)
        self._told[observation.trial.number] = (slot, observation)
        timings = [_timing(one) for _, one in self._told.values()]
        measured = [timing for timing in timings if timing is not None]
        if len(measured) >= self._next_fit:
            self._next_fit = 2 * len(measured)
            model = LatencyModel.fit(self.walk.latency.groups, [*self._timings, *measured])
            self.walk = replace(self.walk, latency=model)
            self._write_all()
        else:
            self._write(slot, observation)
        self._score()
        return self._buffer.outcomes[np.array([slot])]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `restore` is the inverse."""
        return {
            "told": [[slot, observation.to_json()] for slot, observation in self._told.values()],
            "latency": list(self.walk.latency.weights),
            "next_fit": self._next_fit,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Become what `to_json` told."""
        told = [(int(slot), Observation.from_json(one)) for slot, one in data["told"]]
        self._told = {one.trial.number: (slot, one) for slot, one in told}
        self._next_fit = int(data["next_fit"])
        model = LatencyModel(self.walk.latency.groups, tuple(data["latency"]))
        self.walk = replace(self.walk, latency=model)
        self._write_all()
        self._score()

    def _slot(self, number: int) -> int:
        if number in self._told:
            return self._told[number][0]
        if len(self._told) < self._buffer.capacity:
            return len(self._told)
        slot, _ = self._told.pop(next(iter(self._told)))
        return slot

    def _write_all(self) -> None:
        for slot, observation in self._told.values():
            self._write(slot, observation)

    def _write(self, slot: int, observation: Observation) -> None:
        spec = observation.trial.spec
        unweighed = [0.0] * self.walk.objectives
        actions = np.array(self.walk.actions(spec))
        self._buffer.put(slot, self.walk.observations(spec, unweighed), actions)

    def _score(self) -> None:
        by_slot = sorted(self._told.values(), key=lambda told: told[0])
        self._buffer.outcomes = Outcomes.of(self._goal, [one.outcome for _, one in by_slot])


def _timing(observation: Observation) -> Timing | None:
    outcome, widths = observation.outcome, observation.trial.spec.widths
    if not isinstance(outcome, Measurement) or "speedup" not in outcome.metrics:
        return None
    if observation.trial.spec.precision != FP32:
        return None  # not the widths' doing alone
    if outcome.speedup is not None:
        return Timing.of(widths, outcome.speedup)
    return Timing(widths, 1.0 / outcome.metrics["speedup"])
