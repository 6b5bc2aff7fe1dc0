"""When a sweep had better stop than go on."""

from collections import Counter

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, Failure, Outcome, Stage

SAME_FAILURES_TO_STOP = 3
"""So many trials that fail of one cause before any comes through end the sweep."""

EARLY_LOSSES_TO_STOP = 20
"""So many workers that die in a row before their trials have told anything end the sweep."""


class SweepStoppedError(AutopruneError):
    """The sweep gave up: several trials failed of one cause before any came through, workers did
    nothing but die, or what trials found could not be saved.
    """


class Trouble:
    """What this session has seen that speaks against going on; its methods raise SweepStoppedError
    where that is enough.
    """

    def __init__(self) -> None:
        self._failed_first: Counter[Cause] | None = Counter()  # None once a trial came through
        self._early_losses = 0

    def heard(self) -> None:
        """A worker told something of its trial."""
        self._early_losses = 0

    def came_to(self, outcome: Outcome) -> None:
        """A trial of this session came to an outcome, or one of an earlier session came through."""
        self._early_losses = 0
        if not isinstance(outcome, Failure):
            self._failed_first = None
        elif self._failed_first is not None:
            self._failed_first[outcome.cause] += 1
            if self._failed_first[outcome.cause] >= SAME_FAILURES_TO_STOP:
                raise SweepStoppedError(
                    f"{SAME_FAILURES_TO_STOP} trials failed ({outcome.cause}) and none came "
                    f"through; the last one in stage {outcome.stage}: {outcome.reason}; mend that, "
                    "then resume the sweep"
                )

    def lost(self, failure: Failure) -> None:
        """A trial was lost with its worker, and is to be run again."""
        if failure.cause is not Cause.WORKER_LOST or failure.stage is not Stage.PRUNE:
            return
        self._early_losses += 1
        if self._early_losses >= EARLY_LOSSES_TO_STOP:
            raise SweepStoppedError(
                f"{EARLY_LOSSES_TO_STOP} workers in a row died before their trials had told "
                f"anything; the last one: {failure.reason}; look at what its node says of it "
                "(`ray logs`), mend or remove the node, then resume the sweep"
            )
