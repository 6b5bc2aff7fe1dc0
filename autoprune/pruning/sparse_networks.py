"""Networks whose layers run on torch's sparse kernels, as far as there are such kernels."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.pruning.attention import leave_fast_path
from autoprune.pruning.isolation import outputs_of
from autoprune.pruning.masks import NEIGHBOURS, weights_of
from autoprune.pruning.sparse_layers import CsrConv2d, CsrLinear, TwoOfFourLinear, compressed
from autoprune.tasks.protocol import Inputs

AMPERE = (8, 0)
"""The compute capability from which on NVIDIA's tensor cores know the pattern 2:4."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A network of which `layers` of the `of` weights that a mask may thin run on sparse kernels.

    The others stay dense: nobody has a sparse kernel for them.
    """

    model: nn.Module
    layers: int
    of: int


def with_csr(model: nn.Module, example: Inputs) -> Converted:
    """A copy of a network on CSR kernels, as far as its forward pass calls layers that allow it.

    Linear layers and two-dimensional convolutions of one group do; subclasses of them may compute
    something else and do not.
    """

    def csr(layer: nn.Module) -> nn.Module | None:
        if type(layer) is nn.Linear:
            return CsrLinear(layer)
        if type(layer) is nn.Conv2d and CsrConv2d.takes(layer):
            return CsrConv2d(layer)
        return None

    return _converted(model, example, csr)


def with_two_of_four(model: nn.Module, example: Inputs, device: str) -> Converted:
    """A copy of a network whose linear layers run on the 2:4 kernels of `device`, where they can.

    torch has such kernels for linear layers alone, and for shapes that are multiples of 16 or
    more. The pattern must be there already.
    """

    def semi_structured(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear or not _is_two_of_four(layer.weight):
            return None
        try:
            compressed(layer.weight.detach().to(device, torch.bfloat16))
        except RuntimeError:  # torch's word for a shape or a type that its kernels do not take
            return None
        return TwoOfFourLinear(layer)

    return _converted(model, example, semi_structured)


def has_two_of_four(device: str) -> bool:
    """Whether a device has kernels for the pattern 2:4."""
    found = torch.device(device)
    if found.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(found) >= AMPERE


def _is_two_of_four(weight: torch.Tensor) -> bool:
    if weight.shape[1] % NEIGHBOURS:
        return False
    return bool((weight.reshape(-1, NEIGHBOURS).count_nonzero(dim=1) <= 2).all())


def _converted(
    model: nn.Module, example: Inputs, replacement: Callable[[nn.Module], nn.Module | None]
) -> Converted:
    converted = copy.deepcopy(model).eval().requires_grad_(False)
    of, done = len(weights_of(converted)), 0
    for name in _called(converted, example):
        place, _, own = name.rpartition(".")
        made = replacement(converted.get_submodule(name)) if name else None
        if made is not None:
            setattr(converted.get_submodule(place), own, made)
            done += 1
    leave_fast_path(converted)
    return Converted(converted, done, of)


def _called(model: nn.Module, example: Inputs) -> list[str]:
    """The modules that the forward pass calls: of others only the weights are read."""
    called: dict[str, None] = {}
    hooks = []
    for name, module in model.named_modules():

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            called.setdefault(name)

        hooks.append(module.register_forward_pre_hook(enter))
    try:
        outputs_of(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return list(called)
