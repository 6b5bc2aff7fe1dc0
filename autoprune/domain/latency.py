"""Predicting how long a pruned network takes from its widths, without building it.

Axis legend: T = timings, K = terms.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations_with_replacement
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr
from scipy.stats import t as student

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import Group
from autoprune.domain.trial import Speedup

ALIGNMENT = 16
"""Kernels work on blocks of channels; a width that is no multiple of them leaves the fast path."""

_SURE = 0.01
_RIDGE = 1e-2
_FOLDS = 5
_LEVEL = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timing:
    """A network that was timed: the time it takes as a share of the baseline's.

    `widths` are the kept units by group, groups left out are whole; `error` is half the interval
    of the measurement as a part of the share.
    """

    widths: Mapping[str, int]
    share: float
    error: float = 0.0

    @classmethod
    def of(cls, widths: Mapping[str, int], speed: Speedup) -> Self:
        """A measured network as the latency model learns from it."""
        half_width = (speed.high - speed.low) / (2.0 * speed.ratio)
        return cls(widths, 1.0 / speed.ratio, half_width)


@dataclass(frozen=True, slots=True)
class PredictionError:
    """How far predictions of measurements that a model had not seen were off.

    `median` is of the relative errors of the time, `spearman` the rank correlation of predicted
    and measured, over `count` measurements; None where all are the same.
    """

    median: float
    spearman: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """A speedup predicted of a network that was not measured, with the ends of its 95% interval.

    They come from how far predictions of `unseen` measurements were off; None where these are
    fewer than two.
    """

    ratio: float
    low: float | None
    high: float | None
    unseen: int


@dataclass(frozen=True)
class LatencyModel:
    """Time as a sum of terms, none of them negative, each shrinking with the units that are kept.

    A constant; for every group a term in its kept share; for every two groups that meet in a layer
    (one gives its inputs, the other its outputs), and for each with itself, a term in the product
    of their shares; and the same two kinds for widths that are no multiple of `ALIGNMENT`. Such a
    sum follows from the arithmetic of layers: a layer takes time for what it starts, for what it
    reads and writes, and for the products of inputs and outputs.
    """

    groups: tuple[Group, ...]
    weights: tuple[float, ...]

    @classmethod
    def fit(cls, groups: Sequence[Group], timings: Iterable[Timing]) -> Self:
        """The model that fits timings best, in relative error, surer timings counting more.

        Non-negative least squares (Lawson and Hanson, 1974) with a small ridge. The whole network
        takes the time 1 by definition. Raises AutopruneError for a timing of other groups.
        """
        groups = tuple(groups)
        known = [Timing({}, 1.0), *timings]
        terms_TK = _terms(groups, [timing.widths for timing in known])  # noqa: N806
        share_T = np.array([timing.share for timing in known])  # noqa: N806
        sure_T = _SURE / np.hypot(_SURE, [timing.error for timing in known])  # noqa: N806
        rows = terms_TK * (sure_T / share_T)[:, None]
        ridge = _RIDGE * np.eye(terms_TK.shape[1])
        weights, _ = nnls(np.vstack([rows, ridge]), np.concatenate([sure_T, np.zeros(len(ridge))]))
        return cls(groups, tuple(map(float, weights)))

    def share(self, widths: Mapping[str, int]) -> float:
        """The time of a network as a share of the baseline's; groups left out are whole."""
        return float(self.shares([widths])[0])

    def shares(self, many: Sequence[Mapping[str, int]]) -> Array:
        """`share` of many networks at once, of shape (T,)."""
        return _terms(self.groups, many) @ self._weights

    def speedup(self, widths: Mapping[str, int]) -> float:
        """The inverse of `share`."""
        return 1.0 / self.share(widths)

    def error(self, unseen: Sequence[Timing]) -> PredictionError:
        """How far it is off on timings that it was not fitted to, at least two."""
        predicted = np.array([self.share(timing.widths) for timing in unseen])
        return _error(predicted, unseen)

    @cached_property
    def _weights(self) -> Array:
        return np.array(self.weights)


def unseen_error(
    groups: Sequence[Group], profile: Sequence[Timing], measured: Sequence[Timing]
) -> PredictionError:
    """The error of a model of `profile` and `measured`, each measured one predicted unseen.

    Cross-validation in `_FOLDS` folds: every measured timing is predicted by a model that was
    fitted to the profile and to the other folds. At least two measured ones.
    """
    return _error(_unseen(groups, profile, measured), measured)


def predicted_speedups(
    groups: Sequence[Group],
    profile: Sequence[Timing],
    measured: Sequence[Timing],
    wanted: Sequence[Mapping[str, int]],
) -> list[Prediction]:
    """The speedups of networks by their widths, from a model of `profile` and `measured`.

    The interval is of one more measurement: the logarithms of how far predictions of the measured
    ones, each unseen in turn (as in `unseen_error`), were off are taken to be normal around zero,
    so that a new one over their root mean square follows Student's law of as many degrees of
    freedom (Student 1908). What is wrong in one direction widens it to both sides.
    """
    model, count = LatencyModel.fit(groups, [*profile, *measured]), len(measured)
    factor: float | None = None
    if count >= 2:
        share_T = np.array([timing.share for timing in measured])  # noqa: N806
        off_T = np.log(_unseen(groups, profile, measured) / share_T)  # noqa: N806
        spread = float(np.sqrt(np.mean(off_T**2)))
        factor = float(np.exp(student.ppf((1.0 + _LEVEL) / 2.0, count) * spread))
    return [
        Prediction(
            ratio,
            low=None if factor is None else ratio / factor,
            high=None if factor is None else ratio * factor,
            unseen=count,
        )
        for ratio in map(model.speedup, wanted)
    ]


def _unseen(
    groups: Sequence[Group], profile: Sequence[Timing], measured: Sequence[Timing]
) -> Array:
    """The share of every measured timing by a model that has not seen it, of shape (T,)."""
    predicted = np.empty(len(measured))
    for fold in range(_FOLDS):
        held = range(fold, len(measured), _FOLDS)
        others = [timing for at, timing in enumerate(measured) if at % _FOLDS != fold]
        model = LatencyModel.fit(groups, [*profile, *others])
        for at in held:
            predicted[at] = model.share(measured[at].widths)
    return predicted


def _error(predicted_T: Array, measured: Sequence[Timing]) -> PredictionError:  # noqa: N803
    assert len(measured) >= 2, "a rank correlation needs two"
    share_T = np.array([timing.share for timing in measured])  # noqa: N806
    same = min(np.ptp(predicted_T), np.ptp(share_T)) == 0.0
    spearman = None if same else float(spearmanr(predicted_T, share_T).statistic)
    return PredictionError(
        median=float(np.median(np.abs(predicted_T / share_T - 1.0))),
        spearman=spearman,
        count=len(measured),
    )


def _terms(groups: Sequence[Group], many: Sequence[Mapping[str, int]]) -> Array:
    """The terms of networks by their widths, of shape (T, K)."""
    for widths in many:
        unknown = sorted(widths.keys() - {group.name for group in groups})
        if unknown:
            raise AutopruneError(
                f"a latency model of groups {[g.name for g in groups]} is asked about {unknown}; "
                "profile the network anew"
            )
    size = np.array([group.size for group in groups], dtype=float)
    kept = np.array([[widths.get(g.name, g.size) for g in groups] for widths in many], dtype=float)
    share = kept / size
    odd = (kept % ALIGNMENT != 0) & (kept != size)
    first, second = meeting(tuple(groups))
    products = share[:, first] * share[:, second]
    return np.hstack(
        [
            np.ones((len(many), 1)),
            share,
            products,
            share * odd,
            products * (odd[:, first] | odd[:, second]),
        ]
    )


@lru_cache(maxsize=8)
def meeting(groups: tuple[Group, ...]) -> tuple[list[int], list[int]]:
    """The pairs of groups that meet in a layer, each group with itself among them."""
    layers = [set(group.layers) | {group.name} for group in groups]
    pairs = combinations_with_replacement(range(len(groups)), 2)
    found = [(a, b) for a, b in pairs if layers[a] & layers[b]]
    return [a for a, _ in found], [b for _, b in found]
