"""Removing inputs and outputs of layers, by index, and whole modules, in place.

Axis legend: r, c = rows and columns of a weight.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from autoprune.domain.errors import AutopruneError
from autoprune.pruning.attention import PROJECTIONS, narrow, without_heads
from autoprune.pruning.bypass import Bypass, Nothing, Reading
from autoprune.pruning.cuts import Cut, Side, groups_of, has_inputs, is_depthwise, is_row, width
from autoprune.pruning.foreign import Conv1D, is_conv1d
from autoprune.tasks.protocol import device_of

Done = set[tuple[int, int]]
"""Parameters that were cut, by identity, and on which axis."""


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
        if "in" in sides and not has_inputs(layer):
            raise AutopruneError(
                f"the cut of {name!r} is of inputs, and a {type(layer).__name__} has none besides "
                "its outputs; cut those"
            )
        kept = {side: cut.kept(width(layer, side)) for side, cut in sides.items()}
        _cut_layer(layer, kept.get("in"), kept.get("out"), done=done)
    _cut_modules(model, whole)


def _cut_modules(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """What is cut of whole modules, once their layers are, from the inside out: what is inside of
    one that goes has no name any more.
    """
    cuts = sorted(cuts, key=lambda cut: -cut.layer.count("."))
    for cut in cuts:
        module = model.get_submodule(cut.layer)
        if cut.side == "heads" and not isinstance(module, nn.MultiheadAttention):
            without_heads(module, cut.kept(width(module, "heads")))
    narrow(model)
    for cut in cuts:
        if cut.side == "reads":
            layer = model.get_submodule(cut.layer)
            kept = cut.kept(width(layer, "in") + cut.count)
            _replace_module(model, cut.layer, Reading(layer, kept.to(device_of(layer))))
        elif cut.side == "branch":
            _replace_module(model, cut.layer, Nothing(model.get_submodule(cut.layer)))
        elif cut.side == "block":
            _replace_module(model, cut.layer, Bypass(model.get_submodule(cut.layer)))


def _replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, in the mode of that one."""
    model.set_submodule(name, module.train(model.get_submodule(name).training))


def silence_inputs(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Zero, in place, the weights that read the inputs which `cuts` would remove; blocks go."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for cut in cuts:
        if cut.side == "block":
            _replace_module(model, cut.layer, Bypass(model.get_submodule(cut.layer)))
        elif cut.side == "param":
            _silence_projection(modules, cut)
        layer = modules.get(cut.layer)
        if cut.side != "in" or not isinstance(layer, (_ConvNd, nn.Linear)):
            continue
        gone = torch.ones(width(layer, "in"), dtype=torch.bool)
        gone[cut.kept(len(gone))] = False
        gone = gone.to(layer.weight.device)
        if is_row(layer, "in"):
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


def _find(table: dict[str, Any], cut: Cut) -> Any:
    if not cut.layer or cut.layer not in table:
        raise AutopruneError(f"the network has no layer {cut.layer!r}, which the cut names")
    return table[cut.layer]


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
    sides = (kept_out, kept_in) if is_row(layer, "out") else (kept_in, kept_out)
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
