"""What an agent is rewarded for, and how it learns inside a sweep."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune_agents.rewards import Reward

_LEAST = {"memory": 1, "warm_up": 1, "gradient_steps": 1, "spread": 0, "noise": 0}


@dataclass(frozen=True)
class Aim:
    """What an agent is rewarded for: a reward, a preference by objective, and AMC's wall.

    Without a preference it is asked for all of the front, evenly. The wall is a latency budget,
    see `walk.Walk`.
    """

    reward: str | Reward = "scalarised"
    preference: Mapping[str, float] | None = None
    wall: float | None = None


@dataclass(frozen=True)
class Learning:
    """How an agent learns inside a sweep.

    `algorithm` is ``sac``, ``td3`` or ``ddpg``, and `options` are arguments of its class in
    Stable-Baselines3. `memory` is how many episodes it keeps. The policy acts after `warm_up`
    outcomes, of whoever's trials; until then every group keeps about one ratio, with deviations of
    `spread` from it: of ratios drawn anew for every group the sums hardly differ. For every
    outcome it takes `gradient_steps`; `actor_learning_rate` is the actor's where it is not that of
    `options`. `noise` is the deviation, as a share of the range, of the truncated normal from which
    kept ratios are drawn around those of the policy; every episode of the policy multiplies it by
    `decay`.
    """

    algorithm: str
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: int = 1000
    warm_up: int = 20
    gradient_steps: int = 10
    actor_learning_rate: float | None = None
    spread: float = 0.35
    noise: float = 0.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise AutopruneError(
                    f"{name} of an agent is {getattr(self, name)}; choose {least} or more"
                )
        if not 0.0 < self.decay <= 1.0:
            raise AutopruneError(f"decay of an agent is {self.decay}; choose it in (0, 1]")
        rate = self.actor_learning_rate
        if rate is not None and not 0.0 < rate < math.inf:
            raise AutopruneError(
                f"actor_learning_rate of an agent is {rate}; choose more than 0, or null for that "
                "of options"
            )
        batch = self.options.get("batch_size", 1)
        if not isinstance(batch, int) or batch < 1:
            # Stable-Baselines3 2.9 takes the mean over none of them, which is NaN
            raise AutopruneError(
                f"batch_size of an agent is {batch!r}; choose a whole number from 1 on"
            )


_SMALL = {"policy_kwargs": {"net_arch": [64, 64]}, "learning_rate": 3e-3, "batch_size": 128}

_AMC = {
    "policy_kwargs": {"net_arch": [300, 300]},
    "learning_rate": 1e-3,
    "batch_size": 64,
    "tau": 0.01,
}

LEARNING: Mapping[str, Learning] = {
    "sac": Learning("sac", {**_SMALL, "ent_coef": 0.003}),
    "td3": Learning("td3", _SMALL, noise=0.1),
    "ddpg": Learning(
        "ddpg",
        _AMC,
        memory=100,
        warm_up=100,
        actor_learning_rate=1e-4,
        noise=0.5,
        decay=0.95,
    ),
}
"""How the agents learn by default; ``conf/searcher/`` spells it out and says why."""
