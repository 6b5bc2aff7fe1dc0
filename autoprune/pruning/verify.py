"""The numerical proof that a group's units can go: the rest computes the same without them.

Torch-Pruning 1.6.1 takes every operation it does not know for an elementwise one, so a group may
be wrong where a network reshapes, splits or mixes channels in code of its own. Here the network
in which nothing reads the units is compared with the network from which they are removed.
"""

import copy
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.domain.errors import first_line
from autoprune.pruning.coupling import Coupling, cuts_for
from autoprune.pruning.cuts import Indices
from autoprune.pruning.cutting import apply_cuts, silence_inputs
from autoprune.pruning.isolation import outputs_of, own_rng
from autoprune.tasks.protocol import (
    Inputs,
    device_of,
    every_module,
    forward,
    map_inputs,
    tensors_of,
)

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


class Verifier:
    """Judges groups of one network on random weights, in double precision where it can.

    Random weights, because a trained network may hide a wrong group behind zeros (a batch norm
    scale that starts at zero, a constant input). Norms over channels are replaced by an
    elementwise function of the same shape: what they compute from the others does change.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._device = device_of(model)
        for dtype, randomised in ((torch.float64, True), (torch.float32, True), (None, False)):
            self._model = copy.deepcopy(model).eval()
            self._inputs = inputs
            try:
                if dtype is not None:
                    self._model = self._model.to(dtype)
                    self._inputs = _noisy(inputs, dtype)
                if randomised:
                    _randomise(self._model)
                outputs = self._run(self._model)
            except Exception:  # the network may fix a type or a range of its own
                continue
            if outputs and all(output.isfinite().all() for output in outputs):
                self._tolerance = TOLERANCE.get(outputs[0].dtype, 1e-2)
                self._trains = self._fault_in_training(copy.deepcopy(self._model)) is None
                return
        raise ValueError("no output of the network is finite for the example input")

    def fault(self, couplings: Sequence[Coupling]) -> str | None:
        """Why these groups cannot all be cut at once; None where they can.

        Some of every group's units are removed, then the others, so that each goes once. Every
        group loses another share: a network that divides one width by another may run where both
        have halved, and on nothing else. A network that runs in training mode on two samples must
        do so without the units, too: it may have layers there that the example never reaches.
        """
        rng = np.random.default_rng(0)
        first = {c.group.name: _some(c, rng) for c in couplings}
        others = {
            c.group.name: np.setdiff1d(np.arange(c.group.size), [*first[c.group.name], *c.pinned])
            for c in couplings
        }
        return self._compare(couplings, first) or self._compare(couplings, others)

    def _compare(self, couplings: Sequence[Coupling], removed: dict[str, Indices]) -> str | None:
        cuts = cuts_for(couplings, removed)
        silent, pruned = copy.deepcopy(self._model), copy.deepcopy(self._model)
        silence_inputs(silent, cuts)
        try:
            apply_cuts(pruned, cuts)
            found = self._run(pruned)
        except Exception as error:
            return f"the network does not run without some of its units ({first_line(error, 160)})"
        expected = self._run(silent)
        if [o.shape for o in found] != [o.shape for o in expected]:
            return "its units are part of the network's output"
        if not all(map(self._close, found, expected)):
            return (
                "its units cannot be told apart in the rest of the network "
                "(a reshape, a split, or a normalisation over channels in the network's own code)"
            )
        if self._trains and (fault := self._fault_in_training(pruned)) is not None:
            return (
                "a layer that runs in training or on several samples alone does not run without "
                f"some of its units ({fault})"
            )
        return None

    def _fault_in_training(self, model: nn.Module) -> str | None:
        """Why a network, whose mode and running statistics this changes, does not run there."""
        model.train()
        try:
            two = map_inputs(lambda x: torch.cat([x, x]), self._inputs)
            with own_rng(0, self._device), torch.no_grad():
                forward(model, two)
        except Exception as error:
            return first_line(error, 160)
        return None

    def _close(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        found, expected = found.double(), expected.double()
        scale = expected.abs().max() if expected.numel() else 0.0
        return bool(((found - expected).abs() <= self._tolerance * scale + 1e-30).all())

    def _run(self, model: nn.Module) -> list[torch.Tensor]:
        for module in model.modules():
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                module.forward = partial(_elementwise, module)  # type: ignore[method-assign]
        outputs_of(model, self._inputs)  # it must run on PyTorch's fast paths, too
        with own_rng(0, self._device), torch.no_grad(), every_module():
            return tensors_of(forward(model, self._inputs))


def _elementwise(norm: nn.LayerNorm | nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """Bounded like a norm, but every entry on its own; fails on a wrong width as a norm does."""
    y = F.softsign(x)
    if isinstance(norm, nn.LayerNorm):
        width = int(norm.normalized_shape[-1])
        spare = x.dim() - 2 if _is_channels_first(norm, x, width) else 0
    else:
        spare, width = x.dim() - 2, norm.num_channels
    if x.shape[-1 - spare] != width:
        raise ValueError(f"expected {width} channels, got {x.shape[-1 - spare]}")
    if norm.weight is not None:
        y = y * norm.weight.reshape(-1, *[1] * spare)
    if norm.bias is not None:
        y = y + norm.bias.reshape(-1, *[1] * spare)
    return y


def _is_channels_first(norm: nn.LayerNorm, x: torch.Tensor, width: int) -> bool:
    """Whether a layer norm of its own kind is over axis 1: it says so, or nothing else fits."""
    if type(norm).forward is nn.LayerNorm.forward:
        return False
    told = getattr(norm, "data_format", None)
    return told == "channels_first" or (told is None and x.shape[-1] != width)


def _some(coupling: Coupling, rng: np.random.Generator) -> Indices:
    """A quarter to three quarters of the units, of every cell as many: at least one goes and one
    stays.
    """
    cells = [np.flatnonzero(coupling.cell == c) for c in np.unique(coupling.cell)]
    cells = [np.setdiff1d(cell, coupling.pinned) for cell in cells]
    share = rng.uniform(0.25, 0.75)
    chosen: Iterable[Indices] = (
        rng.permutation(cell)[: min(max(round(share * len(cell)), 1), len(cell) - 1)]
        for cell in cells
        if len(cell)
    )
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def _noisy(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same inputs in `dtype` with some noise, where they are real numbers."""
    generator = torch.Generator().manual_seed(0)

    def change(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=generator, dtype=dtype)
        return x.to(dtype) + 0.5 * noise.to(x.device)

    noisy: Inputs = map_inputs(change, inputs)
    return noisy


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Weights of He's scale, and away from zero whatever scales or shifts a channel."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() > 1:
            fan_in = max(parameter[0].numel(), 1)
            values = torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5
        else:
            values = torch.rand(parameter.shape, generator=generator) + 0.5
        parameter.copy_(values)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 10)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
