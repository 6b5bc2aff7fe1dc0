"""Layers of low rank as two layers each: fewer products, where their number pays.

Axis legend: o = outputs of a layer, n = its inputs (channels times kernel), r = the rank.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, TrialError

LOST = 1e-3
"""The share of a weight's squares that a rank may leave out: what trains on has no exact one."""

Layer = nn.Conv1d | nn.Conv2d | nn.Linear


@dataclass(frozen=True, slots=True)
class Factor:
    """A layer that becomes two: one to `rank` units, and one without a kernel to its outputs."""

    layer: str
    rank: int


def factorable(model: nn.Module) -> dict[str, Layer]:
    """The layers that may be factored, by name."""
    named = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if n]
    holders = Counter(id(p) for _, module in named for p in module.parameters(recurse=False))
    return {
        name: module
        for name, module in named
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Linear)
        and isinstance(module, Layer)
        and getattr(module, "groups", 1) == 1
        and "weight" in module._parameters
        and holders[id(module.weight)] == 1
    }


def low_ranks(model: nn.Module) -> tuple[Factor, ...]:
    """The layers that would take fewer products as two, those that save most first.

    The rank r is the least that leaves out no more than `LOST` of the sum of the squared singular
    values of the weight [o, n]; two layers take ``r (o + n)`` products where one takes ``o n``.
    Convolutions in one and two dimensions with one group, and linear layers, which nobody else
    shares. Raises TrialError with ``Cause.NAN_LOSS`` for weights that are not finite.
    """
    found: dict[Factor, int] = {}
    for name, layer in factorable(model).items():
        weight = layer.weight.detach().double().cpu().flatten(1)
        if not weight.isfinite().all():
            raise TrialError(
                Cause.NAN_LOSS,
                f"layer {name!r} has weights that are not finite, and so no rank; lower the "
                "learning rate",
            )
        squares = torch.linalg.svdvals(weight).square()
        left = squares.sum() - squares.cumsum(0)
        rank = 1 + int((left > LOST * squares.sum()).sum())
        saved = weight.numel() - rank * sum(weight.shape)
        if saved > 0:
            found[Factor(name, rank)] = saved
    return tuple(sorted(found, key=lambda factor: -found[factor]))


def put_factors(model: nn.Module, factors: Iterable[Factor]) -> None:
    """Put two layers, whose weights mean nothing yet, in the place of each that is named, in place.

    The first is called ``<layer>.0``, the second ``<layer>.1``. Raises AutopruneError for a layer
    that the network lacks or that cannot be factored, and for a rank above that of any weight of
    its shape.
    """
    layers = factorable(model)
    chosen = [(factor, _chosen(layers, factor)) for factor in factors]
    for factor, layer in chosen:
        parent, _, leaf = factor.layer.rpartition(".")
        model.get_submodule(parent).add_module(leaf, _pair(layer, factor.rank))


def factor_layers(model: nn.Module, factors: Sequence[Factor]) -> None:
    """Factor layers in place: together the two have the best weight of their rank.

    By the singular value decomposition (Eckart and Young, 1936), each half with the roots of the
    singular values. Raises what `put_factors` raises.
    """
    whole = {factor: model.get_submodule(factor.layer) for factor in factors}
    put_factors(model, factors)
    for factor, layer in whole.items():
        assert isinstance(layer, Layer)
        first, second = model.get_submodule(factor.layer).children()
        assert isinstance(first, Layer)
        assert isinstance(second, Layer)
        left, values, right = torch.linalg.svd(
            layer.weight.detach().double().flatten(1), full_matrices=False
        )
        roots = values[: factor.rank].sqrt()
        with torch.no_grad():
            first.weight.copy_((roots[:, None] * right[: factor.rank]).view_as(first.weight))
            second.weight.copy_((left[:, : factor.rank] * roots).view_as(second.weight))
            if layer.bias is not None:
                assert second.bias is not None
                second.bias.copy_(layer.bias)


def _chosen(layers: dict[str, Layer], factor: Factor) -> Layer:
    layer = layers.get(factor.layer)
    if layer is None:
        raise AutopruneError(
            f"layer {factor.layer!r} cannot be factored; a convolution in one or two dimensions "
            "with one group, or a linear layer, that is in the network and shared by nobody can"
        )
    most = min(len(layer.weight), layer.weight[0].numel())
    if not 1 <= factor.rank <= most:
        raise AutopruneError(
            f"layer {factor.layer!r} is factored at rank {factor.rank}; choose between 1 and {most}"
        )
    return layer


def _pair(layer: Layer, rank: int) -> nn.Sequential:
    bias = layer.bias is not None
    # on no device at first: weights there are not drawn from the process's random numbers
    more: dict[str, Any] = {"device": "meta", "dtype": layer.weight.dtype}
    first: Layer
    second: Layer
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False, **more)
        second = nn.Linear(rank, layer.out_features, bias=bias, **more)
    else:
        kind = type(layer)
        first = kind(layer.in_channels, rank, bias=False, **_place(layer), **more)
        second = kind(rank, layer.out_channels, kernel_size=1, bias=bias, **more)
    pair = nn.Sequential(first, second).to_empty(device=layer.weight.device)
    pair.train(layer.training)
    for parameter in pair.parameters():
        parameter.requires_grad_(layer.weight.requires_grad)
    return pair


def _place(layer: nn.Conv1d | nn.Conv2d) -> dict[str, Any]:
    """Where and how a convolution is applied."""
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {name: getattr(layer, name) for name in names}
