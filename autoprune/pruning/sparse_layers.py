"""Layers that run on torch's sparse kernels, in place of those with many zeros.

Axis legend: B batch, C channels, H and W sides of a map, o = outputs, k = the inputs of one
output (of a convolution C times the sides of its kernel), l = places of a map, n = columns of a
product (of a convolution B times l, of a linear layer all its inputs).
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class _Form:
    """What a kernel reads of a weight, made at the first call for its device and type.

    Such forms (torch 2.13) can be neither copied nor moved; a copy of this is empty.
    """

    def __init__(self) -> None:
        self._made_for: tuple[torch.device, torch.dtype] | None = None
        self._made = torch.empty(0)

    def get(self, weight: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `make` made of a weight at the first call on its device and in its type."""
        if self._made_for != (weight.device, weight.dtype):
            self._made, self._made_for = make(), (weight.device, weight.dtype)
        return self._made

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Form, ()


class CsrMatrix(nn.Module):
    """A weight [o, k] as compressed sparse rows.

    Its indices are of 32 bits where they fit, which torch hands to MKL as they are.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    def __init__(self, weight_ok: torch.Tensor) -> None:
        super().__init__()
        with _no_beta_warning():
            csr = weight_ok.detach().to_sparse_csr()
        fits = max(weight_ok.numel(), *weight_ok.shape) <= torch.iinfo(torch.int32).max
        index = torch.int32 if fits else torch.int64
        self.shape = tuple(weight_ok.shape)
        self.register_buffer("rows", csr.crow_indices().to(index))
        self.register_buffer("columns", csr.col_indices().to(index))
        self.register_buffer("values", csr.values())
        self._form = _Form()

    def forward(self, inputs_kn: torch.Tensor) -> torch.Tensor:
        """The product with inputs float[k, n]: float[o, n]."""
        # not functional.linear: with CSR it raises in inference mode (torch 2.13)
        product: torch.Tensor = torch.sparse.mm(self._form.get(self.values, self._made), inputs_kn)
        return product

    def _made(self) -> torch.Tensor:
        with _no_beta_warning():
            return torch.sparse_csr_tensor(self.rows, self.columns, self.values, self.shape)


class CsrLinear(nn.Module):
    """A linear layer by a CSR product; float[..., k] -> float[..., o]."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight_csr = CsrMatrix(layer.weight)
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Like `nn.Linear`."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        outputs: torch.Tensor = self.weight_csr(flat.t()).t()
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


class CsrConv2d(nn.Module):
    """A convolution as unfold and a CSR product; float[B, C, H, W] -> float[B, o, H', W'].

    For convolutions that `takes` takes.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight_csr = CsrMatrix(layer.weight.flatten(1))
        self.bias = layer.bias
        assert not isinstance(layer.padding, str)
        self.padding, self.stride = layer.padding, layer.stride
        self.dilation, self.kernel_size = layer.dilation, layer.kernel_size

    @staticmethod
    def takes(layer: nn.Conv2d) -> bool:
        """Whether it has one group and pads, if at all, with zeros by a number."""
        return (
            layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Like `nn.Conv2d`."""
        batch = maps.shape[0]
        columns_Bkl = functional.unfold(  # noqa: N806
            maps,
            self.kernel_size,
            dilation=self.dilation,
            padding=self.padding,
            stride=self.stride,
        )
        columns_kn = columns_Bkl[0] if batch == 1 else columns_Bkl.transpose(0, 1).flatten(1)
        outputs: torch.Tensor = self.weight_csr(columns_kn)
        if self.bias is not None:
            outputs = outputs + self.bias[:, None]
        return outputs.view(-1, batch, *self._sides(maps)).transpose(0, 1)

    def _sides(self, maps: torch.Tensor) -> tuple[int, int]:
        high, wide = (
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, pad, dilation, kernel, stride in zip(
                maps.shape[2:],
                self.padding,
                self.dilation,
                self.kernel_size,
                self.stride,
                strict=True,
            )
        )
        return high, wide


class TwoOfFourLinear(nn.Module):
    """A linear layer with the pattern 2:4; on CUDA by the kernels that skip half of its weights.

    It keeps the dense weight, so that on the CPU it computes what the masked network does.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self._form = _Form()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Like `nn.Linear`."""
        weight: torch.Tensor = self.weight
        if inputs.is_cuda:
            weight = self._form.get(self.weight, lambda: compressed(self.weight))
        return functional.linear(inputs, weight, self.bias)


def compressed(weight: torch.Tensor) -> torch.Tensor:
    """A weight as torch's 2:4 kernels read it; RuntimeError where they do not take it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "a prototype"
        return torch.sparse.to_sparse_semi_structured(weight.contiguous())


def _no_beta_warning() -> Any:
    """Torch 2.13 warns once a process that CSR tensors are in beta."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
