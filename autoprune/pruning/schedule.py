"""In how many rounds a network is cut and trained, and how wide it is after each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from autoprune.domain.errors import FaultsError, unknown
from autoprune.domain.space import UNEVEN_KINDS, Group
from autoprune.domain.typed import check_types
from autoprune.pruning.recover import FitPlan

SHAPES: dict[str, Callable[[float, int, int], float]] = {
    "cubic": lambda done, size, kept: kept + (size - kept) * (1 - done) ** 3,
    "geometric": lambda done, size, kept: size * (kept / size) ** done,
}
"""What is left of a group of `size` units that keeps `kept`, after a share of the rounds."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a network comes from its whole widths to those of a spec.

    In `rounds` rounds of cutting and training (Han et al., Learning both Weights and Connections,
    NeurIPS 2015); one round is one shot. With the `shape` ``geometric`` a group keeps the same
    share of its units in every round (Frankle and Carbin, The Lottery Ticket Hypothesis, ICLR
    2019), with ``cubic`` the share of what is to go that has gone after i of n rounds is
    1 - (1 - i / n)^3: much at first, little at last (Zhu and Gupta, To Prune, or Not to Prune,
    2017, arXiv:1710.01878). With `rewind` the units that are left get back, after every cut, the
    weights that they had early in the unpruned network's training (Frankle et al., Linear Mode
    Connectivity and the Lottery Ticket Hypothesis, ICML 2020; Renda, Frankle and Carbin,
    Comparing Rewinding and Fine-tuning in Neural Network Pruning, ICLR 2020).
    """

    rounds: int = 1
    shape: str = "cubic"
    rewind: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        faults = []
        if self.rounds < 1:
            faults.append(f"rounds is {self.rounds}; choose 1, which is one shot, or more")
        if self.shape not in SHAPES:
            faults.append(str(unknown("shape", self.shape, SHAPES)))
        if faults:
            raise FaultsError(faults)

    @property
    def again(self) -> bool:
        """Whether a network that was cut and measured is cut or mended again before it trains."""
        return self.rounds > 1 or self.rewind

    def misfits(self, fit: FitPlan) -> list[str]:
        """What of it does not go with how it is to be trained, a line each."""
        faults, each = [], self.epochs(fit.epochs)[0]
        if self.rounds > 1 and not each:
            faults.append(
                f"schedule has {self.rounds} rounds, and fit.epochs is {fit.epochs}; choose "
                f"{self.rounds} epochs or more, so that every round trains, or fewer rounds"
            )
        elif self.rounds > 1 and each < fit.warmup_epochs:
            faults.append(
                f"fit.warmup_epochs is {fit.warmup_epochs:g}, and a round of the schedule has "
                f"{each} of the {fit.epochs} epochs; choose at most {each}, or fewer rounds"
            )
        if self.rewind and not fit.epochs:
            faults.append(
                "schedule.rewind needs training, and fit.epochs is 0; choose 1 epoch or more, or "
                "no rewinding"
            )
        return faults

    def epochs(self, total: int) -> tuple[int, ...]:
        """How many of `total` epochs every round trains: equally many, the last one the rest."""
        each = total // self.rounds
        return (*(each,) * (self.rounds - 1), total - each * (self.rounds - 1))

    def round_of(self, epoch: int, total: int) -> int:
        """The round, from 0, in which epoch number `epoch` of `total` (from 1) is trained."""
        ends = accumulate(self.epochs(total))
        return next(number for number, end in enumerate(ends) if epoch <= end)

    def widths(self, group: Group, kept: int) -> tuple[int, ...]:
        """The units of a group that end at `kept`, after every round: never more than before,
        always its size or a multiple of its step, and in the end `kept`. Blocks, branches and
        connections go in the last round.
        """
        if group.kind in UNEVEN_KINDS:
            return (*(group.size,) * (self.rounds - 1), kept)
        found = []
        for number in range(1, self.rounds):
            left = SHAPES[self.shape](number / self.rounds, group.size, kept)
            legal = group.step * round(left / group.step)
            found.append(min(max(legal, kept), group.size))
        return (*found, kept)


ONE_SHOT = Schedule()
"""The network is cut once, and trained after that."""
