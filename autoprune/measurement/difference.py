"""How far the outputs of two networks are apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def relative_difference(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> float:
    """The largest difference between outputs, each as a part of its largest expected entry.

    Infinite where the number of outputs, a shape, or the places of NaN differ.
    """
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
