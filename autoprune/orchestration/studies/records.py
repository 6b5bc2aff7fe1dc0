"""What the sparsity study finds out, as plain facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import TypeAlias

from autoprune.domain.trial import Speedup
from autoprune.pruning.sparse_storage import Size


class Kind(StrEnum):
    """How a network is thinned out, and on which kernels it runs.

    `STRUCTURED` loses whole channels and neurons, all groups alike. `MASKED` has zeros in place of
    its smallest weights and runs as before. `CSR` is the same network stored as compressed sparse
    rows, on torch's kernels for them. `TWO_OF_FOUR` keeps two of every four neighbours, on the
    kernels that some devices have for that.
    """

    UNPRUNED = "unpruned"
    STRUCTURED = "structured"
    MASKED = "masked"
    CSR = "csr"
    TWO_OF_FOUR = "2:4"


KINDS = tuple(kind for kind in Kind if kind is not Kind.UNPRUNED)
"""Those that can be asked for."""

TWO_OF_FOUR_SHARE = 0.5
"""What the pattern 2:4 keeps: it has no other level."""


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """Why a network has no speed on a runtime."""

    reason: str


Speed: TypeAlias = Speedup | Unmeasured


@dataclass(frozen=True, slots=True)
class Kernels:
    """How many of the weights that may be thinned out run on kernels that skip zeros.

    `there` is False where the device has no such kernels: the network then runs on dense ones.
    """

    layers: int
    of: int
    there: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """A network: what was asked of it, what it has, and its speed by the name of the runtime.

    `asked` is the share of the parameters to keep; `params` are those that are not masked, `macs`
    the multiplications of one inference whose weight is not zero, `size` what it takes on disk.
    `speeds` is empty before any was measured.
    """

    kind: Kind
    asked: float
    params: int
    macs: float
    size: Size
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    kernels: Kernels | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """A kind that a level does not have, and why."""

    kind: Kind
    asked: float
    reason: str


@dataclass(frozen=True, slots=True)
class SparsityStudy:
    """All rows, the unpruned network's first; where its weights came from; what there is not.

    Rows of one level stand beside each other. `runtimes` are the names of those that speed was
    measured on, `left_out` says why others were not.
    """

    name: str
    weights: str
    runtimes: tuple[str, ...]
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def unpruned(self) -> Row:
        """The network that all others come from."""
        return self.rows[0]

    @property
    def levels(self) -> tuple[tuple[Row, ...], ...]:
        """The rows, by what was asked of them; the unpruned network is on the first level."""
        return tuple(tuple(rows) for _, rows in groupby(self.rows, key=lambda row: row.asked))

    def share(self, row: Row) -> float:
        """The share of the unpruned network's parameters that a row keeps."""
        return row.params / self.unpruned.params

    def rho(self, row: Row, runtime: str) -> float | None:
        """Realised efficiency: the measured speedup over the one that the MACs promise.

        The promise is the unpruned network's MACs over those that remain, of which those by a
        weight of zero are none (`zero_macs` has the sources of the convention). None where no
        speed was measured, or no MACs remain.
        """
        speed = row.speeds.get(runtime)
        if not isinstance(speed, Speedup) or not row.macs:
            return None
        return speed.ratio * row.macs / self.unpruned.macs

    @property
    def spread(self) -> float:
        """How far apart the parameters of one level are at most, as a part of the fewest."""
        counts = [[row.params for row in level] for level in self.levels]
        return max(max(found) / min(found) - 1 for found in counts)
