"""The work of a slot where what it would save in is full, or not there."""

import resource
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from autoprune.domain.trial import Cause, Failure, Observation, Outcome, Trial
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.storage import InFolder
from autoprune.orchestration.work import work
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from tests.tiny import request


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: what a full disk does to a writer.

    Not a fixture: pytest reports a test before its fixtures end, to a standard output that may
    itself be a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def outcome_of(steps: Generator[object, None, Observation]) -> Outcome:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            observation: Observation = end.value
            return observation.outcome


def test_a_snapshot_that_cannot_be_saved_is_no_fault_of_its_trial(tmp_path: Path) -> None:
    # the optimiser's state, which torch.save writes, is the first file that is too large
    limit = 6_000
    prepared = prepare(request(tmp_path, recoveries={"finetune": Recovery(FitPlan(epochs=2))}))
    with small_files(limit):
        trial = Trial(0, prepared.plan.space.uniform(1.0), 5)
        steps = work(trial, prepared.context, InFolder(tmp_path))
        failure = outcome_of(steps)
    assert isinstance(failure, Failure)
    assert failure.cause is Cause.UNSAVED
    assert "RuntimeError" in failure.reason
    files = tmp_path.rglob("*")
    assert all(path.stat().st_size <= limit for path in files if path.is_file())


def test_a_node_that_does_not_see_the_sweeps_folder_fails_the_trial_before_any_work(
    tmp_path: Path,
) -> None:
    prepared = prepare(request(tmp_path))
    elsewhere = tmp_path / "not mounted"
    trial = Trial(0, prepared.plan.space.uniform(1.0), 5)
    failure = outcome_of(work(trial, prepared.context, InFolder(elsewhere)))
    assert isinstance(failure, Failure)
    assert f"does not see the sweep's folder {elsewhere}; mount it" in failure.reason
    assert not elsewhere.exists()
