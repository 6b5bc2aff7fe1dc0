"""The search space: dependency groups, how far each may shrink, and what a trial picks.

Axis legend: d = dimensions of the encoded space (one an axis, then one a choice).
"""

import hashlib
import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from autoprune.domain.errors import AutopruneError

KINDS: dict[str, str] = {
    "channels": "outputs of a convolution, with all that is coupled to them",
    "neurons": "outputs of a linear layer, with all that is coupled to them",
    "heads": "heads of an attention",
    "blocks": "blocks of a stack, which are bypassed",
    "branches": "branches that a concatenation joins",
    "connections": "parts of a concatenation that a layer reads",
}
"""What a unit of a group may be."""

USUAL_KINDS = ("channels", "neurons", "heads")
"""What a space is made of where nothing else is asked for."""

ALIGNED = ("channels", "neurons")
"""The kinds whose widths hardware likes in multiples."""

UNEVEN_KINDS = ("blocks", "branches", "connections")
"""The kinds of which a unit may own more of a layer than another."""

FP32, INT8 = "fp32", "int8"
PRECISIONS = (FP32, INT8)
"""What a network may be deployed in: as it is, or with weights and activations in 8 bits."""


@dataclass(frozen=True, slots=True)
class Group:
    """One dependency group of a network: everything that must be pruned together.

    `name` is the layer whose output the group is, or the module that counts its units, `kind` says
    what a unit is (one of `KINDS`), `size` counts the units of the unpruned network, `step` is the
    number of units that widths are multiples of (hardware alignment, grouped convolutions),
    and `layers` names every layer that changes with it.
    """

    name: str
    kind: str
    size: int
    step: int = 1
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise AutopruneError(f"group {self.name!r} has {self.size} units; it needs at least 1")
        if self.step < 1:
            raise AutopruneError(f"group {self.name!r} has step {self.step}; choose 1 or more")


@dataclass(frozen=True)
class Axis:
    """A group together with the widths it may take: multiples of its step in [low, high]."""

    group: Group
    low: int
    high: int

    def __post_init__(self) -> None:
        name, size = self.group.name, self.group.size
        if not 1 <= self.low <= self.high <= size:
            raise AutopruneError(
                f"group {name!r}: bounds {self.low}..{self.high} of {size} units; "
                f"choose 1 <= low <= high <= {size}"
            )
        if not self.widths:
            raise AutopruneError(
                f"group {name!r}: no multiple of its step {self.group.step} lies in "
                f"{self.low}..{self.high} of {size} units; widen the bounds or lower the step"
            )

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """The legal widths in ascending order; the unpruned size is legal whatever the step."""
        step = self.group.step
        first = math.ceil(self.low / step) * step
        multiples = list(range(first, self.high + 1, step))
        if self.high == self.group.size and self.high not in multiples:
            multiples.append(self.high)
        return tuple(multiples)

    def nearest(self, width: float | Fraction) -> int:
        """The legal width nearest to `width`; of two equally near the wider one."""
        return min(self.widths, key=lambda w: (abs(w - width), -w))

    def ratios(self, width: int) -> tuple[Fraction, float | Fraction]:
        """The kept ratios, from the first and below the second, whose nearest is `width`."""
        at, twice = self.widths.index(width), 2 * self.group.size
        low = Fraction(self.widths[at - 1] + width, twice) if at > 0 else Fraction(0)
        last = at + 1 == len(self.widths)
        return low, math.inf if last else Fraction(width + self.widths[at + 1], twice)


@dataclass(frozen=True)
class PruningSpec:
    """What one trial cuts, how it heals, and in which precision it is deployed.

    `kept` pairs every group's name with the number of units it keeps, sorted by name;
    `criterion` names the importance score that picks the units, `recovery` the recipe that
    heals the network afterwards, and `precision` one of `PRECISIONS`.
    """

    kept: tuple[tuple[str, int], ...]
    criterion: str = "l1"
    recovery: str = "finetune"
    precision: str = FP32

    def __post_init__(self) -> None:
        try:
            names = [name for name, _ in self.kept]
        except (TypeError, ValueError) as error:
            raise AutopruneError(
                f"a spec keeps pairs of a group and its units, got {self.kept!r}; use "
                "PruningSpec.of({group: units})"
            ) from error
        if names != sorted(set(names)):
            raise AutopruneError(
                f"a spec names each group once, in sorted order, got {names}; use PruningSpec.of"
            )

    @classmethod
    def of(
        cls,
        widths: Mapping[str, int],
        *,
        criterion: str = "l1",
        recovery: str = "finetune",
        precision: str = FP32,
    ) -> Self:
        """Build a spec from kept units by group name, in any order; numpy's integers will do."""
        try:
            kept = {name: operator.index(width) for name, width in widths.items()}
        except TypeError as error:
            raise AutopruneError(
                f"a spec keeps whole numbers of units, got {dict(widths)}; round them"
            ) from error
        return cls(tuple(sorted(kept.items())), criterion, recovery, precision)

    @cached_property
    def widths(self) -> dict[str, int]:
        """Kept units by group name."""
        return dict(self.kept)

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits that equal specs share on every machine and in every version."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse.

        fp32 is not written down: digests and journals from before there was a choice stay valid.
        """
        chosen = {} if self.precision == FP32 else {"precision": self.precision}
        return {
            "kept": self.widths,
            "criterion": self.criterion,
            "recovery": self.recovery,
            **chosen,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a spec from `to_json`."""
        kept = {str(name): int(width) for name, width in data["kept"].items()}
        return cls.of(
            kept,
            criterion=str(data["criterion"]),
            recovery=str(data["recovery"]),
            precision=str(data.get("precision", FP32)),
        )


@dataclass(frozen=True)
class SearchSpace:
    """The groups that may shrink and how far, with the criteria, recoveries and precisions to
    choose from.

    The encoding has one dimension an axis, in order, and one more for the criteria, for the
    recoveries and for the precisions where there is a choice. Each is in [0, 1]; an axis counts
    its legal widths, not its units, so that equal steps are equally many choices apart.
    """

    axes: tuple[Axis, ...]
    criteria: tuple[str, ...] = ("l1",)
    recoveries: tuple[str, ...] = ("finetune",)
    precisions: tuple[str, ...] = (FP32,)

    def __post_init__(self) -> None:
        if not self.axes:
            raise AutopruneError("the search space has no group; nothing could be pruned")
        names = [axis.group.name for axis in self.axes]
        if len(set(names)) < len(names):
            raise AutopruneError(f"group names must be unique, got {sorted(names)}")
        if not all(self.choices.values()):
            raise AutopruneError("name at least one criterion, one recovery and one precision")

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups, in the order of the axes."""
        return tuple(axis.group for axis in self.axes)

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """What there is to choose from besides widths, by the name that a spec has for it."""
        return {
            "criterion": self.criteria,
            "recovery": self.recoveries,
            "precision": self.precisions,
        }

    @property
    def size(self) -> int:
        """How many different specs there are."""
        counts = [len(axis.widths) for axis in self.axes]
        return math.prod([*counts, *map(len, self.choices.values())])

    @cached_property
    def options(self) -> tuple[tuple[Any, ...], ...]:
        """The legal values of every encoded dimension, in order: d tuples."""
        choices = [choice for choice in self.choices.values() if len(choice) > 1]
        return (*(axis.widths for axis in self.axes), *choices)

    def encode(self, spec: PruningSpec) -> NDArray[np.float64]:
        """The spec as a point of [0, 1]^d. Raises AutopruneError where it is not of this space."""
        scale = [max(len(options) - 1, 1) for options in self.options]
        return np.array(self.indices(spec)) / scale

    def decode(self, x: Sequence[float] | NDArray[np.float64]) -> PruningSpec:
        """The spec nearest to a point of R^d; coordinates outside [0, 1] are clipped."""
        if len(x) != len(self.options):
            raise AutopruneError(
                f"a point of this space has {len(self.options)} numbers, got {len(x)}"
            )
        if np.isnan(x).any():
            raise AutopruneError(f"a point of this space is made of numbers, got NaN in {list(x)}")
        indices = [
            round(float(np.clip(value, 0.0, 1.0)) * (len(options) - 1))
            for value, options in zip(x, self.options, strict=True)
        ]
        return self.at(indices)

    def at(self, indices: Sequence[int]) -> PruningSpec:
        """The spec at one index into each of `options`: d integers."""
        values = [options[i] for options, i in zip(self.options, indices, strict=True)]
        widths = {axis.group.name: int(values[i]) for i, axis in enumerate(self.axes)}
        rest = iter(values[len(self.axes) :])
        chosen = {n: str(next(rest)) if len(of) > 1 else of[0] for n, of in self.choices.items()}
        return PruningSpec.of(widths, **chosen)

    def indices(self, spec: PruningSpec) -> tuple[int, ...]:
        """The inverse of `at`. Raises AutopruneError for a spec that is not of this space."""
        self.check(spec)
        values: list[Any] = [spec.widths[axis.group.name] for axis in self.axes]
        values += [getattr(spec, name) for name, of in self.choices.items() if len(of) > 1]
        return tuple(o.index(value) for o, value in zip(self.options, values, strict=True))

    def sample(self, rng: np.random.Generator) -> PruningSpec:
        """A spec drawn uniformly over the legal values of every dimension."""
        return self.at([int(rng.integers(len(options))) for options in self.options])

    def uniform(self, ratio: float) -> PruningSpec:
        """The spec in which every group keeps as near to `ratio` of its units as it legally can."""
        if not 0.0 <= ratio <= 1.0:
            raise AutopruneError(f"a kept ratio lies in [0, 1], got {ratio}")
        # in floats, groups whose widths change at one ratio would not all change at once
        exact = Fraction(ratio).limit_denominator(10**9)
        widths = {a.group.name: a.nearest(exact * a.group.size) for a in self.axes}
        return PruningSpec.of(widths, **{name: of[0] for name, of in self.choices.items()})

    def is_uniform(self, spec: PruningSpec) -> bool:
        """Whether one ratio for every group gives the widths of `spec`, a spec of this space."""
        ratios = [axis.ratios(spec.widths[axis.group.name]) for axis in self.axes]
        return max(low for low, _ in ratios) < min(high for _, high in ratios)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        return {
            "axes": [
                {"group": asdict(axis.group), "low": axis.low, "high": axis.high}
                for axis in self.axes
            ],
            "criteria": list(self.criteria),
            "recoveries": list(self.recoveries),
            **({} if self.precisions == (FP32,) else {"precisions": list(self.precisions)}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a space from `to_json`."""
        axes = []
        for axis in data["axes"]:
            facts = axis["group"]
            group = Group(**{**facts, "layers": tuple(facts["layers"])})
            axes.append(Axis(group, int(axis["low"]), int(axis["high"])))
        precisions = tuple(data.get("precisions", (FP32,)))
        return cls(tuple(axes), tuple(data["criteria"]), tuple(data["recoveries"]), precisions)

    def check(self, spec: PruningSpec) -> None:
        """Raise AutopruneError unless `spec` belongs to this space."""
        names = {axis.group.name for axis in self.axes}
        if set(spec.widths) != names:
            wrong = sorted(set(spec.widths) ^ names)
            raise AutopruneError(f"the spec and the space differ in groups {wrong}")
        for axis in self.axes:
            kept = spec.widths[axis.group.name]
            if kept not in axis.widths:
                raise AutopruneError(
                    f"group {axis.group.name!r} keeps {kept} of {axis.group.size} units; choose "
                    f"between {axis.widths[0]} and {axis.widths[-1]} in steps of {axis.group.step}"
                )
        for name, choice in self.choices.items():
            if getattr(spec, name) not in choice:
                raise AutopruneError(f"{name} {getattr(spec, name)!r} is not one of {choice}")
