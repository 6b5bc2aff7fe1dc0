"""What each group costs and gives on its own: the profile of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from autoprune.domain.latency import ALIGNMENT, LatencyModel, Timing
from autoprune.domain.space import Axis, Group, SearchSpace
from autoprune.domain.trial import Speedup

SHARES = (0.75, 0.5, 0.25, 0.1)
"""Kept shares of a group that are profiled, at aligned widths."""

ODD_SHARES = (0.6, 0.3)
"""And at widths that are not, where the space allows them."""


@dataclass(frozen=True, slots=True)
class ProfilePoint:
    """A network of which some groups were cut and nothing else.

    `widths` are those of the groups that were cut. `metrics` holds the task's metrics on val
    without fine-tuning, and the costs. It took `seconds`.
    """

    widths: Mapping[str, int]
    speedup: Speedup
    metrics: Mapping[str, float]
    seconds: float = 0.0

    @property
    def timing(self) -> Timing:
        """The point as the latency model learns from it."""
        return Timing.of(self.widths, self.speedup)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a point from ``dataclasses.asdict``."""
        speedup = Speedup.from_json(data["speedup"])
        seconds = float(data.get("seconds", 0.0))  # there were none at first
        return cls(dict(data["widths"]), speedup, dict(data["metrics"]), seconds)


@dataclass(frozen=True, slots=True)
class Profile:
    """The points of every group alone, and those of random specs, by which the model is judged.

    `baseline` holds the unpruned network's metrics on val.
    """

    groups: tuple[Group, ...]
    baseline: Mapping[str, float]
    points: tuple[ProfilePoint, ...] = ()
    checks: tuple[ProfilePoint, ...] = ()

    def plus(self, point: ProfilePoint, *, check: bool) -> Self:
        """The profile with one more point: of a group alone, or a check of the model."""
        if check:
            return replace(self, checks=(*self.checks, point))
        return replace(self, points=(*self.points, point))

    def within(self, space: SearchSpace) -> Self:
        """The profile with the points that lie in a space; another one may have asked for more."""
        legal = {axis.group.name: axis.widths for axis in space.axes}

        def lies(point: ProfilePoint) -> bool:
            return all(width in legal.get(name, ()) for name, width in point.widths.items())

        points, checks = (tuple(filter(lies, found)) for found in (self.points, self.checks))
        return replace(self, points=points, checks=checks)

    def of(self, group: str) -> list[ProfilePoint]:
        """A group's points, from wide to narrow."""
        own = [point for point in self.points if group in point.widths]
        return sorted(own, key=lambda point: -point.widths[group])

    @property
    def timings(self) -> list[Timing]:
        """What the latency model learns from."""
        return [point.timing for point in self.points]

    @property
    def model(self) -> LatencyModel:
        """The latency model of the points alone; it has not seen the checks."""
        return LatencyModel.fit(self.groups, self.timings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a profile from `to_json`."""
        return cls(
            groups=tuple(
                Group(**{**group, "layers": tuple(group["layers"])}) for group in data["groups"]
            ),
            baseline=dict(data["baseline"]),
            points=tuple(map(ProfilePoint.from_json, data["points"])),
            checks=tuple(map(ProfilePoint.from_json, data["checks"])),
        )


def profile_widths(axis: Axis) -> list[int]:
    """The widths of a group that are profiled, from wide to narrow, the whole one left out.

    Near `SHARES` the best aligned width in reach, near `ODD_SHARES` one that is not aligned.
    """
    size = axis.group.size
    wanted = {_nearest_aligned(axis.widths, share * size) for share in SHARES}
    odd = [width for width in axis.widths if width % ALIGNMENT]
    if odd:
        wanted |= {_nearest(odd, share * size) for share in ODD_SHARES}
    return sorted((width for width in wanted if width < size), reverse=True)


def _nearest_aligned(widths: Sequence[int], wanted: float) -> int:
    """The nearest multiple of `ALIGNMENT`, or of the largest power of two that is in reach."""
    block = ALIGNMENT
    while block > 1:
        near = [w for w in widths if w % block == 0 and abs(w - wanted) <= max(block / 2, 1.0)]
        if near:
            return _nearest(near, wanted)
        block //= 2
    return _nearest(widths, wanted)


def _nearest(widths: Sequence[int], wanted: float) -> int:
    return min(widths, key=lambda width: abs(width - wanted))
