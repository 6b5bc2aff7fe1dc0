"""A factor of one on every unit of every sample, by which the loss can be differentiated.

Axis legend: B = batch, u = units of a group, w = inputs of a layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.domain.errors import AutopruneError
from autoprune.pruning.bypass import first_input
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.criteria.readers import blocks_of, input_axis, readers_of
from autoprune.pruning.cuts import width
from autoprune.tasks.protocol import tensors_of


@dataclass(eq=False)
class Masks:
    """The masks of the forward passes since the last `take`.

    Each multiplies a unit's signal in all layers that read it, so that 0 in place of 1 is what
    removing the unit does. Every sample has masks of its own: derivatives come for each sample
    at the price of one, since in evaluation mode no sample depends on another.
    """

    criterion: str
    dtype: torch.dtype
    device: torch.device
    samples: int = 0
    taken: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    current: dict[str, torch.Tensor] = field(default_factory=dict)
    heard: list[torch.Tensor] = field(default_factory=list)

    def begin(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass: how many samples it is of."""
        given = [tensor for tensor in tensors_of([*args, *kwargs.values()]) if tensor.dim()]
        self.samples = len(given[0]) if given else 0
        self.current = {}

    def end(self, _model: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """The pass is over: what the network returned."""
        self.heard += [tensor for tensor in tensors_of(output) if tensor.requires_grad]

    def factor(self, coupling: Coupling) -> torch.Tensor:
        """The group's masks in this pass: ones [B, u]."""
        name, size = coupling.group.name, coupling.group.size
        if name not in self.current:
            self.current[name] = torch.ones(
                self.samples, size, dtype=self.dtype, device=self.device, requires_grad=True
            )
            self.taken.setdefault(name, []).append(self.current[name])
        return self.current[name]

    def outputs(self) -> list[torch.Tensor]:
        """What the network returned since the last `take`, as far as masks can change it."""
        return list(self.heard)

    def take(self) -> dict[str, list[torch.Tensor]]:
        """The masks by group, of one pass or more; groups that no layer read are left out."""
        found, self.taken, self.current, self.heard = self.taken, {}, {}, []
        return found


@contextmanager
def masked(model: nn.Module, couplings: Sequence[Coupling], *, criterion: str) -> Iterator[Masks]:
    """A network whose units are multiplied by masks while the context is open."""
    first = next(p for p in model.parameters() if p.is_floating_point())
    masks = Masks(criterion, first.dtype, first.device)
    hooks = [
        model.register_forward_pre_hook(masks.begin, with_kwargs=True),
        model.register_forward_hook(masks.end),
    ]
    for coupling in couplings:
        for member, layer in readers_of(model, coupling):
            slot = torch.full((width(layer, "in"),), coupling.group.size)
            slot[torch.from_numpy(member.index)] = torch.from_numpy(member.unit)
            hook = partial(_scale, masks, coupling, slot.to(first.device))
            hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        for unit, _, block in blocks_of(model, coupling):
            scale = partial(_scale_added, masks, coupling, unit)
            hooks.append(block.register_forward_hook(scale, with_kwargs=True))
    try:
        yield masks
    finally:
        for handle in hooks:
            handle.remove()


def _scale(
    masks: Masks,
    coupling: Coupling,
    slot: torch.Tensor,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The reader's input [B, ...] times the masks of its units; `slot` says which, [w]."""
    inputs, axis = first_input(args, kwargs), input_axis(layer)
    # the last slot is for inputs that are no units of this group
    factor = F.pad(_for_each_row(masks, coupling, inputs), (0, 1), value=1.0)[:, slot]
    shape = [len(inputs)] + [1] * (inputs.dim() - 1)
    shape[axis] = len(slot)
    scaled = inputs * factor.reshape(shape).to(inputs.dtype)
    return ((scaled, *args[1:]), kwargs) if args else ((), kwargs | {next(iter(kwargs)): scaled})


def _scale_added(
    masks: Masks,
    coupling: Coupling,
    unit: int,
    _block: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: torch.Tensor,
) -> torch.Tensor:
    """The block's output with what it adds to its input times the mask of its unit."""
    given: torch.Tensor = first_input(args, kwargs)
    factor = _for_each_row(masks, coupling, output)[:, unit]
    factor = factor.reshape(-1, *[1] * (output.dim() - 1)).to(output.dtype)
    return given + factor * (output - given)


def _for_each_row(masks: Masks, coupling: Coupling, values: torch.Tensor) -> torch.Tensor:
    """The masks for the rows of a tensor [rows, ...], each sample's for all of its own: [rows, u].

    Raises AutopruneError where rows are not so many a sample.
    """
    if masks.samples == 0 or len(values) % masks.samples:
        raise AutopruneError(
            f"criterion {masks.criterion!r} tells samples apart by the first axis, and a layer "
            f"of group {coupling.group.name!r} takes {list(values.shape)} for "
            f"{masks.samples} samples; choose taylor"
        )
    return masks.factor(coupling).repeat_interleave(len(values) // masks.samples, 0)
