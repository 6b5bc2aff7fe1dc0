"""Attention that may lose heads: its counts, and a module for what PyTorch's cannot be cut to.

Axis legend: B batch, T positions that ask, S positions that are asked, E embedding, H heads, d
width of a head, H' heads that are left.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.domain.errors import AutopruneError

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_key_value_heads")
"""What modules call the number of their heads."""

WIDTHS = ("all_head_size", "split_size", "inner_dim")
"""What modules call the width of all heads together, where it need not be the embedding's."""

PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""The weights of `nn.MultiheadAttention` that make heads, one matrix for all or one for each."""


def head_count(module: nn.Module) -> int | None:
    """How many heads a module says that it has; None where it speaks of none."""
    counts = [getattr(module, name, None) for name in COUNTS]
    found = [count for count in counts if type(count) is int]
    return found[0] if found else None


def without_heads(module: nn.Module, kept: torch.Tensor) -> None:
    """Tell a module, in place, that only the heads `kept` are left: its counts and widths."""
    heads = head_count(module)
    assert heads is not None
    for name in COUNTS:
        if getattr(module, name, None) == heads:
            setattr(module, name, len(kept))
    for name in WIDTHS:
        size = getattr(module, name, None)
        if type(size) is int and size % heads == 0:
            setattr(module, name, size // heads * len(kept))


def narrow_fault(module: nn.MultiheadAttention) -> str | None:
    """Why a module of PyTorch's cannot be narrowed; None where it can."""
    if module.bias_k is not None or module.add_zero_attn:
        return "it appends keys and values of its own (add_bias_kv, add_zero_attn)"
    return None


def narrow(model: nn.Module, *, every: bool = False) -> None:
    """Put a `NarrowAttention` in the place of PyTorch's, in place, where the weights were cut.

    `nn.MultiheadAttention` gives every head an equal part of the embedding, so that it can lose
    neither heads nor embedding alone. With `every` those that are whole are replaced, too: they
    read the weights of `out_proj` without ever calling it, so that nobody can listen to it.
    """
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.MultiheadAttention) and narrow_fault(module) is None:
            whole = (module.embed_dim, module.embed_dim)
            if every or tuple(module.out_proj.weight.shape) != whole:
                model.set_submodule(name, NarrowAttention(module))
    leave_fast_path(model)


def leave_fast_path(model: nn.Module) -> None:
    """Let PyTorch's encoders call what they hold, in place, where that is not PyTorch's any more.

    In evaluation mode they read the weights past the modules, and hand on nested tensors where
    padding is masked, of which they make zeros (torch 2.13). Off that path they compute the same,
    but for what stands in the places of the padding: as they do in training.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not _is_pytorchs(module):
            module.activation_relu_or_gelu = 0  # asked by the fast path alone
        elif isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
            module.use_nested_tensor = all(map(_is_pytorchs, module.layers))


def _is_pytorchs(layer: nn.Module) -> bool:
    """Whether an encoder's layer holds what its fast path reads."""
    held = {"self_attn": nn.MultiheadAttention, "linear1": nn.Linear, "linear2": nn.Linear}
    return all(isinstance(getattr(layer, name, None), kind) for name, kind in held.items())


class NarrowAttention(nn.Module):
    """Multi-head attention whose heads together may be narrower than the embedding.

    It is called like `nn.MultiheadAttention`, whose parameters it takes over by their names:
    in_proj_weight [3 H'd, E], out_proj.weight [E, H'd] (Vaswani et al., Attention Is All You Need,
    2017; Michel, Levy and Neubig, Are Sixteen Heads Really Better than One?, 2019, cut them so).
    """

    # nn.TransformerEncoderLayer asks for it, and leaves the module to itself where it is False
    _qkv_same_embed_dim = False

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        """What is left of `whole`, whose parameters were cut and whose head width is the same."""
        super().__init__()
        self.head_dim, self.dropout = whole.head_dim, whole.dropout
        self.batch_first: bool = whole.batch_first
        self.out_proj = whole.out_proj
        self.embed_dim = whole.out_proj.out_features
        self.num_heads = whole.out_proj.in_features // self.head_dim
        for name in (*PROJECTIONS, "in_proj_bias"):
            self.register_parameter(name, getattr(whole, name))
        self.train(whole.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Query [B, T, E], key and value [B, S, E] (or [T, B, E] as `batch_first` says) to outputs
        like the query, and the weights [B, T, S] ([B, H', T, S] unless averaged) where needed.

        Raises AutopruneError for inputs without a batch axis, which `nn.MultiheadAttention` takes.
        """
        if query.dim() != 3:
            raise AutopruneError(
                f"attention that was cut takes inputs of 3 axes, got {list(query.shape)}; add a "
                "batch axis of 1"
            )
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        asked, keys, values = (self._heads(*part) for part in self._projected(query, key, value))
        mask = self._mask(attn_mask, key_padding_mask, like=asked, is_causal=is_causal)
        dropout = self.dropout if self.training else 0.0
        weights: torch.Tensor | None = None
        if need_weights:
            scores = asked @ keys.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            said = F.dropout(weights, dropout) @ values
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            said = F.scaled_dot_product_attention(asked, keys, values, mask, dropout)
        out = self.out_proj(said.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Each input with its own part of the weight and of the bias."""
        whole, *apart = (self._parameters[name] for name in PROJECTIONS)
        bias = self._parameters["in_proj_bias"]
        weights = apart if whole is None else whole.chunk(3)
        for i, given in enumerate((query, key, value)):
            weight = weights[i]
            assert weight is not None
            yield given, weight, None if bias is None else bias.chunk(3)[i]

    def _heads(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Inputs [B, T, E] as the heads see them: [B, H', T, d]."""
        made = F.linear(x, weight, bias)
        return made.reshape(*made.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _mask(
        self,
        attn_mask: torch.Tensor | None,
        key_padding_mask: torch.Tensor | None,
        *,
        like: torch.Tensor,
        is_causal: bool,
    ) -> torch.Tensor | None:
        """What is added to the scores: a mask [T, S] or [B H', T, S], and padding [B, S].

        As in PyTorch `is_causal` is a hint that goes with a mask.
        """
        if is_causal and attn_mask is None:
            raise AutopruneError("is_causal is a hint about attn_mask; give the mask, too")
        masks = []
        if attn_mask is not None:
            if attn_mask.dim() == 3 and len(attn_mask) != len(like) * self.num_heads:
                raise AutopruneError(
                    f"attn_mask has shape {list(attn_mask.shape)}, one for every head, of which "
                    f"{self.num_heads} are left; give one of [T, S] for all"
                )
            each = (len(like), self.num_heads, *attn_mask.shape[-2:])
            masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.reshape(each))
        if key_padding_mask is not None:
            masks.append(key_padding_mask[:, None, None])
        added = [
            torch.zeros_like(m, dtype=like.dtype).masked_fill(m, -torch.inf)
            if m.dtype == torch.bool
            else m.to(like.dtype)
            for m in masks
        ]
        return None if not added else sum(added[1:], start=added[0])
