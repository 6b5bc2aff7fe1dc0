"""The ladder of fidelities as a scheduler of Ray Tune."""

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from autoprune.orchestration.executors.tune_driver import WORTH, Adapter, InDriver


class ParetoAsha(InDriver, FIFOScheduler):
    """Asynchronous successive halving over several objectives.

    A trial that reaches a rung of the sweep's ladder goes on where it is among the best there
    (`autoprune.domain.ladder.Rungs`); otherwise it pauses: for Tune it is over, and when it may
    climb later the adapter suggests it again. A worker then goes on from its last snapshot. Tune's
    own pausing is not used: it hands a paused trial to the next free actor without asking.
    Without a ladder it is first in, first out.
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.adapter = adapter

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on after a stage or an epoch."""
        goes_on = WORTH not in result or self.adapter.reached(trial.trial_id, result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
