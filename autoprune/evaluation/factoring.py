"""Writing layers of low rank as two, where that makes the network faster."""

import copy

from torch import nn

from autoprune.evaluation.networks import portable
from autoprune.evaluation.records import TrialContext
from autoprune.pruning.factors import Factor, factor_layers, low_ranks
from autoprune.pruning.isolation import outputs_of


def factored_where_faster(
    model: nn.Module, context: TrialContext
) -> tuple[nn.Module, tuple[Factor, ...]]:
    """The network on the CPU with layers of low rank factored, and which; `model` stays as it is.

    One layer after the other, those that save most products first; each stays factored where the
    network then is faster than before by the whole interval of a paired measurement on the
    sweep's runtime. A network that cannot do with two layers in the place of one keeps the one.
    """
    found, example = portable(model), context.task.example()
    with context.step_guard():
        candidates = low_ranks(found)
    kept: list[Factor] = []
    for factor in candidates:
        with context.step_guard():
            twin = copy.deepcopy(found)
            factor_layers(twin, [factor])
            try:
                outputs_of(twin, example)
            except Exception:  # whatever a network that reads its layers' weights itself runs into
                continue
        speedup = context.meter.measure(twin, found, example)
        if speedup.low > 1:
            found = twin
            kept.append(factor)
    return found, tuple(kept)
