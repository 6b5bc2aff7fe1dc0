"""Sweeps as jobs of a Ray cluster: sent there with the user's code, followed, and ended.

A job's driver runs on the cluster, so that it goes on when whoever sent it has left.
"""

import asyncio
import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from ray.dashboard.utils import get_address_for_submission_client
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.orchestration.environment import environment
from autoprune.orchestration.executors.cluster import SAME_TOKEN, answers, is_dashboard
from autoprune.orchestration.folders import DEFAULT_OUTPUT, LATEST, new_id

MARK = "autoprune"
"""The key of a job's metadata that tells that autoprune sent it, and its version."""

LOOK_S = 0.5
"""How often a job that is to end is looked at."""

COLUMNS = 120
"""How wide tables are in a job's log, which is no terminal."""


@dataclass(frozen=True, slots=True)
class Job:
    """A sweep that a cluster was sent.

    `state` is Ray's word for it, ``RUNNING`` or ``FAILED`` for instance, `message` what it says
    besides; times are seconds since the epoch, None for what has not happened.
    """

    id: str
    state: JobStatus
    message: str
    began: float | None
    ended: float | None

    @classmethod
    def of(cls, details: JobDetails) -> "Job":
        """A job as Ray tells of it."""
        began, ended = (
            None if at is None else at / 1e3 for at in (details.start_time, details.end_time)
        )
        # Ray 2.60 repeats a log of up to 20,000 characters there
        message = (details.message or "").partition(", last available logs")[0]
        return cls(str(details.submission_id), details.status, message, began, ended)

    @property
    def over(self) -> bool:
        """Whether it has ended, however."""
        return self.state.is_terminal()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return 0.0 if self.began is None else (self.ended or time.time()) - self.began


class Jobs:
    """The jobs of the cluster at an address, by Ray's Jobs API.

    The address is that of the cluster's dashboard, ``http://HEAD:8265``, or one by which Ray finds
    it. Raises AutopruneError where nobody answers there, or lets this process in.
    """

    def __init__(self, address: str | None) -> None:
        with _asking(address):
            self.address = self._dashboard(address)
            # Ray 2.60 prefers its variables to what it is told
            with environment({"RAY_API_SERVER_ADDRESS": self.address}):
                self._client = JobSubmissionClient(self.address)

    @staticmethod
    def _dashboard(address: str | None) -> str:
        found = address if "://" in (address or "") else None
        # Ray 2.60 would take HEAD:8265 for the port of its head, and try for a minute
        if found is None and answers(address) and is_dashboard(f"http://{address}"):
            found = f"http://{address}"
        if found is None or found.startswith("ray://"):
            found = str(get_address_for_submission_client(address))
        where = urlsplit(found)
        answers(f"{where.hostname}:{where.port or (443 if where.scheme == 'https' else 80)}")
        is_dashboard(found)  # Ray 2.60 waits without end for one that never answers
        return found

    def submit(
        self, command: Sequence[str], *, name: str, code: Path, output: Path, stop_s: int
    ) -> str:
        """Send a command of autoprune's and the folder `code`, in which it runs; the job's id.

        What the folder's ``.gitignore`` and ``.rayignore`` name stays here, and so do earlier
        sweeps, in ``outputs`` or in the `output` of this one. Where the job is to be stopped it
        gets `stop_s` seconds to end in good order.
        """
        sweeps = {code / DEFAULT_OUTPUT, *([output] if code in output.parents else [])}
        runtime_env = {
            "working_dir": str(code),
            "excludes": [
                *sorted(f"{_ignored(folder, code)}/" for folder in sweeps),
                *_not_files(code),
            ],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_s), "COLUMNS": str(COLUMNS)},
        }
        with _asking(self.address):
            try:
                return self._client.submit_job(
                    # what is to be stopped is autoprune, not a shell around it
                    entrypoint=f"exec {shlex.join(command)}",
                    submission_id=new_id(name),
                    runtime_env=runtime_env,
                    metadata={MARK: version("autoprune")},
                )
            except (ValueError, RuntimeError) as error:
                # the dashboard of Ray 2.60 takes no more than 100 MiB
                if isinstance(error, RuntimeError) and "status code 413" not in str(error):
                    raise
                raise AutopruneError(
                    f"the folder {code} cannot be sent ({first_line(error)}); name what a sweep "
                    "does not need in .gitignore or .rayignore there"
                ) from error

    def find(self, job: str, *, to_stop: bool = False) -> Job:
        """A job of autoprune's by its id, or the latest; `to_stop` means the latest that runs, if
        any does. Raises AutopruneError for another.
        """
        with _asking(self.address):
            sent = [d for d in self._client.list_jobs() if MARK in (d.metadata or {})]
        found = sorted(map(Job.of, sent), key=lambda job: job.began or 0.0)
        if job == LATEST and found:
            under_way = [candidate for candidate in found if not candidate.over]
            return (under_way if to_stop and under_way else found)[-1]
        for candidate in found:
            if candidate.id == job:
                return candidate
        there = ", ".join(candidate.id for candidate in found[-5:])
        remedy = f"the latest are {there}" if there else "`autoprune submit` sends one"
        raise AutopruneError(f"no job {job!r} at {self.address}; {remedy}")

    def logs(self, job: Job) -> str:
        """What a job has printed."""
        with _asking(self.address):
            return self._client.get_job_logs(job.id)

    def follow(self, job: Job) -> Iterator[str]:
        """What a job prints, from its beginning until it ends."""
        heard = 0
        while True:
            at = 0
            for part in self._tail(job):
                new = part[max(0, heard - at) :]
                at += len(part)
                heard = max(heard, at)
                if new:
                    yield new
            if self.find(job.id).over:
                return
            time.sleep(LOOK_S)  # whatever cut the connection off

    def _tail(self, job: Job) -> Iterator[str]:
        """What a job prints, from its beginning until the cluster ends the connection."""

        async def following() -> str | None:
            return await anext(parts, None)

        with asyncio.Runner() as runner, _asking(self.address):
            parts = self._client.tail_job_logs(job.id)
            while (part := runner.run(following())) is not None:
                yield part

    def stop(self, job: Job, *, waiting: Callable[[Job], None] | None = None) -> Job:
        """Ask a job to end, and wait until it has; `waiting` hears of it once it is asked."""
        with _asking(self.address):
            self._client.stop_job(job.id)
        if waiting is not None:
            waiting(job)
        while not (job := self.find(job.id)).over:
            time.sleep(LOOK_S)
        return job


def _not_files(code: Path) -> Iterator[str]:
    """What is neither a file nor a folder below one.

    Ray 2.60 would wait without end for a pipe to say something.
    """
    for place, _, names in os.walk(code):
        for name in names:
            path = Path(place) / name
            with suppress(OSError):
                if not stat.S_ISREG(path.stat().st_mode):
                    yield _ignored(path, code)


def _ignored(path: Path, code: Path) -> str:
    """A path below `code` as ``.gitignore`` would name it."""
    return "/" + re.sub(r"([\\*?\[\] ])", r"\\\1", path.relative_to(code).as_posix())


@contextmanager
def _asking(address: str | None) -> Iterator[None]:
    """Turn what the Jobs API answers badly inside into an AutopruneError."""
    try:
        yield
    except AutopruneError:
        raise
    except AuthenticationError as error:
        raise AutopruneError(
            f"the Ray cluster at executor.address={address!r} does not let this process in; "
            f"{SAME_TOKEN}"
        ) from error
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise AutopruneError(
            f"no Ray cluster takes jobs at executor.address={address!r} ({first_line(error)}); "
            "name the dashboard of one, http://HEAD:8265, whose head has 'ray[default]'"
        ) from error
