"""Searchers: what to try next."""

from autoprune.searchers.novelty import nearest_unseen
from autoprune.searchers.optuna import OptunaSearcher
from autoprune.searchers.random import RandomSearcher
from autoprune.searchers.samplers import SAMPLERS
from autoprune.searchers.uniform import UniformSearcher

__all__ = [
    "SAMPLERS",
    "OptunaSearcher",
    "RandomSearcher",
    "UniformSearcher",
    "nearest_unseen",
]
