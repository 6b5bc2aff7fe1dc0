"""The ranking of a trained network's units, for a searcher that reads it."""

from autoprune.domain.ranking import Ranking
from autoprune.domain.space import SearchSpace
from autoprune.evaluation import TrialContext
from autoprune.pruning.ranking import rank


def rank_network(context: TrialContext, space: SearchSpace, *, seed: int) -> Ranking:
    """What the sweep's criteria make of the units of its space, scored as trials score them."""
    groups = {group.name for group in space.groups}
    couplings = [c for c in context.dependencies.couplings if c.group.name in groups]
    return rank(context.model, couplings, context.criteria, context.scoring(seed))
