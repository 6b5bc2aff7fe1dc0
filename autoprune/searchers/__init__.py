"""Searchers: what to try next."""

from autoprune.searchers.frontier import FrontierSearcher
from autoprune.searchers.novelty import nearest_unseen
from autoprune.searchers.optuna import OptunaSearcher
from autoprune.searchers.random import RandomSearcher
from autoprune.searchers.ranked import RankedSearcher
from autoprune.searchers.samplers import SAMPLERS
from autoprune.searchers.uniform import UniformSearcher

__all__ = [
    "SAMPLERS",
    "FrontierSearcher",
    "OptunaSearcher",
    "RandomSearcher",
    "RankedSearcher",
    "UniformSearcher",
    "nearest_unseen",
]
