"""What a network costs on paper: multiplications, parameters, bytes. No clock."""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from autoprune.measurement.runtimes.int8_network import Int8Network
from autoprune.measurement.runtimes.protocol import frozen_copy
from autoprune.tasks.protocol import Inputs, every_module, forward

MEGABYTE = 1e6

Shape = Sequence[int]


def costs(model: nn.Module, example: Inputs) -> dict[str, float]:
    """The costs of one inference on `example` (batch size 1, CPU) in evaluation mode.

    ``macs``: multiply-accumulates of convolutions, matrix products, attention and LSTM layers,
    in all; additions, normalisation and activations are not counted. ``params``: parameters,
    tied ones once. ``size_mb``: bytes of the state dict as it is stored, tied entries once, in
    units of 10^6 bytes. ``peak_memory_mb``: bytes of parameters, buffers, the input and the
    most intermediate results that are alive at one moment, in the same unit; what a kernel
    allocates inside itself is not seen. The same model and shapes always give the same numbers.
    The model is left as it was.

    Of a network in 8 bits arithmetic and parameters are those of its origin, bytes of weights its
    own, and intermediate results counted in full: what a runtime keeps of them in 8 bits is its
    own affair.
    """
    if isinstance(model, Int8Network):
        return _int8_costs(model, example)
    model = frozen_copy(model)
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    # no_grad, not inference_mode: under the latter composite operators reach the dispatch modes
    # whole.
    with (
        every_module(),
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping=_CPU_FLOPS) as flops,
        _LiveBytes(list(weights.values())) as live,
    ):
        live.add(example)
        forward(model, example)
    return {
        "macs": float(flops.get_total_flops() // 2),
        "params": float(sum(p.numel() for p in model.parameters())),
        "size_mb": _stored_bytes(model.state_dict()) / MEGABYTE,
        "peak_memory_mb": (_stored_bytes(weights) + live.peak) / MEGABYTE,
    }


def _int8_costs(model: Int8Network, example: Inputs) -> dict[str, float]:
    assert model.origin is not None, "a program alone does not tell its arithmetic"
    found, size_mb = costs(model.origin, example), model.weight_bytes / MEGABYTE
    others_mb = found["peak_memory_mb"] - found["size_mb"]
    return found | {"size_mb": size_mb, "peak_memory_mb": others_mb + size_mb}


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    batch, heads, queries, size = query
    return 2 * batch * heads * queries * key[-2] * (size + value[-1])


def _lstm_flops(
    inputs: Shape, input_weight: Shape, hidden_weight: Shape, *_: Any, **__: Any
) -> int:
    steps, batch, _features = inputs
    return 2 * steps * batch * (math.prod(input_weight) + math.prod(hidden_weight))


# What torch 2.13 lacks in its own table: without these a network with attention or LSTM layers
# would look almost free on the CPU. They are called with the shapes of the tensors.
_CPU_FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: _lstm_flops,
}


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors alive, by their storages; `ignored` are not counted."""

    def __init__(self, ignored: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        # Torch keeps one Python object a storage alive with it, so that weak references hold.
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in ignored)

    def add(self, outputs: Any) -> None:
        """Count the storages in `outputs` that are new; they leave when they are freed."""
        for tensor in tree_leaves(outputs):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage in self._seen:
                continue
            self._seen.add(storage)
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self.add(outputs)
        return outputs


def _stored_bytes(tensors: Mapping[str, Any]) -> int:
    stored = {
        (tensor.data_ptr(), tensor.shape): tensor.numel() * tensor.element_size()
        for tensor in tensors.values()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(stored.values())
