"""Where pruning is a bad idea: rules, each with the value that it judges and what to do instead."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from autoprune.domain.latency import ALIGNMENT, Prediction
from autoprune.domain.objective import Objective
from autoprune.domain.profile import Profile
from autoprune.domain.space import Group, PruningSpec, SearchSpace
from autoprune.orchestration.baseline import ENOUGH_EPOCHS, late_fall
from autoprune.orchestration.preparation import Prepared
from autoprune.orchestration.reports.console import short
from autoprune.pruning.separable import separable_macs
from autoprune.tasks.protocol import Task, tensors_of

TINY_PARAMS = 100_000
TINY_MS = 0.05
SEPARABLE = 0.5
PER_CLASS = 50
PER_PARAMETER = 1e-4
LATE_FALL = 0.05
SHORT = 0.9
"""The least share of what was asked to be pruned that the space must allow."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """What speaks against pruning: the rule that said so, and its value, limit and remedy."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def network_doubts(prepared: Prepared) -> tuple[Doubt, ...]:
    """What speaks against pruning this network at all."""
    found = [*_tiny(prepared), *_mobile(prepared), *_little_data(prepared)]
    return (*found, *unconverged(prepared))


def _tiny(prepared: Prepared) -> Iterator[Doubt]:
    params, took_ms = prepared.metrics["params"], prepared.metrics["latency_ms"]
    remedy = (
        "what a call costs in any case weighs more than what pruning saves; serve larger batches, "
        "or take a faster runtime (meter=) first"
    )
    if params < TINY_PARAMS:
        yield Doubt(
            "tiny model", f"{short(params)} parameters, fewer than {short(TINY_PARAMS)}: {remedy}"
        )
    elif took_ms < TINY_MS:
        yield Doubt("tiny model", f"{took_ms:.3g} ms a call, less than {TINY_MS:g}: {remedy}")


def _mobile(prepared: Prepared) -> Iterator[Doubt]:
    macs = prepared.metrics["macs"]
    couplings = prepared.plan.dependencies.couplings
    inside = separable_macs(prepared.baseline.model, prepared.request.task.example(), couplings)
    if macs > 0 and inside / macs > SEPARABLE:
        yield Doubt(
            "mobile-optimised",
            f"{inside / macs:.0%} of the MACs are in depthwise-separable convolutions, more than "
            f"{SEPARABLE:.0%}: they have little to spare, and kernels are bound by memory there; "
            "expect less speed than MACs promise, and consider a smaller version of the same "
            "network, or 8 bits (meter=onnxruntime 'precisions=[fp32,int8]')",
        )


def _little_data(prepared: Prepared) -> Iterator[Doubt]:
    samples, classes = _counted(prepared.request.task)
    params = prepared.metrics["params"]
    remedy = (
        "fine-tuning will fit these few and not heal; add data, prune less, or distill "
        "(recovery=distill)"
    )
    if samples and samples < PER_PARAMETER * params:
        yield Doubt(
            "little data",
            f"{samples} samples in train for {short(params)} parameters, fewer than one for every "
            f"{1 / PER_PARAMETER:,.0f}: {remedy}",
        )
    elif classes and samples < PER_CLASS * classes:
        yield Doubt(
            "little data",
            f"{samples / classes:.0f} samples a class in train, fewer than {PER_CLASS}: {remedy}",
        )


def _counted(task: Task) -> tuple[int, int]:
    """Samples and classes of train; 0 for what batches do not tell: one label a sample, last."""
    samples, labels, labelled = 0, set[int](), True
    for batch in task.batches("train"):
        tensors = tensors_of(batch)
        if not tensors or not tensors[0].ndim:
            return 0, 0
        samples += len(tensors[0])
        last = tensors[-1]
        labelled = labelled and last.dtype is torch.int64 and last.shape == tensors[0].shape[:1]
        if labelled:
            labels.update(last.tolist())
    return samples, len(labels) if labelled else 0


def unconverged(prepared: Prepared) -> Iterator[Doubt]:
    """What speaks against pruning a baseline as it was trained."""
    yield from (Doubt("unconverged baseline", doubt) for doubt in prepared.doubts)
    fall = None if prepared.doubts else late_fall(prepared.baseline.losses)
    if fall is not None and fall > LATE_FALL:
        yield Doubt(
            "unconverged baseline",
            f"the last fifth of its training made {fall:.0%} of the fall of its loss, more than "
            f"{LATE_FALL:.0%}: it was still learning, and what recovery gains may be what the "
            "baseline lacked; raise baseline.fit.epochs",
        )
    epochs = len(prepared.baseline.history)
    if 0 < epochs < ENOUGH_EPOCHS:
        yield Doubt(
            "unconverged baseline",
            f"too few epochs to tell whether it had converged ({epochs}, fewer than "
            f"{ENOUGH_EPOCHS}): what recovery gains may be what it lacked; raise "
            "baseline.fit.epochs",
        )


def ratio_doubts(
    ratio: float, spec: PruningSpec, prepared: Prepared, profile: Profile, speedup: Prediction
) -> tuple[Doubt, ...]:
    """What speaks against pruning the share `ratio` of every group, which gives `spec`."""
    space = prepared.plan.space
    found = [*_bounded(ratio, spec, space), *_not_faster(ratio, speedup)]
    allowed = abs(prepared.goal.reference[0] - profile.baseline[prepared.goal.main.metric])
    falls = {
        group.name: fall
        for group in space.groups
        if (fall := alone_fall(profile, group, spec.widths[group.name], prepared.goal.main))
        is not None
        and fall > allowed
    }
    if falls:
        worst = max(falls, key=lambda name: falls[name])
        found.append(
            Doubt(
                "beyond the cliff",
                f"at a ratio of {ratio:g} {len(falls)} of {len(space.groups)} groups, cut alone, "
                f"cost more {prepared.goal.main.metric} than the {allowed:.3g} that anyone would "
                f"give (the worst, {worst}, {falls[worst]:.3g}, before recovery); choose a smaller "
                "ratio, or let a search give each group a width of its own",
            )
        )
    return tuple(found)


def _bounded(ratio: float, spec: PruningSpec, space: SearchSpace) -> Iterator[Doubt]:
    units = sum(group.size for group in space.groups)
    pruned = 1.0 - sum(spec.widths.values()) / units
    if pruned < SHORT * ratio:
        yield Doubt(
            "less than asked",
            f"at a ratio of {ratio:g} the space lets {pruned:.0%} of the units go; lower "
            "space.min_kept or space.step",
        )


def _not_faster(ratio: float, speedup: Prediction) -> Iterator[Doubt]:
    if speedup.low is None or speedup.high is None or speedup.low > 1.0:
        return
    told = f"{speedup.ratio:.2f}x, 95% interval {speedup.low:.2f} to {speedup.high:.2f}"
    if speedup.high < 1.0:
        yield Doubt(
            "slower",
            f"at a ratio of {ratio:g} the network is predicted to be slower than the unpruned one "
            f"({told}); choose a larger ratio, or widths that kernels are made for "
            f"(space.step={ALIGNMENT})",
        )
    else:
        yield Doubt(
            "no certain gain",
            f"at a ratio of {ratio:g} the network may be no faster than the unpruned one ({told}); "
            "choose a larger ratio, or more checks, which may narrow the interval",
        )


def alone_fall(profile: Profile, group: Group, width: int, main: Objective) -> float | None:
    """How much worse the metric is where a group alone is cut to a width; None without a profile.

    Between profiled widths along a line, below the narrowest as at that one.
    """
    points = profile.of(group.name)
    if not points:
        return None
    sign, whole = main.direction.sign, profile.baseline[main.metric]
    known = [(point.widths[group.name], point.metrics[main.metric]) for point in points]
    return sign * (whole - _along([(group.size, whole), *known], width))


def _along(known: Sequence[tuple[int, float]], width: int) -> float:
    """The value at a width between known ones, from wide to narrow."""
    for (wide, above), (narrow, below) in pairwise(known):
        if narrow <= width <= wide:
            return below + (above - below) * (width - narrow) / (wide - narrow)
    return known[-1][1]
