"""Multiply-accumulates, layer by layer."""

from collections import defaultdict
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoprune.pruning.isolation import outputs_of
from autoprune.tasks.protocol import Inputs, every_module


def layer_macs(model: nn.Module, example: Inputs) -> dict[str, int]:
    """The multiply-accumulates of every convolution and linear layer that one inference calls."""
    found: dict[str, int] = defaultdict(int)
    hooks = []
    for name, module in model.named_modules():
        if not isinstance(module, (_ConvNd, nn.Linear)):
            continue

        def count(
            layer: Any, args: tuple[Any, ...], kwargs: Any, output: Any, name: str = name
        ) -> None:
            # every number of a convolution's output, or of a transposed one's input, takes a row
            many = output
            if getattr(layer, "transposed", False):
                many = args[0] if args else kwargs["input"]
            found[name] += many.numel() * layer.weight[0].numel()

        hooks.append(module.register_forward_hook(count, with_kwargs=True))
    try:
        with every_module():
            outputs_of(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(found)
