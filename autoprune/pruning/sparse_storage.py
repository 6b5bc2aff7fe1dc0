"""What a network takes on disk, written dense, as CSR, or as 2:4 values and metadata."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from safetensors.torch import save
from torch import nn

from autoprune.pruning.masks import NEIGHBOURS, Masks

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a safetensors file, and of the same file compressed by deflate, as zip does it."""

    bytes: int
    zipped_bytes: int

    @classmethod
    def of(cls, tensors: Tensors) -> Self:
        """What these tensors take; those that share memory are written out each."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save({name: tensor.clone() for name, tensor in plain.items()})
        return cls(len(data), len(zlib.compress(data)))


def two_of_four_state(model: nn.Module, masks: Masks) -> dict[str, torch.Tensor]:
    """The state dict of a network with every weight that has a mask as values and metadata."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in masks:
            found[f"{name}.values"], found[f"{name}.metadata"] = values_and_metadata(
                tensor, masks[name]
            )
        else:
            found[name] = tensor
    return found


def values_and_metadata(
    weight: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept weights, half of them, and two bits a kept one for its place in its four.

    As NVIDIA's tensor cores have it (Mishra et al. 2021, arXiv:2104.08378, section 3.1): of every
    four neighbours along the second axis two values, and their two places, in ascending order.
    Four places make a byte of the metadata.
    """
    fours = weight.detach().cpu().movedim(1, -1).reshape(-1, NEIGHBOURS)
    stays = mask.cpu().movedim(1, -1).reshape(-1, NEIGHBOURS)
    assert bool((stays.sum(1) == 2).all()), "two of four"
    places = stays.nonzero()[:, 1].view(-1, 2)
    values = fours.gather(1, places)
    bits = places.flatten().to(torch.uint8)
    bits = torch.cat([bits, bits.new_zeros(-len(bits) % 4)]).view(-1, 4)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    return values.flatten(), (bits << shifts).sum(1, dtype=torch.uint8)
