"""Least-squares reconstruction: what reads a cut layer makes up for the units that are gone.

Axis legend: n = positions that are looked at, c = inputs of a layer (channels times kernel), o =
outputs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autoprune.domain.errors import AutopruneError, FaultsError, broken_rules
from autoprune.domain.protocols import StepGuard
from autoprune.domain.typed import check_types
from autoprune.pruning.cuts import Cut, width
from autoprune.pruning.isolation import derive, mode, own_rng
from autoprune.tasks.protocol import Task, device_of, every_module


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How much a cut layer's readers are fitted on.

    `batches` of the training split, and of each at most `positions` places where a layer was
    applied (images times pixels). `ridge` holds weights to what they were, as a share of the
    inputs' mean square: it decides where the data leave a weight open.
    """

    batches: int = 8
    positions: int = 1024
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        check_types(self)
        rules = {
            "batches": (self.batches >= 1, "1 or more"),
            "positions": (self.positions >= 1, "1 or more"),
            "ridge": (0 < self.ridge < float("inf"), "a positive number"),
        }
        faults = broken_rules(self, rules)
        if faults:
            raise FaultsError(faults)


def reconstruct(
    pruned: nn.Module,
    model: nn.Module,
    cuts: Sequence[Cut],
    task: Task,
    *,
    plan: Reconstruction,
    seed: int,
    step_guard: StepGuard = nullcontext,
) -> tuple[str, ...]:
    """Fit, in place, every layer of `pruned` whose inputs were cut, so that it puts out what it
    does in `model`; the names of the layers that were fitted, in the order of the forward pass.

    `cuts` led from `model` to `pruned`, both on one device. Layer by layer, each behind those
    fitted before: weights W and bias b minimise ``|Y - X W - b|^2 + ridge (|W - W0|^2 +
    |b - b0|^2)`` with the inputs X [n, c] that the layer now gets, the outputs Y [n, o] that it
    had, and the weights W0 and bias b0 that the cut left (He, Zhang and Sun, Channel Pruning for
    Accelerating Very Deep Neural Networks, ICCV 2017; Luo, Wu and Lin, ThiNet, ICCV 2017; AMC does
    the same). Linear layers and convolutions in one and two dimensions with zeros around them and
    one group are fitted, except where two modules share a weight; all others stay as the cut left
    them.

    Raises AutopruneError where the train split has no batch.
    """
    layers = _readers(pruned, cuts)
    if not layers:
        return ()
    device, fitted = device_of(pruned), list[str]()
    with ExitStack() as stack:
        stack.enter_context(own_rng(derive(seed, 0), device))
        stack.enter_context(torch.no_grad())
        stack.enter_context(every_module())
        stack.enter_context(mode(pruned, training=False))
        stack.enter_context(mode(model, training=False))
        order = _order(pruned, layers, task, seed=seed, step_guard=step_guard)
        for name in order:
            fit = _Fit(pruned.get_submodule(name), _kept_outputs(model, name, cuts))
            _listen(pruned, model, name, task, plan=plan, seed=seed, guard=step_guard, fit=fit)
            with step_guard():
                if fit.solve(plan.ridge):
                    fitted.append(name)
    return tuple(fitted)


class _Fit:
    """The normal equations of one layer, in double precision."""

    def __init__(self, layer: nn.Module, kept: torch.Tensor | None) -> None:
        assert isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))
        self.layer, self.kept = layer, kept
        inputs = layer.weight[0].numel()
        size = inputs + (layer.bias is not None)
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.moments = torch.zeros(size, len(layer.weight), dtype=torch.float64)
        self.count = 0

    def add(self, rows: torch.Tensor, outputs: torch.Tensor) -> None:
        """Positions: inputs [n, c] of the layer as it is, outputs [n, o] of the unpruned one."""
        rows, outputs = rows.double().cpu(), outputs.double().cpu()
        if self.kept is not None:
            outputs = outputs[:, self.kept]
        if self.layer.bias is not None:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        self.gram += rows.T @ rows
        self.moments += rows.T @ outputs
        self.count += len(rows)

    def solve(self, ridge: float) -> bool:
        """Write the weights that fit best; False where what was heard is not finite."""
        weight, bias = self.layer.weight, self.layer.bias
        inputs = weight[0].numel()
        before = weight.detach().double().cpu().reshape(len(weight), -1).T
        if bias is not None:
            before = torch.cat([before, bias.detach().double().cpu()[None]])
        scale = float(self.gram.diagonal()[:inputs].mean()) or 1.0  # inputs that are all zero
        held = torch.full((len(self.gram),), ridge * scale, dtype=torch.float64)
        left = self.gram + torch.diag(held)
        right = self.moments + held[:, None] * before
        found, failed = torch.linalg.solve_ex(left, right)
        if int(failed) or not bool(found.isfinite().all()):
            return False
        weight.copy_(found[:inputs].T.reshape(weight.shape))
        if bias is not None:
            bias.copy_(found[inputs])
        return True


def _readers(pruned: nn.Module, cuts: Sequence[Cut]) -> list[str]:
    """The layers to fit: their inputs were cut, and nobody else holds their weight."""
    owners = Counter(id(p) for m in pruned.modules() for p in m.parameters(recurse=False))
    names = dict.fromkeys(cut.layer for cut in cuts if cut.side == "in")
    modules = dict(pruned.named_modules())
    return [
        name
        for name in names
        if _can_be_fitted(modules.get(name)) and owners[id(modules[name].weight)] == 1
    ]


def _can_be_fitted(layer: nn.Module | None) -> bool:
    if type(layer) in (nn.Conv1d, nn.Conv2d):
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
        return layer.groups == 1 and layer.padding_mode == "zeros" and layer.padding != "same"
    return type(layer) is nn.Linear


def _kept_outputs(model: nn.Module, name: str, cuts: Sequence[Cut]) -> torch.Tensor | None:
    """Which outputs of a layer are left; None where all are."""
    for cut in cuts:
        if cut.layer == name and cut.side == "out":
            return cut.kept(width(model.get_submodule(name), "out"))
    return None


def _order(
    model: nn.Module, names: Sequence[str], task: Task, *, seed: int, step_guard: StepGuard
) -> list[str]:
    """Those of the layers that are called, in the order of the first call."""
    called: dict[str, None] = {}
    with ExitStack() as hooks:
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(
                lambda _module, _args, name=name: called.setdefault(name)
            )
            hooks.callback(handle.remove)
        for batch in islice(task.batches("train", seed=seed), 1):
            with step_guard():
                task.loss(model, batch)
            return list(called)
    raise AutopruneError("the task's train split has no batch to reconstruct layers with")


def _listen(
    pruned: nn.Module,
    model: nn.Module,
    name: str,
    task: Task,
    *,
    plan: Reconstruction,
    seed: int,
    guard: StepGuard,
    fit: _Fit,
) -> None:
    """What the layer gets in the pruned network, and puts out in the unpruned one."""
    places = torch.Generator()
    for number, batch in enumerate(islice(task.batches("train", seed=seed), plan.batches)):
        with guard():
            with _heard(pruned, name) as now:
                task.loss(pruned, batch)
            with _heard(model, name) as before:
                task.loss(model, batch)
            for (given, _), (_, wanted) in zip(now, before, strict=True):
                places.manual_seed(derive(seed, 1, number))
                fit.add(*_rows(fit.layer, given, wanted, most=plan.positions, places=places))


@contextmanager
def _heard(model: nn.Module, name: str) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """What a layer got and what it put out, in every call."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def hear(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args[0] if args else kwargs["input"], output))

    handle = model.get_submodule(name).register_forward_hook(hear, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _rows(
    layer: nn.Module,
    given: torch.Tensor,
    wanted: torch.Tensor,
    *,
    most: int,
    places: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [n, c] and outputs [n, o] of a layer at up to `most` places, drawn from `places`."""
    if isinstance(layer, nn.Linear):
        rows, outputs = given.flatten(0, -2), wanted.flatten(0, -2)
        at = _drawn(len(rows), most, places).to(rows.device)
        return rows[at], outputs[at]
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    batched = wanted if wanted.dim() == layer.weight.dim() else wanted[None]
    images = given if given.dim() == layer.weight.dim() else given[None]
    assert not isinstance(layer.padding, str)
    images = functional.pad(images, [side for p in reversed(layer.padding) for side in (p, p)])
    outputs = batched.movedim(1, -1)
    shape = outputs.shape[:-1]
    at = _drawn(int(np.prod(shape)), most, places)
    image, *starts = (torch.from_numpy(i) for i in np.unravel_index(at.numpy(), shape))
    axes = len(starts)
    index: list[Any] = [image.reshape(-1, *[1] * axes)]
    for axis, start in enumerate(starts):
        taps = torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
        where = start[:, None] * layer.stride[axis] + taps
        index.append(where.reshape(-1, *[len(taps) if a == axis else 1 for a in range(axes)]))
    device = images.device
    patches = images.movedim(1, -1)[tuple(i.to(device) for i in index)]  # [n, *kernel, channels]
    return patches.movedim(-1, 1).flatten(1), outputs.flatten(0, -2)[at.to(device)]


def _drawn(count: int, most: int, places: torch.Generator) -> torch.Tensor:
    """Up to `most` different numbers below `count`."""
    return torch.randperm(count, generator=places)[:most]
