"""Pruning a network by a spec: choose on the unpruned network, cut a copy, check the result."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.space import Group, PruningSpec
from autoprune.domain.trial import Cause, TrialError
from autoprune.pruning.bypass import Reading
from autoprune.pruning.coupling import Coupling, cuts_for
from autoprune.pruning.criteria import Criterion, Scoring, criterion_of, score
from autoprune.pruning.cuts import Cut, Indices, width
from autoprune.pruning.cutting import apply_cuts
from autoprune.pruning.graph import Dependencies, GraphError, trace
from autoprune.pruning.isolation import outputs_of
from autoprune.pruning.recipe import Recipe
from autoprune.tasks.protocol import Inputs, tensors_of


@dataclass(frozen=True)
class Pruned:
    """A pruned network and the recipe that leads from the unpruned one to it.

    The recipe does not know how the unpruned network is built: give it that with
    ``dataclasses.replace(recipe, model=config)``.
    """

    model: nn.Module
    recipe: Recipe


def prune(
    model: nn.Module,
    example: Inputs,
    spec: PruningSpec,
    *,
    criterion: Criterion | None = None,
    scoring: Scoring | None = None,
    dependencies: Dependencies | None = None,
    removed: Mapping[str, Indices] | None = None,
) -> Pruned:
    """Cut a copy of `model` to the widths of `spec`; groups that it leaves out stay whole.

    `criterion` is the spec's own by default, `dependencies` are traced when they are not given;
    the guard of `scoring` is held around the cut, too. The units of groups that `removed` names
    were chosen before, by `choose`.
    Every score is taken on the unpruned network, so the order of the groups does not matter;
    of equal scores the lower index is cut first. Before it returns, the widths of every layer,
    a forward pass, its output's shape and its finiteness have been checked.

    Raises AutopruneError for a spec that does not fit the network, TrialError with
    ``Cause.EMPTY_GROUP`` for a group that would lose every unit, and GraphError where the check
    fails.
    """
    dependencies, scoring = dependencies or trace(model, example), scoring or Scoring()
    widths = _check_spec(spec, dependencies.groups)
    shrinking = [c for c in dependencies.couplings if widths[c.group.name] < c.group.size]
    criterion = criterion or criterion_of(spec.criterion)
    known = dict(removed or {})
    undecided = [c for c in shrinking if c.group.name not in known]
    known |= choose(model, undecided, widths, criterion=criterion, scoring=scoring)
    with scoring.step_guard():
        history = cuts_for(shrinking, known)
        pruned = copy.deepcopy(model)
        apply_cuts(pruned, history)
        _verify(model, pruned, example, history=history)
    return Pruned(pruned, Recipe.of(history, spec, example))


def choose(
    model: nn.Module,
    couplings: Sequence[Coupling],
    widths: Mapping[str, int],
    *,
    criterion: Criterion,
    scoring: Scoring,
) -> dict[str, Indices]:
    """The units that go so that every group keeps its width: those with the lowest scores."""
    if not couplings:
        return {}
    scores = score(model, couplings, criterion, scoring)
    return {c.group.name: _lowest(c, scores[c.group.name], widths[c.group.name]) for c in couplings}


def _check_spec(spec: PruningSpec, groups: Sequence[Group]) -> dict[str, int]:
    """The width of every group, or what is wrong with the spec."""
    known = {group.name: group for group in groups}
    for name, kept in spec.widths.items():
        if name not in known:
            raise unknown("group", name, known)
        group = known[name]
        rule = f"group {name!r} keeps {kept} of {group.size} {group.kind}"
        if kept < 1:
            raise TrialError(
                Cause.EMPTY_GROUP, f"{rule}; choose between {group.step} and {group.size}"
            )
        if kept > group.size or (kept < group.size and kept % group.step):
            raise AutopruneError(
                f"{rule}; choose between {group.step} and {group.size} in steps of {group.step}"
            )
    return {group.name: spec.widths.get(group.name, group.size) for group in groups}


def _lowest(coupling: Coupling, scores: torch.Tensor, kept: int) -> Indices:
    """The units to remove: those with the lowest scores, equally many from every cell.

    Pinned ones stay.
    """
    cells = np.unique(coupling.cell)
    per_cell = (coupling.group.size - kept) // len(cells)
    removed = []
    for cell in cells:
        units = np.setdiff1d(np.flatnonzero(coupling.cell == cell), coupling.pinned)
        order = np.argsort(scores.numpy()[units], kind="stable")
        removed.append(units[order[:per_cell]])
    return np.sort(np.concatenate(removed)).astype(np.int64)


def _verify(
    model: nn.Module, pruned: nn.Module, example: Inputs, *, history: Sequence[Cut]
) -> None:
    """Raise GraphError unless what was asked is what happened."""
    _verify_widths(model, pruned, history)
    expected = tensors_of(outputs_of(model, example))
    try:
        found = tensors_of(outputs_of(pruned, example))
    except Exception as error:
        raise GraphError(f"the pruned network does not run: {error}") from error
    shapes = [tuple(o.shape) for o in expected], [tuple(o.shape) for o in found]
    if shapes[0] != shapes[1]:
        raise GraphError(f"the pruned network's output has shape {shapes[1]}, not {shapes[0]}")
    if not all(o.isfinite().all() for o in found):
        raise TrialError(Cause.ERROR, "the pruned network's output on the example is not finite")


def _verify_widths(model: nn.Module, pruned: nn.Module, history: Sequence[Cut]) -> None:
    """Raise GraphError unless every layer shrank by what its groups lost."""
    before, after = dict(model.named_modules()), dict(pruned.named_modules())
    for cut in history:
        if cut.side in ("in", "out", "heads"):
            asked = width(before[cut.layer], cut.side) - cut.count
            layer = after[cut.layer]
            found = width(layer.layer if isinstance(layer, Reading) else layer, cut.side)
            if found != asked:
                raise GraphError(
                    f"layer {cut.layer!r} has {found} units ({cut.side}), {asked} were asked"
                )
