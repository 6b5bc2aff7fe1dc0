"""How well the latency model predicts the speed of random specs that it did not learn from.

From single groups alone (its profile), and corrected by other random specs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.latency import LatencyModel, Timing
from autoprune.domain.profile import profile_widths
from autoprune.domain.space import PruningSpec
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import Runtime
from autoprune.pruning.graph import trace
from autoprune.pruning.surgery import prune


def latency_models(
    baseline: nn.Module, example: torch.Tensor, runtimes: Sequence[Runtime]
) -> dict[str, dict[str, float | None]]:
    """What the latency model is worth by the name of the runtime, a line each."""
    models = {}
    for runtime in runtimes:
        m = models[runtime.name] = latency_model(baseline, example, runtime, learnt=16, unseen=24)
        print(
            f"latency model on {runtime.name}, {m['unseen']} unseen specs: median error "
            f"{m['profile_median_error']:.1%}, rank correlation {m['profile_spearman']:.3f} "
            f"from {m['profile_points']} points of single groups; {m['median_error']:.1%}, "
            f"{m['spearman']:.3f} with {m['learnt']} measured specs",
            flush=True,
        )
    return models


def latency_model(
    baseline: nn.Module, example: torch.Tensor, runtime: Runtime, *, learnt: int, unseen: int
) -> dict[str, float | None]:
    """How well the latency model predicts random specs of a network on a runtime."""
    dependencies = trace(baseline, example, time_limit_s=60)
    space = build_space(dependencies.groups, Bounds("*", min_kept=0.1))
    rng = np.random.default_rng(0)
    meter = PairedMeter(runtime, NoGate())

    def timing(widths: Mapping[str, int]) -> Timing:
        network = prune(baseline, example, PruningSpec.of(widths), dependencies=dependencies).model
        found = meter.measure(network, baseline, example)
        return Timing.of(widths, found)

    alone = [
        timing({axis.group.name: width}) for axis in space.axes for width in profile_widths(axis)
    ]
    specs = [timing(space.sample(rng).widths) for _ in range(learnt + unseen)]
    profile = LatencyModel.fit(space.groups, alone).error(specs[learnt:])
    corrected = LatencyModel.fit(space.groups, [*alone, *specs[:learnt]]).error(specs[learnt:])
    return {
        "median_error": corrected.median,
        "spearman": corrected.spearman,
        "profile_median_error": profile.median,
        "profile_spearman": profile.spearman,
        "profile_points": len(alone),
        "learnt": learnt,
        "unseen": unseen,
    }
