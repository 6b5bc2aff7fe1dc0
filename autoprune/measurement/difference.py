"""How far the outputs of two networks are apart."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_leaves


def arrays_of(outputs: Any) -> list[NDArray[Any]]:
    """Every tensor or array in nested outputs, as arrays on the CPU; bfloat16 becomes float32."""
    leaves = (leaf for leaf in tree_leaves(outputs) if isinstance(leaf, (torch.Tensor, np.ndarray)))
    return [_array(leaf) for leaf in leaves]


def _array(leaf: torch.Tensor | NDArray[Any]) -> NDArray[Any]:
    if isinstance(leaf, torch.Tensor):
        return (leaf.float() if leaf.dtype is torch.bfloat16 else leaf).cpu().numpy()
    return leaf


def relative_difference(outputs: Any, expected_outputs: Any) -> float:
    """The largest difference between nested outputs, each as a part of its largest expected entry.

    Infinite where the number of outputs, a shape, or the places of NaN differ.
    """
    found, expected = arrays_of(outputs), arrays_of(expected_outputs)
    if [a.shape for a in found] != [b.shape for b in expected]:
        return float("inf")
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        same = np.isclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
        if same.all():
            continue
        scale = float(np.abs(b).max())
        gap = np.subtract(a, b, dtype=np.result_type(a, b, np.float64))
        difference = float(np.abs(np.where(same, 0.0, gap)).max())
        ratio = difference / scale if scale > 0.0 else float("inf")
        worst = max(worst, ratio if np.isfinite(ratio) else float("inf"))
    return worst
