"""What a network with some of its units costs, as a share of what it costs with all of them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from autoprune.pruning.coupling import Coupling
from autoprune.pruning.cuts import is_depthwise, width
from autoprune.pruning.foreign import in_pytorchs_form
from autoprune.pruning.macs import layer_macs
from autoprune.tasks.protocol import Inputs

Cost = Callable[[Mapping[str, int]], float]
"""The cost at so many units by group, those left out being whole, as a share of the cost of all."""


@dataclass
class _Layer:
    """Multiply-accumulates of a layer, and what a unit of a group is of each of its sides."""

    macs: int
    sides: list[dict[str, float]] = field(default_factory=lambda: [{}, {}])


class MacCost:
    """Multiply-accumulates of convolutions and linear layers, counted over one forward pass.

    A layer takes as many as its outputs times its inputs, so the sum is of products of widths. It
    is the count of `autoprune.measurement.cost` for networks that consist of such layers.
    """

    def __init__(self, model: nn.Module, example: Inputs, couplings: Sequence[Coupling]) -> None:
        """`model` is the unpruned network, `example` an input of it. Units of a group own equally
        much, which those of `UNEVEN_KINDS` do not.
        """
        model = copy.deepcopy(model)
        in_pytorchs_form(model)
        modules = dict(model.named_modules())
        self._sizes = {c.group.name: c.group.size for c in couplings}
        self._layers = {name: _Layer(macs) for name, macs in layer_macs(model, example).items()}
        for coupling in couplings:
            group = coupling.group
            for member in coupling.members:
                layer = self._layers.get(member.layer)
                if layer is None or member.side not in ("in", "out"):
                    continue
                module = modules[member.layer]
                # a depthwise convolution has one input for every output
                side = 0 if member.side == "out" or is_depthwise(module) else 1
                share = len(member.index) / group.size / width(module, member.side)
                layer.sides[side][group.name] = layer.sides[side].get(group.name, 0.0) + share

    def __call__(self, live: Mapping[str, int]) -> float:
        """See `Cost`."""
        gone = {name: size - live.get(name, size) for name, size in self._sizes.items()}
        total = sum(layer.macs for layer in self._layers.values())
        left = 0.0
        for layer in self._layers.values():
            outputs, inputs = (
                1 - sum(share * gone[name] for name, share in side.items()) for side in layer.sides
            )
            left += layer.macs * outputs * inputs
        return left / total if total else 1.0
