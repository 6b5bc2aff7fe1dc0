"""How much of a network's work is in depthwise-separable convolutions, as on mobile phones."""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoprune.pruning.coupling import Coupling
from autoprune.pruning.cuts import is_depthwise
from autoprune.pruning.macs import layer_macs
from autoprune.tasks.protocol import Inputs


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
    macs = layer_macs(model, example)
    return float(sum(macs[name] for name in wanted & macs.keys()))


def _is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and set(layer.kernel_size) == {1} and layer.groups == 1
