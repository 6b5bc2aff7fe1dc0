"""Proximal steps in closed form: what a penalty leaves of weights.

The step of size t against a penalty f takes x to the y with the least ``|y - x|^2 / 2 + t f(y)``
(Parikh and Boyd, Proximal Algorithms, Foundations and Trends in Optimization, 2014).

Axis legend: u = blocks, r, c = rows and columns of a matrix.
"""

import torch


def block_factors(norms: torch.Tensor, thresholds: torch.Tensor | float) -> torch.Tensor:
    """What the step against the sum of the blocks' norms multiplies every block with: [u].

    ``max(0, |x| - t) / |x|`` of a block x with norm |x| in `norms` [u] (Yuan and Lin, Model
    Selection and Estimation in Regression with Grouped Variables, JRSS B, 2006): blocks no longer
    than their threshold become exactly zero, all others get shorter by it.
    """
    tiny = torch.finfo(norms.dtype).tiny
    return (norms - thresholds).clamp_min(0) / norms.clamp_min(tiny)


def soft_threshold(x: torch.Tensor, threshold: float) -> torch.Tensor:
    """The step against the sum of absolute values: each gets smaller by `threshold`, down to zero.

    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, put
    this penalty on the scales of batch norms.
    """
    return x - x.clamp(-threshold, threshold)


def singular_value_threshold(matrix: torch.Tensor, threshold: float) -> torch.Tensor:
    """The step against the nuclear norm of a matrix [r, c]: its singular values, soft-thresholded.

    Cai, Candes and Shen, A Singular Value Thresholding Algorithm for Matrix Completion, SIAM
    Journal on Optimization, 2010. A threshold of zero leaves the matrix as it is.
    """
    if not threshold:
        return matrix
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = (values - threshold).clamp_min(0)
    rank = int((values > 0).sum())
    shrunk: torch.Tensor = (left[:, :rank] * values[:rank]) @ right[:rank]
    return shrunk
