"""Reinforcement-learning agents that steer a search through the Searcher protocol.

Importing it makes ``gymnasium.make("autoprune/LayerwisePruning-v0", problem=...)`` known.
"""

from importlib.util import find_spec

from autoprune_agents.factories import agent, ddpg, sac, td3
from autoprune_agents.rewards import AccuracyUnderLatency, AmcError, AmcLatency, Reward, Scalarised

__all__ = [
    "ENVIRONMENT",
    "AccuracyUnderLatency",
    "AmcError",
    "AmcLatency",
    "Reward",
    "Scalarised",
    "agent",
    "ddpg",
    "sac",
    "td3",
]

ENVIRONMENT = "autoprune/LayerwisePruning-v0"
"""The environment's id in Gymnasium's registry."""

if find_spec("gymnasium") is not None:
    import gymnasium

    gymnasium.register(ENVIRONMENT, "autoprune_agents.environment:LayerwisePruning")
