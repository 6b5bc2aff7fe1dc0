"""What a comparison found, as plain facts."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from autoprune.domain.trial import Speedup
from autoprune.measurement.device import threads_text


@dataclass(frozen=True, slots=True)
class Both:
    """One figure of the baseline and of the candidate."""

    baseline: float
    candidate: float


@dataclass(frozen=True, slots=True)
class Timed:
    """The two networks on a runtime at a batch size.

    `off_eager` is how far each one's outputs are from eager PyTorch's, as a part of the largest
    entry. `peak_mb` is the most memory that serving each takes beyond the bare runtime, in units
    of 10^6 bytes; None where it was not measured.
    """

    runtime: str
    batch_size: int
    speedup: Speedup
    off_eager: Both
    peak_mb: Both | None = None

    @property
    def throughput(self) -> Both:
        """Samples a second."""
        per_call = 1e3 * self.batch_size
        return Both(per_call / self.speedup.baseline_ms, per_call / self.speedup.candidate_ms)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the speedup is as `Speedup.from_json` reads it."""
        return {
            "runtime": self.runtime,
            "batch_size": self.batch_size,
            "speedup": asdict(self.speedup),
            "throughput": asdict(self.throughput),
            "off_eager": asdict(self.off_eager),
            "peak_mb": None if self.peak_mb is None else asdict(self.peak_mb),
        }


@dataclass(frozen=True, slots=True)
class Untimed:
    """A runtime and a batch size that gave no measurement, and why."""

    runtime: str
    batch_size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.runtime} at {self.batch_size}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


Row = Timed | Untimed


@dataclass(frozen=True, slots=True)
class Facts:
    """A network of a comparison: what the user named it, and its costs on paper.

    `macs` are the multiply-accumulates of one inference at batch size 1, `size_mb` the bytes of
    its state, in units of 10^6.
    """

    source: str
    params: float
    macs: float
    size_mb: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two networks against each other: a row for every runtime and batch size.

    `difference` is the largest difference between their outputs on one example input, as a part
    of the baseline's largest entry (infinite where one gives NaN). `notes` say what a reader of
    the rows must know.
    """

    baseline: Facts
    candidate: Facts
    difference: float
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def timed(self) -> tuple[Timed, ...]:
        """The rows that were measured."""
        return tuple(row for row in self.rows if isinstance(row, Timed))

    @property
    def untimed(self) -> tuple[Untimed, ...]:
        """The rows that gave no measurement."""
        return tuple(row for row in self.rows if isinstance(row, Untimed))

    @property
    def devices(self) -> tuple[str, ...]:
        """What the rows were measured on: machine, library, threads; each once."""
        speeds = (row.speedup for row in self.timed)
        return _once(f"{speed.device}, {threads_text(speed.threads)}" for speed in speeds)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; an infinite difference is None."""
        return {
            "baseline": asdict(self.baseline),
            "candidate": asdict(self.candidate),
            "difference": self.difference if math.isfinite(self.difference) else None,
            "devices": list(self.devices),
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
