"""Who searches best on one budget, by how much, and whether the data allow to say so.

Axis legend: S = seeds, T = trials.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from autoprune.domain.errors import AutopruneError

Array = NDArray[np.float64]

RANDOM = "random"
"""The searcher whose final hypervolume the others are timed by."""

LEVEL = 0.05
"""A difference counts where chance alone gives one as large less often than this."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The hypervolume from a moment of a search on: `seconds` since it began, and `busy`, what
    slots had spent on trials by then, together.
    """

    seconds: float
    busy: float
    hypervolume: float


@dataclass(frozen=True, slots=True)
class Course:
    """How one search went: the hypervolume after each trial, and from moment to moment.

    A trial on a ladder is told more than once: it counts once in `hypervolume_T`, with what it
    came to, and is a moment each time. `again` is what the final front is worth by speeds that were
    measured again beside those of all other searches; None where that was not done.
    """

    searcher: str
    seed: int
    hypervolume_T: tuple[float, ...]  # noqa: N815
    moments: tuple[Moment, ...] = ()
    again: float | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a course from ``dataclasses.asdict``."""
        moments = tuple(Moment(**moment) for moment in data["moments"])
        values_T = tuple(data["hypervolume_T"])  # noqa: N806
        return cls(str(data["searcher"]), int(data["seed"]), values_T, moments, data["again"])

    @property
    def final(self) -> float:
        """The hypervolume at the end; 0 where no trial was run."""
        return self.hypervolume_T[-1] if self.hypervolume_T else 0.0

    @property
    def worth(self) -> float:
        """What it came to: the hypervolume as it was timed again, else as it was told."""
        return self.final if self.again is None else self.again

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.moments[-1].seconds if self.moments else 0.0

    def by_clock(self, times_s: Sequence[float]) -> Self:
        """The same search with the hypervolume at each of some times, 0 before the first trial."""
        return self._at([moment.seconds for moment in self.moments], times_s)

    def by_compute(self, slots_s: Sequence[float]) -> Self:
        """The same search with the hypervolume after so many seconds of slots."""
        return self._at([moment.busy for moment in self.moments], slots_s)

    def _at(self, when: Sequence[float], wanted: Sequence[float]) -> Self:
        values = (0.0, *(moment.hypervolume for moment in self.moments))
        index = np.searchsorted(when, wanted, side="right")
        return type(self)(self.searcher, self.seed, tuple(values[i] for i in index))


@dataclass(frozen=True, slots=True)
class Standing:
    """What a searcher's searches came to, one a seed, with the mean and its 95% interval.

    `told` holds the final hypervolumes by the speeds that the searches themselves measured. `ci95`
    is Student's interval of the mean, None for a single seed. `trials_to_random_final` counts the
    trials after which the mean over seeds, as told, reaches what random search ends with in the
    mean; None where it does not, or random did not take part.
    """

    searcher: str
    hypervolume: tuple[float, ...]
    told: tuple[float, ...]
    mean: float
    ci95: tuple[float, float] | None
    trials_to_random_final: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without the name."""
        return {key: value for key, value in asdict(self).items() if key != "searcher"}


@dataclass(frozen=True, slots=True)
class Duel:
    """How much more hypervolume the best searcher has than another one, pair by pair of a seed.

    `low` and `high` bound the mean difference, `p` is that of the paired t-test, both corrected
    for as many comparisons as there are pairs of searchers (Bonferroni): which one is the best was
    found from the same data. With 95% confidence all intervals of a comparison hold at once. None
    where there is one seed.
    """

    other: str
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def decided(self) -> bool:
        """Whether chance alone hardly gives such a difference."""
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True)
class Standings:
    """All searchers of a comparison, the best first, and what may be said of them."""

    standings: tuple[Standing, ...]
    duels: tuple[Duel, ...]

    @property
    def statement(self) -> str:
        """Who won, by how much, and whether the data allow to say so, in a sentence or two."""
        best = self.standings[0]
        if not self.duels:
            return f"{best.searcher} ran alone: there is nothing to compare it with."
        if best.mean == 0.0:
            return (
                "No trial of any searcher is better than the reference point within the "
                "constraints: there is nothing to compare."
            )
        seeds = len(best.hypervolume)
        second = self.duels[0]
        lead = (
            f"{best.searcher} has the largest mean hypervolume, {best.mean:.4g}; "
            f"{second.other} comes next, {second.difference:.4g} behind"
        )
        if second.p is None:
            return f"{lead}. One seed says nothing of chance: give more."
        test = f"paired t-tests over {seeds} seeds, corrected for all pairs of searchers"
        interval = f"(95% interval {second.low:.4g} to {second.high:.4g})"
        beaten = [duel.other for duel in self.duels if duel.decided]
        open_ = [duel.other for duel in self.duels if not duel.decided]
        if not open_:
            return f"{lead} {interval}. It beats all others ({test}, p < {LEVEL:g})."
        over = f"It beats {', '.join(beaten)}; from " if beaten else "From "
        return (
            f"{lead} {interval}. {over}{', '.join(open_)} the data do not tell it apart "
            f"({test}, p < {LEVEL:g})."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: every searcher by name, the duels of the best, and the statement."""
        return {
            "searchers": {standing.searcher: standing.to_json() for standing in self.standings},
            "duels": [asdict(duel) | {"decided": duel.decided} for duel in self.duels],
            "statement": self.statement,
        }


def standings_of(courses: Iterable[Course]) -> Standings:
    """Where the searchers of a comparison stand.

    Seeds are the pairs: every searcher has run with each of them. Raises AutopruneError where one
    has not, or where there is no course.
    """
    by_name = _by_name(courses)
    random = by_name.get(RANDOM)
    # the end of the very curve that is looked at: another way to sum may round the other way
    target = None if random is None else float(mean_course(random)[0][-1])
    found = sorted(
        (_standing(name, own, target) for name, own in by_name.items()),
        key=lambda standing: (-standing.mean, standing.searcher),
    )
    best, *others = found
    pairs = len(found) * (len(found) - 1) // 2
    return Standings(tuple(found), tuple(_duel(best, other, pairs) for other in others))


def mean_course(courses: Sequence[Course]) -> tuple[Array, Array, Array]:
    """The mean hypervolume after every trial, and the ends of its 95% interval: three of (T,).

    A search that ended earlier keeps what it had.
    """
    values_ST = _curves(courses)  # noqa: N806
    mean_T = values_ST.mean(axis=0)  # noqa: N806
    half_T = _half_width(values_ST)  # noqa: N806
    return mean_T, mean_T - half_T, mean_T + half_T


def _by_name(courses: Iterable[Course]) -> Mapping[str, list[Course]]:
    found: dict[str, list[Course]] = {}
    for course in courses:
        found.setdefault(course.searcher, []).append(course)
    if not found:
        raise AutopruneError("no search has ended: there is nothing to compare")
    for own in found.values():
        own.sort(key=lambda course: course.seed)
    seeds = {name: [course.seed for course in own] for name, own in found.items()}
    if len({tuple(own) for own in seeds.values()}) > 1:
        raise AutopruneError(f"the searchers ran with different seeds, {seeds}; run all with each")
    return found


def _standing(name: str, courses: Sequence[Course], target: float | None) -> Standing:
    finals = np.array([course.worth for course in courses])
    mean, half = float(finals.mean()), _half_width(finals[:, None])
    reached = None
    if target is not None:
        at_T = np.flatnonzero(mean_course(courses)[0] >= target)  # noqa: N806
        reached = int(at_T[0]) + 1 if len(at_T) else None
    interval = None if len(finals) < 2 else (mean - float(half[0]), mean + float(half[0]))
    told = tuple(course.final for course in courses)
    return Standing(name, tuple(map(float, finals)), told, mean, interval, reached)


def _duel(best: Standing, other: Standing, pairs: int) -> Duel:
    difference_S = np.array(best.hypervolume) - np.array(other.hypervolume)  # noqa: N806
    mean = float(difference_S.mean())
    if len(difference_S) < 2:
        return Duel(other.searcher, mean)
    half = float(_half_width(difference_S[:, None], LEVEL / pairs)[0])
    if half == 0.0:  # the same difference for every seed
        return Duel(other.searcher, mean, mean, mean, 1.0 if mean == 0.0 else 0.0)
    p = min(1.0, pairs * float(stats.ttest_1samp(difference_S, 0.0).pvalue))
    return Duel(other.searcher, mean, mean - half, mean + half, p)


def _curves(courses: Sequence[Course]) -> Array:
    """The hypervolumes of courses as one array of (S, T)."""
    longest = max(len(course.hypervolume_T) for course in courses)
    values_ST = np.zeros((len(courses), longest))  # noqa: N806
    for row_T, course in zip(values_ST, courses, strict=True):  # noqa: N806
        row_T[: len(course.hypervolume_T)] = course.hypervolume_T
        row_T[len(course.hypervolume_T) :] = course.final
    return values_ST


def _half_width(values_ST: Array, level: float = LEVEL) -> Array:  # noqa: N803
    """Half of Student's interval of the mean over seeds, which errs at `level`; 0 for one seed."""
    seeds = len(values_ST)
    if seeds < 2:
        return np.zeros(values_ST.shape[1])
    spread_T = values_ST.std(axis=0, ddof=1) / np.sqrt(seeds)  # noqa: N806
    half: Array = spread_T * stats.t.ppf(1.0 - level / 2.0, seeds - 1)
    return half
