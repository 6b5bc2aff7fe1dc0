"""Layers of other libraries that are PyTorch's in another form."""

from typing import Any, TypeGuard

from torch import nn


class Conv1D(nn.Module):
    """The linear layer of GPT-2 in `transformers`: weight [inputs, outputs], bias [outputs].

    Never built: a type for that library's own class, which is known by its name and its sizes.
    """

    nx: int
    nf: int
    weight: nn.Parameter
    bias: nn.Parameter


def is_conv1d(layer: Any) -> TypeGuard[Conv1D]:
    """Whether a layer is a linear one with its weight transposed."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nx") and hasattr(layer, "nf")


def in_pytorchs_form(model: nn.Module) -> None:
    """Put a linear layer of PyTorch's, with the same weights, in the place of each, in place."""
    made: dict[int, nn.Linear] = {}
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if is_conv1d(layer):
            if id(layer) not in made:
                made[id(layer)] = _linear(layer)
            model.set_submodule(name, made[id(layer)])


def _linear(layer: Conv1D) -> nn.Linear:
    weight, bias = layer.weight, layer.bias
    linear = nn.Linear(layer.nx, layer.nf, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
    linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return linear.train(layer.training)
