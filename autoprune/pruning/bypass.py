"""Blocks that a network can do without, and what stands where modules were or read less."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoprune.pruning.isolation import own_rng
from autoprune.tasks.protocol import Inputs, device_of, every_module, forward, tensors_of


class Bypass(nn.Module):
    """What stands where a block was: it hands its first input on.

    Networks ask their blocks what they are (`nn.TransformerEncoder` reads `self_attn.batch_first`
    of the first), so it has the attributes of the block, whose weights have a shape and no values.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = (copy.deepcopy(block).to("meta"),)  # in a tuple, so that it is no child

    def __getattr__(self, name: str) -> Any:
        """The block's; of private names, which copying and loading ask for, its own."""
        return super().__getattr__(name) if name.startswith("_") else getattr(self._block[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first input."""
        return first_input(args, kwargs)


class Nothing(nn.Module):
    """What stands where a layer of a branch was that is gone: it puts out no channels.

    Not a layer of width 0, which PyTorch does not run: zeros of the shape that the layer's outputs
    would have, with no channel on them, which a concatenation joins as any others.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.is_last = isinstance(layer, (nn.Linear, nn.LayerNorm))
        self.slides: tuple[tuple[int, int], ...] = ()
        if isinstance(layer, _ConvNd):
            self.slides = tuple(_slide(layer, axis) for axis in range(len(layer.kernel_size)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [B, C, ...] to [B, 0, ...], for a linear layer or a layer norm [..., C] to
        [..., 0].
        """
        if self.is_last:
            return x[..., :0]
        if not self.slides:  # any other norm keeps the shape
            return x[:, :0]
        sides = x.shape[2:]
        left = [
            (side + more) // stride + 1
            for side, (more, stride) in zip(sides, self.slides, strict=True)
        ]
        return x.new_zeros(x.shape[0], 0, *left)


def _slide(layer: _ConvNd, axis: int) -> tuple[int, int]:
    """How a convolution's side follows from its input's n: (n + more) // stride + 1."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    if layer.padding == "same":
        return -1, 1
    padding = 0 if isinstance(layer.padding, str) else layer.padding[axis]
    return 2 * padding - reach - 1, layer.stride[axis]


class Reading(nn.Module):
    """A layer that reads only some of the channels that it is given."""

    def __init__(self, layer: nn.Module, kept: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("kept", kept)
        self.axis = -1 if isinstance(layer, nn.Linear) else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer makes of the channels `kept`: axis 1, of a linear layer the last one."""
        read: torch.Tensor = self.layer(x.index_select(self.axis, self.get_buffer("kept")))
        return read


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a block hands on: the first of what it is given; None for nothing."""
    return args[0] if args else next(iter(kwargs.values()), None)


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks in a row whose inputs and outputs have one shape, by name, in order.

    The first is `pinned` where it stays whatever is cut: it makes the shape of the others.
    """

    blocks: tuple[str, ...]
    pinned: bool


@dataclass(frozen=True)
class _Call:
    """What one call of a block took and gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def taken(self) -> Any:
        return first_input(self.args, self.kwargs)


def stacks_of(model: nn.Module, inputs: Inputs) -> list[Stack]:
    """The stacks of residual blocks of a network, those that hold others before those inside.

    A block is a child of an `nn.Sequential` or `nn.ModuleList` next to others of its class. It can
    be bypassed where it is called once, gives one tensor of its first input's shape, and still
    depends on that input when all its weights are zero: because it adds to it. A block before
    them of the same class that cannot, because it changes the shape, counts as the first of the
    stack. Blocks inside a stack's blocks are no stack of their own.
    """
    rows = list(_rows(model))
    calls = _listen(model, inputs, [name for row in rows for name in row])
    found: list[Stack] = []
    for row in rows:
        if not any(row[0].startswith(f"{block}.") for stack in found for block in stack.blocks):
            found += _stacks_in_row(model, row, calls)
    return found


def _rows(model: nn.Module) -> Iterator[list[str]]:
    """The names of neighbours of one class, at least two, in the order of the network's modules."""
    for parent, module in model.named_modules():
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            continue
        children = [(f"{parent}.{own}".strip("."), child) for own, child in module.named_children()]
        for _, same in groupby(children, key=lambda pair: type(pair[1])):
            row = [name for name, child in same if any(p.dim() > 1 for p in child.parameters())]
            if len(row) > 1:
                yield row


def _listen(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, list[_Call]]:
    """The calls of every block in a forward pass."""
    calls: dict[str, list[_Call]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, args, kwargs, out, name=name: calls[name].append(_Call(args, kwargs, out)),
            with_kwargs=True,
        )
        for name in names
    ]
    try:
        with torch.no_grad(), every_module():
            forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _stacks_in_row(
    model: nn.Module, row: Sequence[str], calls: dict[str, list[_Call]]
) -> Iterator[Stack]:
    """Runs of blocks that can be bypassed, each with the block before it that makes its shape."""
    spare = {name: _can_be_bypassed(model.get_submodule(name), calls[name]) for name in row}
    shapes = {
        name: [tuple(t.shape) for c in calls[name] for t in tensors_of(c.output)] for name in row
    }
    before: str | None = None
    for can, same in groupby(row, key=lambda name: (spare[name], shapes[name])):
        run = list(same)
        if can[0]:
            pinned = before is not None and shapes[before] == can[1]
            blocks = ((before,) if pinned and before is not None else ()) + tuple(run)
            if len(blocks) > 1:
                yield Stack(blocks, pinned)
        before = run[-1]


def _can_be_bypassed(block: nn.Module, calls: Sequence[_Call]) -> bool:
    """Whether a block adds to what it is given, and gives one tensor of that shape."""
    if len(calls) != 1:
        return False
    given, output = calls[0].taken, calls[0].output
    if not isinstance(given, torch.Tensor) or not isinstance(output, torch.Tensor):
        return False
    if given.shape != output.shape or not given.is_floating_point():
        return False
    return _adds(block, calls[0])


def _adds(block: nn.Module, call: _Call) -> bool:
    """Whether the block's output depends on its input when its weights and biases are zero."""
    silent = copy.deepcopy(block).eval()
    with torch.no_grad(), own_rng(0, device_of(block)):
        for name, parameter in silent.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                parameter.zero_()
        said = []
        for changed in (call.taken, torch.rand_like(call.taken) + call.taken):
            args = (changed, *call.args[1:]) if call.args else ()
            kwargs = call.kwargs
            if not call.args:
                kwargs = {**kwargs, next(iter(kwargs)): changed}
            said.append(silent(*args, **kwargs))
    return bool(said[0].isfinite().all()) and not torch.equal(said[0], said[1])
