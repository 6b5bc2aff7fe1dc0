"""How much of a network's work is in depthwise-separable convolutions, as on mobile phones."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoprune.pruning.coupling import Coupling
from autoprune.pruning.cuts import is_depthwise
from autoprune.pruning.isolation import outputs_of
from autoprune.tasks.protocol import Inputs, every_module


def separable_macs(model: nn.Module, example: Inputs, couplings: Iterable[Coupling]) -> float:
    """The multiplications of one inference in depthwise convolutions and in the pointwise ones
    (of kernel 1) that make or read the same group (Howard et al., MobileNets, 2017).
    """
    modules = dict(model.named_modules())
    wanted: set[str] = set()
    for coupling in couplings:
        layers = {member.layer for member in coupling.members if member.layer in modules}
        depthwise = {name for name in layers if is_depthwise(modules[name])}
        if depthwise:
            wanted |= depthwise | {name for name in layers if _is_pointwise(modules[name])}
    found: list[int] = []

    def count(layer: nn.Module, _given: Any, output: Any) -> None:
        assert isinstance(layer, _ConvNd)
        found.append(output.numel() * layer.weight[0].numel())

    hooks = [modules[name].register_forward_hook(count) for name in wanted]
    try:
        with every_module():
            outputs_of(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return float(sum(found))


def _is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and set(layer.kernel_size) == {1} and layer.groups == 1
