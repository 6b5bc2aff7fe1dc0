"""The cut itself: removing inputs and outputs of layers, by index, in place.

Axis legend: w = units of one side of a layer; r, c = rows and columns of a weight.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from autoprune.domain.errors import AutopruneError
from autoprune.pruning.attention import PROJECTIONS, head_count, narrow, without_heads
from autoprune.pruning.bypass import Bypass, Nothing, Reading
from autoprune.pruning.foreign import Conv1D, is_conv1d
from autoprune.tasks.protocol import device_of

Side = Literal["in", "out", "param", "heads", "block", "branch", "reads"]
Indices = NDArray[np.int64]
Done = set[tuple[int, int]]
"""Parameters that were cut, by identity, and on which axis."""

LAYERS = (
    _ConvNd,
    nn.Linear,
    _BatchNorm,
    _InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.PReLU,
    nn.Embedding,
)
"""The layers that can be cut."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What is removed from one side of one layer, in indices of the unpruned network.

    `side` is ``in`` or ``out``, or ``param`` for a free parameter, whose `axis` then says where.
    Of whole modules it is ``heads`` for those of an attention, whose layers have cuts of their
    own, ``block`` where the module (its only unit) is bypassed, ``branch`` where a layer goes with
    its branch, and ``reads`` where a layer leaves out some of the channels that it is still given,
    by their places among these. `removed` holds half-open ranges, ascending and apart.
    """

    layer: str
    side: Side
    removed: tuple[tuple[int, int], ...]
    axis: int = 0

    def __post_init__(self) -> None:
        edges = [edge for pair in self.removed for edge in pair]
        if not edges or edges[0] < 0 or any(a >= b for a, b in pairwise(edges)):
            raise AutopruneError(
                f"the cut of {self.layer!r} ({self.side}) removes {list(self.removed)[:4]}; "
                "give ascending, separate ranges [start, stop) of indices"
            )

    @classmethod
    def of(cls, layer: str, side: Side, indices: Indices, *, axis: int = 0) -> Self:
        """The cut that removes `indices` (at least one, in any order)."""
        ordered = np.unique(indices)
        breaks = np.flatnonzero(np.diff(ordered) > 1) + 1
        runs = np.split(ordered, breaks)
        return cls(layer, side, tuple((int(r[0]), int(r[-1]) + 1) for r in runs), axis=axis)

    @property
    def count(self) -> int:
        """How many indices it removes."""
        return sum(stop - start for start, stop in self.removed)

    def kept(self, width: int) -> torch.Tensor:
        """The indices that remain of `width`, ascending. Raises where none do or one is too big."""
        if self.removed[-1][1] > width or self.count >= width:
            raise AutopruneError(
                f"the cut of {self.layer!r} ({self.side}) removes {self.count} indices up to "
                f"{self.removed[-1][1] - 1} of {width}; it must leave one and stay in range"
            )
        keep = torch.ones(width, dtype=torch.bool)
        for start, stop in self.removed:
            keep[start:stop] = False
        return keep.nonzero().flatten()


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution gives every channel its own filter, so that in and out are one."""
    return (
        isinstance(layer, _ConvNd) and layer.groups == layer.in_channels == layer.out_channels > 1
    )


def width(layer: nn.Module, side: Side) -> int:
    """The units on one side of a layer (one of `LAYERS`), or the heads of an attention."""
    heads = head_count(layer) if side == "heads" else None
    if heads is not None:
        return heads
    if is_conv1d(layer):
        return layer.nx if side == "in" else layer.nf
    match layer:
        case _ConvNd():
            return layer.in_channels if side == "in" else layer.out_channels
        case nn.Linear():
            return layer.in_features if side == "in" else layer.out_features
        case _BatchNorm() | _InstanceNorm():
            return layer.num_features
        case nn.LayerNorm():
            return int(layer.normalized_shape[-1])
        case nn.GroupNorm():
            return layer.num_channels
        case nn.PReLU():
            return layer.num_parameters
        case nn.Embedding():
            return layer.embedding_dim
    raise AutopruneError(f"{type(layer).__name__} cannot be cut; the layers that can: {_names()}")


def apply_cuts(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Remove in place what `cuts` name; parameters stay the same objects, so ties hold.

    Every layer is cut once, by indices of the unpruned network, so the order does not matter.
    Raises AutopruneError for a layer that the network lacks or a cut that does not fit it.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_layer: dict[str, dict[Side, Cut]] = defaultdict(dict)
    whole: list[Cut] = []
    done: Done = set()
    for cut in cuts:
        if cut.side == "param":
            _cut_parameter(_find(parameters, cut), cut, done)
            continue
        _find(modules, cut)
        if cut.side in ("heads", "block", "branch", "reads"):
            whole.append(cut)
        elif by_layer[cut.layer].setdefault(cut.side, cut) is not cut:
            raise AutopruneError(f"layer {cut.layer!r} is cut twice on its {cut.side} side")
    for name, sides in by_layer.items():
        layer = modules[name]
        kept = {side: cut.kept(width(layer, side)) for side, cut in sides.items()}
        _cut_layer(layer, kept.get("in"), kept.get("out"), done=done)
    _cut_modules(model, whole)


def _cut_modules(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """What is cut of whole modules, once their layers are: the names of those may be gone then."""
    for cut in cuts:
        module = model.get_submodule(cut.layer)
        if cut.side == "heads" and not isinstance(module, nn.MultiheadAttention):
            without_heads(module, cut.kept(width(module, "heads")))
    narrow(model)
    for cut in cuts:
        if cut.side == "reads":
            layer = model.get_submodule(cut.layer)
            kept = cut.kept(width(layer, "in") + cut.count)
            model.set_submodule(cut.layer, Reading(layer, kept.to(device_of(layer))))
        elif cut.side == "branch":
            model.set_submodule(cut.layer, Nothing(model.get_submodule(cut.layer)))
    for cut in cuts:
        if cut.side == "block":
            model.set_submodule(cut.layer, Bypass())


def silence_inputs(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Zero, in place, the weights that read the inputs which `cuts` would remove; blocks go."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for cut in cuts:
        if cut.side == "block":
            model.set_submodule(cut.layer, Bypass())
        elif cut.side == "param":
            _silence_projection(modules, cut)
        layer = modules.get(cut.layer)
        if cut.side != "in" or not isinstance(layer, (_ConvNd, nn.Linear)):
            continue
        gone = torch.ones(width(layer, "in"), dtype=torch.bool)
        gone[cut.kept(len(gone))] = False
        gone = gone.to(layer.weight.device)
        if _is_row(layer, "in"):
            layer.weight.data[gone] = 0
            continue
        groups = groups_of(layer)
        for rows, columns in zip(layer.weight.data.chunk(groups), gone.chunk(groups), strict=True):
            rows[:, columns] = 0


def _silence_projection(modules: Mapping[str, nn.Module], cut: Cut) -> None:
    """Zero the columns of what an `nn.MultiheadAttention` projects its inputs with."""
    owner, _, own = cut.layer.rpartition(".")
    if isinstance(modules[owner], nn.MultiheadAttention) and own in PROJECTIONS and cut.axis == 1:
        weight = modules[owner]._parameters[own]
        assert weight is not None
        for start, stop in cut.removed:
            weight.data[:, start:stop] = 0


def sum_by_unit(layer: nn.Module, side: Side, values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor shaped like the layer's weight over all but the units of a side: [w]."""
    return rows_by_unit(layer, side, values).sum(1)


def rows_by_unit(layer: nn.Module, side: Side, values: torch.Tensor) -> torch.Tensor:
    """A tensor shaped like the layer's weight with one row for every unit of a side: [w, ...]."""
    if isinstance(layer, nn.Embedding):
        return values.T
    if values.dim() == 1 or is_depthwise(layer) or _is_row(layer, side):
        return values.reshape(len(values), -1)
    groups, columns = groups_of(layer), values.shape[1]
    blocks = values.reshape(groups, -1, columns, values[0, 0].numel())
    return blocks.transpose(1, 2).reshape(groups * columns, -1)


def weight_axis(layer: nn.Module, side: Side) -> int:
    """The axis of the layer's weight on which the units of a side lie."""
    if isinstance(layer, nn.Embedding):
        return 1
    if isinstance(layer, (_ConvNd, nn.Linear)) and not is_depthwise(layer):
        return 0 if _is_row(layer, side) else 1
    return 0


def groups_of(layer: nn.Module) -> int:
    """The number of blocks whose widths must stay equal; 1 for layers without groups."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, _ConvNd) and not is_depthwise(layer):
        return layer.groups
    return 1


def _is_row(layer: nn.Module, side: Side) -> bool:
    """Whether a side's units are the weight's first axis, which groups leave whole."""
    return (side == "out") != bool(getattr(layer, "transposed", False))


def _cut_layer(
    layer: nn.Module, kept_in: torch.Tensor | None, kept_out: torch.Tensor | None, *, done: Done
) -> None:
    if is_conv1d(layer):
        _cut_conv1d(layer, kept_in, kept_out, done=done)
        return
    match layer:
        case _ConvNd() if is_depthwise(layer):
            assert kept_out is not None
            _select(layer.weight, kept_out, 0, done)
            _select(layer.bias, kept_out, 0, done)
            layer.in_channels = layer.out_channels = layer.groups = len(kept_out)
        case _ConvNd():
            _cut_weight(layer, kept_in, kept_out, done=done)
            if kept_in is not None:
                layer.in_channels = len(kept_in)
            if kept_out is not None:
                _select(layer.bias, kept_out, 0, done)
                layer.out_channels = len(kept_out)
        case nn.Linear():
            _cut_weight(layer, kept_in, kept_out, done=done)
            if kept_in is not None:
                layer.in_features = len(kept_in)
            if kept_out is not None:
                _select(layer.bias, kept_out, 0, done)
                layer.out_features = len(kept_out)
        case nn.Embedding():
            assert kept_out is not None
            _select(layer.weight, kept_out, 1, done)
            layer.embedding_dim = len(kept_out)
        case _:
            assert kept_out is not None
            _cut_norm(layer, kept_out, done=done)


def _cut_conv1d(
    layer: Conv1D, kept_in: torch.Tensor | None, kept_out: torch.Tensor | None, *, done: Done
) -> None:
    if kept_in is not None:
        _select(layer.weight, kept_in, 0, done)
        layer.nx = len(kept_in)
    if kept_out is not None:
        _select(layer.weight, kept_out, 1, done)
        _select(layer.bias, kept_out, 0, done)
        layer.nf = len(kept_out)


def _cut_norm(layer: nn.Module, kept: torch.Tensor, *, done: Done) -> None:
    """Cut a layer that has one entry a unit in everything it holds."""
    for name in ("weight", "bias"):
        _select(getattr(layer, name, None), kept, 0, done)
    match layer:
        case _BatchNorm() | _InstanceNorm():
            for name in ("running_mean", "running_var"):
                buffer = getattr(layer, name)
                if buffer is not None:
                    setattr(layer, name, buffer[kept.to(buffer.device)])
            layer.num_features = len(kept)
        case nn.LayerNorm():
            layer.normalized_shape = (len(kept),)
        case nn.GroupNorm():
            _check_balance(layer, kept, layer.num_channels)
            layer.num_channels = len(kept)
        case nn.PReLU():
            layer.num_parameters = len(kept)


def _cut_weight(
    layer: _ConvNd | nn.Linear,
    kept_in: torch.Tensor | None,
    kept_out: torch.Tensor | None,
    *,
    done: Done,
) -> None:
    """Cut a weight [r, c / groups, ...] on both sides: its rows are whole, columns by group."""
    both = {(id(layer.weight), 0), (id(layer.weight), 1)}
    if both & done:
        return
    done |= both
    weight, groups = layer.weight.data, groups_of(layer)
    sides = (kept_out, kept_in) if _is_row(layer, "out") else (kept_in, kept_out)
    sizes = (weight.shape[0], weight.shape[1] * groups)
    parts = []
    for kept, size in zip(sides, sizes, strict=True):
        kept = torch.arange(size) if kept is None else kept
        _check_balance(layer, kept, size)
        block = size // groups
        parts.append([kept[kept // block == g].to(weight.device) for g in range(groups)])
    column_block = sizes[1] // groups
    blocks = [
        weight.index_select(0, rows).index_select(1, columns - g * column_block)
        for g, (rows, columns) in enumerate(zip(*parts, strict=True))
    ]
    _replace(layer.weight, torch.cat(blocks) if groups > 1 else blocks[0])


def _check_balance(layer: nn.Module, kept: torch.Tensor, size: int) -> None:
    groups = groups_of(layer)
    counts = torch.bincount(kept // (size // groups), minlength=groups)
    if int(counts.min()) < int(counts.max()):
        raise AutopruneError(
            f"a cut leaves the {groups} groups of a {type(layer).__name__} with {counts.tolist()} "
            "units; keep equally many in each"
        )


def _cut_parameter(parameter: nn.Parameter, cut: Cut, done: Done) -> None:
    if not 0 <= cut.axis < parameter.dim():
        raise AutopruneError(
            f"the cut of parameter {cut.layer!r} is on axis {cut.axis} of {parameter.dim()}"
        )
    _select(parameter, cut.kept(parameter.shape[cut.axis]), cut.axis, done)


def _select(parameter: torch.Tensor | None, kept: torch.Tensor, axis: int, done: Done) -> None:
    """Cut a parameter once, however many layers hold it."""
    if parameter is None or (id(parameter), axis) in done:
        return
    done.add((id(parameter), axis))
    if kept[-1] >= parameter.shape[axis]:
        raise AutopruneError(
            f"a cut keeps index {int(kept[-1])} of a parameter of shape {tuple(parameter.shape)}"
        )
    _replace(parameter, parameter.data.index_select(axis, kept.to(parameter.device)))


def _replace(parameter: torch.Tensor, data: torch.Tensor) -> None:
    parameter.grad = None
    parameter.data = data.clone()


def _names() -> list[str]:
    return [layer.__name__.strip("_") for layer in LAYERS]


def _find(table: dict[str, Any], cut: Cut) -> Any:
    if cut.layer not in table:
        raise AutopruneError(f"the network has no layer {cut.layer!r}, which the cut names")
    return table[cut.layer]
