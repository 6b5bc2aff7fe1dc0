"""Bayesian linear regression in the space of trials, of which there are fewer than of terms.

Axis legend: T = trials, K = terms.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

Array = NDArray[np.float64]

WIDE, NOISY = (0.5, 1.0, 2.0, 4.0), (0.1, 0.3, 1.0, 3.0)
"""The factors of the prior's and of the sums' deviations among which evidence decides."""

FREEDOM = 1.0
"""Degrees of freedom of weights: Cauchy's, the heaviest tails of Student's that are usual."""

ROUNDS = 3
"""Of expectation maximisation."""


@dataclass(frozen=True)
class Prior:
    """What is believed of the weights of terms before any trial.

    They are `mean_K` times a factor that is normal around 1 with deviation `doubt`, plus
    independent normals of deviations `sd_K`.
    """

    mean_K: Array  # noqa: N815
    sd_K: Array  # noqa: N815
    doubt: float

    def scaled(self, factor: float) -> Self:
        """The same with all deviations times a factor."""
        return replace(self, sd_K=factor * self.sd_K, doubt=factor * self.doubt)


@dataclass(frozen=True)
class Sums:
    """T sums of terms and what they came to, each known up to its own standard deviation."""

    terms_TK: Array  # noqa: N815
    values_T: Array  # noqa: N815
    sd_T: Array  # noqa: N815

    def first(self, count: int) -> Self:
        """The first `count` of them."""
        return replace(
            self,
            terms_TK=self.terms_TK[:count],
            values_T=self.values_T[:count],
            sd_T=self.sd_T[:count],
        )

    def scaled(self, factor: float) -> Self:
        """The same with all deviations times a factor."""
        return replace(self, sd_T=factor * self.sd_T)

    def shared(self, prior: Prior) -> Array:
        """The covariance of the sums under a prior, without noise, of shape (T, T)."""
        along_T = prior.doubt * (self.terms_TK @ prior.mean_K)  # noqa: N806
        scaled_TK = np.column_stack([self.terms_TK * prior.sd_K, along_T])  # noqa: N806
        return np.asarray(scaled_TK @ scaled_TK.T)


@dataclass(frozen=True)
class Belief:
    """What is believed of the weights once some sums are known.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 2.2, by the
    covariance of the sums (T by T) instead of that of the weights (K by K).
    """

    prior: Prior
    seen: Sums

    @cached_property
    def mean_K(self) -> Array:  # noqa: N802
        """The mean of the weights."""
        return self._given(self.prior.mean_K, np.zeros(len(self.seen.sd_T)))

    def draw(self, rng: np.random.Generator, spread: float) -> Array:
        """Weights drawn with `spread` times the doubt that is left; 0 gives the mean.

        By Matheron's rule, a draw of the prior moved to agree with what was seen: Wilson et al.
        2020, arXiv:2002.09309.
        """
        prior, seen = self.prior, self.seen
        factor = 1.0 + spread * prior.doubt * rng.standard_normal()
        own_K = spread * prior.sd_K * rng.standard_normal(len(prior.sd_K))  # noqa: N806
        noise_T = spread * seen.sd_T * rng.standard_normal(len(seen.sd_T))  # noqa: N806
        return self._given(factor * prior.mean_K + own_K, noise_T)

    @cached_property
    def squares_K(self) -> Array:  # noqa: N802
        """The expected squares of what weights have beside the common factor times their mean."""
        prior = self.prior
        solved_T = self._solved(self.seen.values_T - self.seen.terms_TK @ prior.mean_K)  # noqa: N806
        shift_K = prior.sd_K**2 * (self.seen.terms_TK.T @ solved_T)  # noqa: N806
        half_TK = solve_triangular(  # noqa: N806
            self._root_TT, self.seen.terms_TK * prior.sd_K, lower=True, check_finite=False
        )
        return np.asarray(shift_K**2 + prior.sd_K**2 * (1.0 - (half_TK**2).sum(axis=0)))

    def _given(self, weights_K: Array, noise_T: Array) -> Array:  # noqa: N803
        prior, terms_TK = self.prior, self.seen.terms_TK  # noqa: N806
        solved_T = self._solved(self.seen.values_T - terms_TK @ weights_K - noise_T)  # noqa: N806
        along = prior.doubt**2 * (terms_TK @ prior.mean_K) @ solved_T
        return np.asarray(
            weights_K + along * prior.mean_K + prior.sd_K**2 * (terms_TK.T @ solved_T)
        )

    def _solved(self, rest_T: Array) -> Array:  # noqa: N803
        return np.asarray(cho_solve((self._root_TT, True), rest_T, check_finite=False))

    @cached_property
    def _root_TT(self) -> Array:  # noqa: N802
        return _root(self.seen.shared(self.prior), self.seen.sd_T)


def likeliest(prior: Prior, seen: Sums) -> tuple[float, float]:
    """The factors of the deviations, of the prior and of the sums, that fit the sums best.

    The largest evidence (Rasmussen and Williams, section 5.4.1) over the grid `WIDE` x `NOISY`.
    """
    shared_TT = seen.shared(prior)  # noqa: N806
    rest_T = seen.values_T - seen.terms_TK @ prior.mean_K  # noqa: N806

    def evidence(factors: tuple[float, float]) -> float:
        wide, noisy = factors
        root_TT = _root(wide**2 * shared_TT, noisy * seen.sd_T)  # noqa: N806
        solved_T = cho_solve((root_TT, True), rest_T, check_finite=False)  # noqa: N806
        return float(-0.5 * rest_T @ solved_T - np.log(np.diag(root_TT)).sum())

    return max(((wide, noisy) for wide in WIDE for noisy in NOISY), key=evidence)


def heavy_tailed(prior: Prior, seen: Sums) -> Prior:
    """The normal prior that stands for Student's with `FREEDOM`, given what was seen.

    A sudden loss is one large weight among many small ones, which normals would share out. By
    expectation maximisation over every weight's own deviation, which is automatic relevance
    determination (MacKay 1994; Tipping 2001) held back by a prior of the deviations.
    """
    found = prior
    for _ in range(ROUNDS):
        squares_K = Belief(found, seen).squares_K  # noqa: N806
        sd_K = np.sqrt((FREEDOM * prior.sd_K**2 + squares_K) / (FREEDOM + 1.0))  # noqa: N806
        found = replace(prior, sd_K=sd_K)
    return found


def _root(shared_TT: Array, sd_T: Array) -> Array:  # noqa: N803
    return np.asarray(cholesky(shared_TT + np.diag(sd_T**2), lower=True, check_finite=False))
