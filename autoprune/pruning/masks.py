"""Masks: which single weights of a network stay, and what multiplying by the others costs."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.domain.errors import AutopruneError
from autoprune.pruning.isolation import outputs_of
from autoprune.tasks.protocol import Inputs, every_module

Masks = Mapping[str, torch.Tensor]
"""By the name of a weight, bool of its shape: True where it stays."""

NEIGHBOURS = 4
"""Of so many the pattern 2:4 keeps two."""


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that a mask may thin out, by name, tied ones once.

    Those of convolutions, linear layers and `nn.MultiheadAttention`. Biases, norms, embeddings
    and parameters of other modules stay whole, as is usual: they are few, or read only in part.
    """
    wanted = {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        for own in _weight_names(module)
    }
    return {name: weight for name, weight in model.named_parameters() if name in wanted}


def _weight_names(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, (_ConvNd, nn.Linear)):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        return ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return ()


def magnitude_masks(model: nn.Module, *, kept: int) -> dict[str, torch.Tensor]:
    """Masks under which the network keeps exactly `kept` parameters, its largest weights.

    Weights are compared across the whole network (global magnitude pruning: Han et al., Learning
    both Weights and Connections, NeurIPS 2015); of equal ones the first stays. What no mask may
    thin out counts as kept. Raises AutopruneError where that alone is more than `kept`, and
    where `kept` is more than there is.
    """
    weights = weights_of(model)
    total, sizes = params_of(model), [weight.numel() for weight in weights.values()]
    fixed = total - sum(sizes)
    if not fixed <= kept <= total:
        raise AutopruneError(
            f"{kept} of {total} parameters are to stay; choose between {fixed} (biases, norms and "
            f"whatever else no mask thins out) and {total}"
        )
    flat = torch.cat([weight.detach().abs().flatten().cpu() for weight in weights.values()])
    order = torch.sort(flat, descending=True, stable=True).indices
    stays = torch.zeros(len(flat), dtype=torch.bool)
    stays[order[: kept - fixed]] = True
    return {
        name: part.view(weight.shape)
        for (name, weight), part in zip(weights.items(), torch.split(stays, sizes), strict=True)
    }


def two_of_four_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """Masks that keep the two largest of every four neighbours along the inputs of a weight.

    The pattern 2:4 of Mishra et al., Accelerating Sparse Deep Neural Networks, 2021
    (arXiv:2104.08378). Of equal weights the first stay. Weights whose inputs do not come in
    fours, and those of transposed convolutions, stay whole and have no mask.
    """
    found, modules = {}, dict(model.named_modules())
    for name, weight in weights_of(model).items():
        transposed = isinstance(modules[name.rpartition(".")[0]], _ConvTransposeNd)
        if transposed or weight.shape[1] % NEIGHBOURS:
            continue
        last = weight.detach().abs().cpu().movedim(1, -1)
        fours = last.reshape(-1, NEIGHBOURS)
        order = torch.sort(fours, dim=1, descending=True, stable=True).indices
        stays = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, order[:, :2], True)
        found[name] = stays.view(last.shape).movedim(-1, 1).contiguous()
    return found


def masked(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of a network with zeros where a mask lets nothing stay."""
    thinned = copy.deepcopy(model)
    weights = weights_of(thinned)
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask.to(weights[name].device))
    return thinned


def kept_params(model: nn.Module, masks: Masks) -> int:
    """How many parameters of a network stay under masks, tied ones counted once."""
    return params_of(model) - sum(int((~mask).sum()) for mask in masks.values())


def params_of(model: nn.Module) -> int:
    """How many parameters a network has, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def zero_macs(model: nn.Module, example: Inputs) -> float:
    """How many multiplications of one inference on `example` have a weight of zero as a factor.

    Taken from a network's MACs, they leave those that an unstructured network is charged with:
    Evci et al., Rigging the Lottery, ICML 2020 (arXiv:1911.11134, appendix on FLOPs), and the
    theoretical speedup of Blalock et al., What is the State of Neural Network Pruning?, MLSys
    2020 (arXiv:2003.03033). No kernel has to skip them for that.
    """
    found: list[int] = []
    hooks = [
        module.register_forward_hook(_counting(found), with_kwargs=True)
        for module in model.modules()
        if _weight_names(module)
    ]
    try:
        with every_module():
            outputs_of(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return float(sum(found))


def _counting(found: list[int]) -> Any:
    def count(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        match module:
            case _ConvTransposeNd():
                given = args[0] if args else kwargs["input"]
                found.append(_zeros(module.weight) * (given.numel() // module.in_channels))
            case _ConvNd():
                found.append(_zeros(module.weight) * (output.numel() // module.out_channels))
            case nn.Linear():
                found.append(_zeros(module.weight) * (output.numel() // module.out_features))
            case nn.MultiheadAttention():
                found.append(_attention_zeros(module, args, kwargs))

    return count


def _attention_zeros(module: nn.MultiheadAttention, args: Any, kwargs: Any) -> int:
    """Multiplications by zeros in the projections of queries, keys, values and outputs."""
    names = ("query", "key", "value")
    given = dict(zip(names, args, strict=False)) | kwargs
    tokens: list[int] = [given[name].numel() // given[name].shape[-1] for name in names]
    own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    parts = module.in_proj_weight.chunk(3) if module.in_proj_weight is not None else own
    inside = sum(_zeros(part) * count for part, count in zip(parts, tokens, strict=True))
    return inside + _zeros(module.out_proj.weight) * tokens[0]


def _zeros(weight: torch.Tensor) -> int:
    return weight.numel() - int(weight.count_nonzero())
