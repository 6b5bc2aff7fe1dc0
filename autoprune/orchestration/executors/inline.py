"""The inline executor: a sweep in this process, one trial after the other."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from autoprune.evaluation import TrialContext
from autoprune.orchestration.interrupt import Interrupt
from autoprune.orchestration.storage import Storage
from autoprune.orchestration.store import Store
from autoprune.orchestration.sweep import Sweep
from autoprune.orchestration.work import work

PATIENCE_S = 0.1
"""How often Ctrl-C is looked for while a searcher is at work."""


@dataclass(frozen=True, slots=True)
class InlineExecutor:
    """Runs trials in this process: for tests, for debugging, and for notebooks."""

    slots: int = 1

    def check(self, place: Store) -> Sequence[str]:
        """This process is there, and has tried the place."""
        return ()

    def kept(self) -> AbstractContextManager[None]:
        """This process stays."""
        return nullcontext()

    def run(
        self, sweep: Sweep, context: TrialContext, storage: Storage, *, interrupt: Interrupt
    ) -> None:
        """Run the sweep until its budget is used up or the user interrupts."""
        while not interrupt.requested:
            trial = sweep.next_trial(wait_s=PATIENCE_S)
            if trial is None:
                if sweep.spent:
                    return
                continue
            steps = work(trial, context, storage)
            while not interrupt.give_up:
                # a searcher may draw from torch's global generator, as training does
                sweep.proposals.settle()
                try:
                    progress = next(steps)
                except StopIteration as end:
                    sweep.record(end.value)
                    break
                sweep.progress(trial, progress.stage, progress.metrics, epoch=progress.epoch)
                if progress.worth is not None and not sweep.reached(progress.worth):
                    steps.close()
                    break
