"""Global ranking: one ratio for a whole network, spent where normalised scores are lowest.

Axis legend: u = units of a group, s = steps by which groups get narrower.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.space import Axis, PruningSpec, SearchSpace

Values = NDArray[np.float64]


def _by_mean(scores: Values) -> Values:
    return _over(scores, float(scores.mean()))


def _by_max(scores: Values) -> Values:
    return _over(scores, float(scores.max()))


def _standardised(scores: Values) -> Values:
    return _over(scores - scores.mean(), float(scores.std()))


def _over(scores: Values, scale: float) -> Values:
    """Scores of which none stands out (a scale of 0) come to 0."""
    return scores / scale if scale > 0 else np.zeros_like(scores)


NORMALISATIONS: Mapping[str, Callable[[Values], Values]] = {
    "mean": _by_mean,
    "max": _by_max,
    "gaussian": _standardised,
    "none": lambda scores: scores,
}
"""How the scores [u] of a group are made to compare with those of others: over their mean, over
their largest, less their mean over their standard deviation, or as they are (lamp)."""


@dataclass(frozen=True)
class Ranking:
    """The scores of a network's units: `scores[criterion][group]`, in the order of removal.

    The order in which units go is ascending, but of groups whose blocks must stay equally wide one
    unit of every block goes at a time.
    """

    scores: Mapping[str, Mapping[str, tuple[float, ...]]]

    def __post_init__(self) -> None:
        for criterion, groups in self.scores.items():
            wrong = [name for name, found in groups.items() if not all(map(math.isfinite, found))]
            if wrong:
                raise AutopruneError(
                    f"the ranking by {criterion!r} has scores of {wrong} that are not finite"
                )

    def path(self, space: SearchSpace, criterion: str, *, normalisation: str = "mean") -> "Path":
        """The way from the widest spec of a space to its narrowest, lowest scores first.

        Raises AutopruneError for a criterion or a group that was not ranked, for a normalisation
        that there is not, and for one of positive scores where a group has negative ones.
        """
        check_normalisation(normalisation)
        if criterion not in self.scores:
            raise unknown("ranked criterion", criterion, self.scores)
        steps = []
        for number, axis in enumerate(space.axes):
            scores = self._normalised(axis, criterion, normalisation)
            for at, (wide, narrow) in enumerate(pairwise(reversed(axis.widths))):
                gone = axis.group.size - wide, axis.group.size - narrow
                # of equals one step of every group, not all of one
                steps.append((float(scores[slice(*gone)].mean()), at, number))
        return Path(space, criterion, tuple(number for _, _, number in sorted(steps)))

    def _normalised(self, axis: Axis, criterion: str, normalisation: str) -> Values:
        name, size = axis.group.name, axis.group.size
        scores = np.array(self.scores[criterion].get(name, ()))
        if len(scores) != size:
            raise AutopruneError(
                f"the ranking by {criterion!r} has {len(scores)} scores for the {size} units of "
                f"group {name!r}; rank the network that the space is of"
            )
        if normalisation in ("mean", "max") and scores.min() < 0:
            raise AutopruneError(
                f"normalisation {normalisation!r} divides scores that are 0 or more, and "
                f"criterion {criterion!r} gives group {name!r} {scores.min():.4g}; choose gaussian"
            )
        return NORMALISATIONS[normalisation](scores)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        return {"scores": {name: dict(groups) for name, groups in self.scores.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a ranking from `to_json`."""
        return cls(
            {
                str(criterion): {
                    str(name): tuple(map(float, scores)) for name, scores in groups.items()
                }
                for criterion, groups in data["scores"].items()
            }
        )


@dataclass(frozen=True)
class Path:
    """Specs of a space in the order of a ranking: with every step one group gets narrower.

    `narrowed[s]` is the index of the axis whose group loses its next units in step s. Each group
    keeps a legal width all along.
    """

    space: SearchSpace
    criterion: str
    narrowed: tuple[int, ...]

    def at(self, ratio: float) -> PruningSpec:
        """The spec of the path whose share of kept units, of all the units there are, is nearest
        to `ratio`; of two equally near the wider one.
        """
        if not 0.0 <= ratio <= 1.0:
            raise AutopruneError(f"a kept ratio lies in [0, 1], got {ratio}")
        return self.after(len(self.narrowed) - bisect_right(self.edges, ratio))

    def after(self, steps: int) -> PruningSpec:
        """The spec after so many steps."""
        taken = np.bincount(
            np.array(self.narrowed[:steps], dtype=int), minlength=len(self.space.axes)
        )
        widths = {
            axis.group.name: axis.widths[-1 - int(count)]
            for axis, count in zip(self.space.axes, taken, strict=True)
        }
        return PruningSpec.of(
            widths,
            criterion=self.criterion,
            recovery=self.space.recoveries[0],
            precision=self.space.precisions[0],
        )

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """The share of units kept after 0, 1, 2, ... steps: descending."""
        left = [list(pairwise(reversed(axis.widths))) for axis in self.space.axes]
        gone = []
        for number in self.narrowed:
            wide, narrow = left[number].pop(0)
            gone.append(wide - narrow)
        whole = sum(axis.group.size for axis in self.space.axes)
        widest = sum(axis.widths[-1] for axis in self.space.axes)
        return tuple((widest - lost) / whole for lost in accumulate(gone, initial=0))

    @cached_property
    def edges(self) -> list[float]:
        """The ratios at which the spec changes, ascending: from edge to edge all is equal."""
        return sorted((wide + narrow) / 2 for wide, narrow in pairwise(self.shares))


def check_normalisation(name: str) -> None:
    """Raise AutopruneError with the near miss unless it is one of `NORMALISATIONS`."""
    if name not in NORMALISATIONS:
        raise unknown("normalisation", name, NORMALISATIONS)
