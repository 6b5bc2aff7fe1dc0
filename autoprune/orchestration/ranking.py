"""The ranking of a trained network's units, for a searcher that reads it."""

from autoprune.domain.ranking import Ranking
from autoprune.domain.space import SearchSpace
from autoprune.evaluation import TrialContext
from autoprune.pruning.criteria import Scoring
from autoprune.pruning.ranking import rank


def rank_network(context: TrialContext, space: SearchSpace, *, seed: int) -> Ranking:
    """What the sweep's criteria make of the units of its space, scored as trials score them."""
    groups = {group.name for group in space.groups}
    couplings = [c for c in context.dependencies.couplings if c.group.name in groups]
    scoring = Scoring(
        context.task,
        seed=seed,
        batches=context.limits.importance_batches,
        step_guard=context.step_guard,
        device=context.device,
    )
    return rank(context.model, couplings, context.criteria, scoring)
