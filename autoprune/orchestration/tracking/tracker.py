"""The tracker: a sweep as MLflow shows it, written behind the sweep's back.

The journal is the truth and MLflow a projection of it: nothing that fails here harms the sweep,
and a resume writes whatever is missing.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from autoprune.domain.errors import AutopruneError, shown, without_passwords
from autoprune.domain.trial import Failure, Observation, Stage, Trial
from autoprune.orchestration.tracking.connection import (
    artifact_root,
    check,
    complaint,
    short_requests,
    transient,
)
from autoprune.orchestration.tracking.entries import Entries, now_ms
from autoprune.orchestration.tracking.provenance import Provenance
from autoprune.orchestration.tracking.runs import SweepRuns
from autoprune.orchestration.tracking.writer import Retry, Writer
from autoprune.orchestration.view import SweepView

REQUEST_S = 30.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How often the reports are written anew, and how long the end may wait for a store that takes
    nothing in.
    """

    refresh_s: float = 5.0
    drain_s: float = 60.0


class MlflowTracker:
    """One parent run a sweep and one child a trial, on any MLflow store.

    The calls of a sweep return at once, except the first, which finds or makes the parent run
    and raises AutopruneError where the store does not answer. One thread writes; where the store
    stops answering it waits and tries again. At the end it goes on until all is written, or nothing
    could be for `patience.drain_s` seconds; what is not written by then is named in `unwritten`.
    """

    def __init__(
        self, uri: str, *, provenance: Provenance | None = None, patience: Patience | None = None
    ) -> None:
        self.uri = uri
        self._provenance = provenance or Provenance()
        self._patience = patience or Patience()
        self._settings = ExitStack()
        self._runs: SweepRuns | None = None
        self._writer: Writer | None = None
        self._view: SweepView | None = None
        self._unwritten: tuple[str, ...] = ()

    @property
    def run_ids(self) -> Mapping[int, str]:
        """The run of every trial, as far as they are known."""
        return dict(self._runs.children) if self._runs else {}

    @property
    def parent_run_id(self) -> str:
        """The sweep's run; known after `on_start`."""
        return self._opened[0].parent

    @property
    def unwritten(self) -> tuple[str, ...]:
        """What could not be written, known after `on_finish`."""
        return self._unwritten

    @property
    def behind(self) -> int:
        """How many writes wait, for instance because the store does not answer."""
        return self._writer.behind if self._writer else 0

    def on_start(self, view: SweepView) -> None:
        """Find or make the sweep's run, then write whatever of `view` the store lacks."""
        check(self.uri)
        client = MlflowClient(tracking_uri=self.uri)
        with short_requests(REQUEST_S):
            runs = self._runs = _opened_runs(client, view, self.uri)
        self._view = view
        self._settings.enter_context(short_requests(REQUEST_S))
        retry = Retry(transient, lambda: _answers(client))
        writer = self._writer = Writer(retry, refresh_s=self._patience.refresh_s)
        writer.put("the sweep's origin", lambda: runs.describe(view, self._provenance))
        writer.put("trials of before", lambda: self._reconcile(view))
        writer.refresh("the reports", lambda: runs.reports(view))

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """Metrics of a stage or epoch, as ``<stage>/<metric>`` with the epoch as step."""
        found = {f"{stage}/{name}": value for name, value in metrics.items()}
        self._gather(trial, str(stage), Entries(found, step=epoch, at_ms=now_ms()))

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        """A trial's outcome, the front's tags, the sweep's metrics, and soon the reports."""
        runs, writer = self._opened
        self._view, trial = view, observation.trial
        self._gather(trial, "outcome", observation)
        what = f"trial {trial.number}, sweep metrics"
        writer.gather(what, (view, now_ms()), runs.live, key="sweep metrics")
        writer.refresh("the reports", lambda: runs.reports(view))

    def _gather(self, trial: Trial, what: str, found: Entries | Observation) -> None:
        """Queue what is new of a trial; it is written as of the last look at the sweep by then."""
        runs, writer = self._opened

        def write(entries: Sequence[Entries | Observation]) -> None:
            assert self._view is not None, "on_start comes first"
            runs.write(trial, entries, self._view)

        writer.gather(f"trial {trial.number}, {what}", found, write, key=trial.number)

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        """Write the last reports, end the runs, and wait for all of it with a time limit."""
        runs, writer = self._opened
        failed = all(isinstance(o.outcome, Failure) for o in view.observations)
        status = "FINISHED" if complete else "KILLED"
        if failed and view.observations:
            status = "FAILED"
        self._view, at_ms = view, now_ms()
        writer.again()
        # trials that climb a ladder change them without a further trial, which is their step
        writer.put("the last sweep metrics", lambda: runs.live([(view, at_ms)]))
        writer.put("the trials' tags", lambda: runs.settle(view))
        writer.put("the last reports", lambda: runs.reports(view))
        writer.put("the sweep's end", lambda: runs.close(status))
        lost = writer.close(self._patience.drain_s)
        self._settings.close()
        self._unwritten = lost

    def summary(self) -> str:
        """What to tell the user about writes that failed; empty where there are none."""
        if not self._unwritten:
            return ""
        some = "; ".join(self._unwritten[:3])
        more = len(self._unwritten) - 3
        rest = f"; and {more} more" if more > 0 else ""
        return (
            f"{len(self._unwritten)} writes to {shown(self.uri)} could not be made: {some}{rest}. "
            "The journal has everything: a resume writes them."
        )

    @property
    def _opened(self) -> tuple[SweepRuns, Writer]:
        assert self._runs is not None, "on_start comes first"
        assert self._writer is not None, "on_start comes first"
        return self._runs, self._writer

    def _reconcile(self, view: SweepView) -> None:
        runs, _ = self._opened
        runs.load_children()
        for observation in runs.missing(view):
            runs.write(observation.trial, [observation], view)
        runs.retag(view)
        runs.catch_up(view)


def _opened_runs(client: MlflowClient, view: SweepView, uri: str) -> SweepRuns:
    try:
        return SweepRuns(client, view, root=artifact_root(uri))
    except MlflowException as error:
        raise AutopruneError(
            f"the MLflow store at {shown(uri)} takes no run of experiment {view.experiment!r} "
            f"({complaint(error)}); check its permissions or choose another tracking.uri"
        ) from without_passwords(error)


def _answers(client: MlflowClient) -> bool:
    try:
        client.search_experiments(max_results=1)
    except Exception:  # whatever the reason, it does not answer
        return False
    return True
