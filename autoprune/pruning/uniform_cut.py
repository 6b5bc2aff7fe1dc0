"""Cutting every group alike until a network has a given number of parameters."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import nn

from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.pruning.graph import Dependencies
from autoprune.pruning.masks import params_of
from autoprune.pruning.surgery import prune
from autoprune.tasks.protocol import Inputs

Number = TypeVar("Number", int, float)


def cut_to(
    model: nn.Module,
    example: Inputs,
    params: int,
    *,
    space: SearchSpace,
    dependencies: Dependencies,
) -> nn.Module:
    """The network whose number of parameters comes nearest to `params`, all groups cut alike.

    Every group keeps one share of its units, to within one step of its legal widths: a search by
    bisection over that share, and then over how many of the groups, in order, take the width
    above. Raises what `prune` raises.
    """
    cut = partial(prune, model, example, dependencies=dependencies)

    def fits(spec: PruningSpec) -> bool:
        return params_of(cut(spec).model) <= params

    finest = 1 / max(group.size for group in space.groups)
    low, high = _bisect(0.0, 1.0, lambda ratio: fits(space.uniform(ratio)), until=finest)
    few, many = space.uniform(low).widths, space.uniform(high).widths
    wider = [name for name in many if many[name] != few[name]]

    def widened(count: int) -> PruningSpec:
        widths = few | {name: many[name] for name in wider[:count]}
        return PruningSpec.of(widths, criterion=space.criteria[0], recovery=space.recoveries[0])

    ends = _bisect(0, len(wider), lambda count: fits(widened(count)), until=1)
    found = [cut(widened(count)).model for count in ends]
    return min(found, key=lambda network: abs(params_of(network) - params))


def _bisect(
    low: Number, high: Number, fits: Callable[[Number], bool], *, until: Number
) -> tuple[Number, Number]:
    """The ends of a span of at most `until` where `fits` changes from yes to no."""
    while high - low > until:
        middle = (low + high) // 2 if isinstance(low, int) else (low + high) / 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low, high
