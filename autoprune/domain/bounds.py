"""How far groups may shrink, by patterns of their names, and the space that this makes of them."""

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autoprune.domain.errors import AutopruneError, check_once, unknown
from autoprune.domain.space import ALIGNED, KINDS, Axis, Group, SearchSpace


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far the groups matching `pattern` (shell wildcards) may shrink, as kept ratios."""

    pattern: str = "*"
    min_kept: float = 0.1
    max_kept: float = 1.0
    step: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.min_kept <= self.max_kept <= 1.0:
            raise AutopruneError(
                f"bounds of {self.pattern!r}: min_kept {self.min_kept} and max_kept "
                f"{self.max_kept}; choose 0 < min_kept <= max_kept <= 1"
            )
        if self.step is not None and self.step < 1:
            raise AutopruneError(f"bounds of {self.pattern!r}: step {self.step}; choose 1 or more")


def of_kinds(groups: Iterable[Group], kinds: Sequence[str]) -> tuple[Group, ...]:
    """The groups of some kinds.

    Raises AutopruneError for a kind that there is not, or that stands twice, and where no group is
    left.
    """
    check_once("space.kinds", kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of group", kind, KINDS)
    groups = tuple(groups)
    found = tuple(group for group in groups if group.kind in kinds)
    if not found:
        there = sorted({group.kind for group in groups})
        raise AutopruneError(
            f"space.kinds is {list(kinds)}, and the network's groups are {there}; choose some of "
            "those"
        )
    return found


def build_space(
    groups: Iterable[Group],
    default: Bounds,
    *,
    overrides: Sequence[Bounds] = (),
    exclude: Sequence[str] = (),
    criteria: Sequence[str] = ("l1",),
    recoveries: Sequence[str] = ("finetune",),
) -> SearchSpace:
    """The space over `groups`, less those whose name matches a pattern of `exclude`.

    A group takes the last bounds of `overrides` whose pattern matches its name, otherwise
    `default`. A step in the bounds is combined with the group's own (least common multiple).
    Raises AutopruneError for a pattern that matches no group, and for bounds between which a
    group has no legal width. The step of `default` is for channels and neurons, which hardware
    may like in multiples; heads and blocks have one where `overrides` give it.
    """
    groups = tuple(groups)
    names = [group.name for group in groups]
    for pattern in [*exclude, *(bounds.pattern for bounds in overrides)]:
        if not fnmatch.filter(names, pattern):
            raise AutopruneError(f"pattern {pattern!r} matches no group; the groups are {names}")
    axes = []
    for group in groups:
        if any(fnmatch.fnmatchcase(group.name, pattern) for pattern in exclude):
            continue
        matching = [b for b in overrides if fnmatch.fnmatchcase(group.name, b.pattern)]
        bounds = matching[-1] if matching else replace(default, step=None)
        usual = default.step if group.kind in ALIGNED else None
        axes.append(_axis(group, bounds, step=bounds.step or usual or 1))
    if not axes:
        raise AutopruneError(f"space.exclude {list(exclude)} leaves no group of {names} to prune")
    return SearchSpace(tuple(axes), criteria=tuple(criteria), recoveries=tuple(recoveries))


def _axis(group: Group, bounds: Bounds, *, step: int) -> Axis:
    """The widths of a group that are multiples of `step` and of its own."""
    high = math.floor(bounds.max_kept * group.size + 1e-9)
    low = max(1, math.ceil(bounds.min_kept * group.size - 1e-9))
    if low > high:
        raise AutopruneError(
            f"group {group.name!r}: no whole number of its {group.size} units lies between "
            f"min_kept {bounds.min_kept} and max_kept {bounds.max_kept}; widen the bounds for it "
            "or name it in space.exclude"
        )
    stepped = replace(group, step=math.lcm(group.step, step))
    return Axis(stepped, low=low, high=high)
