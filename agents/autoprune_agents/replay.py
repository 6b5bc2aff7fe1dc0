"""Replay buffers that learn from every outcome under every preference.

Axis legend: B = a batch, D = steps of an episode, F = features, M = objectives.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from autoprune_agents.outcomes import Outcomes
from autoprune_agents.rewards import Reward


class HindsightBuffer(ReplayBuffer):
    """Whole episodes of D steps, their rewards computed only when they are sampled.

    The reward is a known function of outcome and preference, so what was tried under one
    preference teaches as much under any other (hindsight, Andrychowicz et al. 2017,
    arXiv:1707.01495): each transition of a batch gets a preference drawn evenly over all, or
    `fixed_M`, and the reward of its episode under it.

    Every transition ends its episode: with a discount of 1 and a reward at the end alone, that
    reward is the return from every step, and a critic that regresses on returns needs no
    bootstrapping through D steps, of which few updates would see the end.

    `steps` is D, `capacity` how many episodes fit; an episode put into a slot replaces what was
    there. `outcomes` are those of the slots in use, in order.
    """

    outcomes: Outcomes

    def __init__(
        self,
        buffer_size: int,
        *spaces: Any,
        steps: int,
        reward: Reward,
        fixed_M: NDArray[np.float64] | None,  # noqa: N803
        rng: np.random.Generator,
        **others: Any,
    ) -> None:
        self.capacity = max(1, buffer_size // steps)
        super().__init__(self.capacity * steps, *spaces, **others)
        self.steps, self.rng = steps, rng
        self._reward, self._fixed_M = reward, fixed_M

    def put(self, slot: int, observations: NDArray[np.float32], actions: NDArray[Any]) -> None:
        """Write the episode of a slot: observations (D, F), executed actions (D,)."""
        place = slice(slot * self.steps, (slot + 1) * self.steps)
        self.observations[place, 0] = observations
        self.actions[place, 0, 0] = actions

    def sample(self, batch_size: int, env: object = None) -> ReplayBufferSamples:
        """Transitions of the slots in use, evenly, with preferences and returns of their own."""
        at = self.rng.integers(len(self.outcomes) * self.steps, size=batch_size)
        preference_BM = self._preferences(batch_size)  # noqa: N806
        observations = self.observations[at, 0].copy()
        observations[:, -preference_BM.shape[1] :] = preference_BM
        returns = self._reward(self.outcomes[at // self.steps], preference_BM)
        seen = torch.from_numpy(observations)
        return ReplayBufferSamples(
            observations=seen,
            actions=torch.from_numpy(self.actions[at, 0]),
            next_observations=seen,
            dones=torch.ones(batch_size, 1),
            rewards=torch.from_numpy(returns.astype(np.float32)[:, None]),
        )

    def _preferences(self, count: int) -> NDArray[np.float64]:
        if self._fixed_M is not None:
            return np.tile(self._fixed_M, (count, 1))
        return self.rng.dirichlet(np.ones(self.outcomes.gain_NM.shape[1]), size=count)
