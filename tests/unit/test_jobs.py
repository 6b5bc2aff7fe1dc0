"""Jobs of a cluster as autoprune finds them again, without the cluster."""

from types import SimpleNamespace

import pytest
from ray.job_submission import JobDetails, JobStatus

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.jobs import MARK, Jobs


def jobs(*names: str) -> Jobs:
    """The jobs of a cluster that was sent these, one a second, after one of somebody else's."""
    sent = [details("theirs", {}, 0)]
    sent += [details(name, {MARK: "0.1.0"}, at) for at, name in enumerate(names, start=1)]
    found = Jobs.__new__(Jobs)
    found.address = "http://head:8265"
    found._client = SimpleNamespace(list_jobs=lambda: sent)
    return found


def details(name: str, metadata: dict[str, str], at: int) -> JobDetails:
    return JobDetails(
        type="SUBMISSION",
        submission_id=name,
        entrypoint="",
        status=JobStatus.RUNNING,
        metadata=metadata,
        start_time=1000 * at,
    )


def test_a_job_is_found_by_its_id_and_the_latest_by_that_word() -> None:
    assert jobs("one", "two").find("one").id == "one"
    assert jobs("one", "two").find("latest").id == "two"


def test_a_job_that_is_not_autoprunes_is_not_found() -> None:
    with pytest.raises(AutopruneError, match="no job 'theirs' at http://head:8265; the latest are"):
        jobs("one", "two").find("theirs")
    with pytest.raises(AutopruneError, match=r"no job 'latest' .*; `autoprune submit` sends one"):
        jobs().find("latest")
