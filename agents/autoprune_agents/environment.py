"""The environment: layer-wise pruning as an episode that any Gymnasium agent can train on."""

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.latency import LatencyModel
from autoprune.domain.protocols import Problem
from autoprune.domain.trial import Measurement, Trial
from autoprune_agents.outcomes import Outcomes, default_units
from autoprune_agents.rewards import Reward, reward_named, weights
from autoprune_agents.walk import Features, Walk


class LayerwisePruning(gymnasium.Env[Features, np.ndarray[Any, Any]]):
    """``autoprune/LayerwisePruning-v0``: one episode walks the groups of a network.

    `problem` is what runs the trial at the end of an episode: a known problem, or a real
    network. `latency` predicts times from widths; by default one that has seen no measurement.
    `reward` is a `Reward` or the name of one. `preference` weighs the objectives by name; by
    default every episode draws one, evenly over all that there are. `wall` and the meaning of
    observations and actions are those of `Walk`.

    The reward is 0 until the end, when it is that of the trial's outcome. ``info`` holds the
    executed action as ``action``, on the agent's scale, which is what a replay buffer should store,
    and as ``kept``, the value itself; at the end ``spec``, and ``metrics`` or ``failure``.

    A seed fixes the preferences and the trials' own seeds. ``reset(options={"preference": ...})``
    weighs one episode. Raises AutopruneError for an unknown reward or objective.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        problem: Problem,
        *,
        latency: LatencyModel | None = None,
        reward: str | Reward = "scalarised",
        preference: Mapping[str, float] | None = None,
        wall: float | None = None,
    ) -> None:
        objectives = len(problem.goal.objectives)
        latency = LatencyModel.fit(problem.space.groups, []) if latency is None else latency
        self.walk = Walk(problem.space, latency, objectives, wall)
        self._problem, self._reward = problem, reward_named(reward)
        self._fixed = None if preference is None else weights(problem.goal, preference)
        self._indices: list[int] = []
        self._weights = np.full(objectives, 1.0 / objectives)
        self._number = 0
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (self.walk.features,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Features, dict[str, Any]]:
        """Begin an episode at the whole network."""
        super().reset(seed=seed)
        self._indices = []
        self._weights = self._preference(options or {})
        return self._observation(), {}

    def step(
        self, action: np.ndarray[Any, Any]
    ) -> tuple[Features, SupportsFloat, bool, bool, dict[str, Any]]:
        """Execute an action at the nearest legal value within the wall.

        Raises AutopruneError where the episode is over, and for an action that is no number.
        """
        step = len(self._indices)
        if step == len(self.walk):
            raise AutopruneError(f"the episode is over after {step} steps; call reset() first")
        values = np.asarray(action, dtype=float).ravel()
        if len(values) != 1:
            raise AutopruneError(f"an action is one number in [-1, 1], got {action!r}")
        index = self.walk.executed(self._indices, float(values[0]))
        self._indices.append(index)
        info = {
            "action": self.walk.action(step, index),
            "kept": self._problem.space.options[step][index],
        }
        over = len(self._indices) == len(self.walk)
        reward, found = self._judged() if over else (0.0, {})
        return self._observation(), reward, over, False, info | found

    def _preference(self, options: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        for name in options:
            if name != "preference":
                raise unknown("option of reset", name, ["preference"])
        if options.get("preference") is not None:
            return weights(self._problem.goal, options["preference"])
        if self._fixed is not None:
            return self._fixed
        return self.np_random.dirichlet(np.ones(len(self._weights)))

    def _judged(self) -> tuple[float, dict[str, Any]]:
        """Run the trial of the episode: its reward, and what it found."""
        spec = self._problem.space.at(self._indices)
        trial = Trial(self._number, spec, int(self.np_random.integers(2**32)))
        self._number += 1
        outcome = self._problem.observe(trial).outcome
        outcomes = Outcomes.of(
            self._problem.goal, [outcome], unit_M=default_units(self._problem.goal)
        )
        found: dict[str, Any] = {"spec": spec.to_json()}
        if isinstance(outcome, Measurement):
            found["metrics"] = dict(outcome.metrics)
        else:
            found["failure"] = str(outcome.cause)
        return float(self._reward(outcomes, self._weights[None])[0]), found

    def _observation(self) -> Features:
        return self.walk.observation(self._indices, self._weights.tolist())
