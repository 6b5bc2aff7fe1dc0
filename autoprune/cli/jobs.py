"""`autoprune submit`, `logs` and `stop`, and what `status` says of a job."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ray.job_submission import JobStatus

from autoprune.cli.call import BROKE_OFF, DONE, INTERRUPTED, Call, say, stderr
from autoprune.domain.errors import AutopruneError, shown
from autoprune.orchestration.folders import LATEST, check_name
from autoprune.orchestration.jobs import Job, Jobs
from autoprune.settings.compose import quoted
from autoprune.settings.parts import budget_of
from autoprune.settings.rules import POSITIVE, Faults, check_ranges
from autoprune.settings.running import executor_of

OWN_KEYS = ("executor.address", "resume", "stop_s")
"""The keys of `submit` that are not the sweep's in the job, where the cluster is at hand."""

ENDS = {JobStatus.SUCCEEDED: DONE, JobStatus.STOPPED: INTERRUPTED, JobStatus.FAILED: BROKE_OFF}
"""How autoprune itself ends where a job that it followed has ended."""

TAIL = 10
"""Lines of a job's log that its status shows."""


def submit(call: Call) -> int:
    """Send a sweep to a cluster as a job, and leave."""
    config = call.config
    faults = Faults()
    faults.of(lambda: check_name(config["name"]))
    faults.of(lambda: check_ranges("", config, {"stop_s": POSITIVE}))
    faults.of(lambda: _check_kind(config["executor"]["kind"]))
    faults.of(lambda: _check_output(config["output"]))
    faults.of(lambda: _check_secrets(call.words))
    faults.of(lambda: _check_address(config["executor"]["address"]))
    again = config["resume"] is not None
    command = faults.of(lambda: _resume(call) if again else _sweep(call))
    if not again:
        faults.of(lambda: executor_of(config["executor"], ()))
        faults.of(lambda: budget_of(config["budget"]))
    faults.check()
    jobs = Jobs(config["executor"]["address"])
    job = jobs.submit(
        command,
        name=config["name"],
        code=Path.cwd(),
        output=Path(config["output"]),
        stop_s=config["stop_s"],
    )
    here = f"job={job} executor.address={jobs.address}"
    call.say(
        f"job       {job}",
        "",
        "It runs on the cluster, whether or not you stay. Next:",
        *(f"  autoprune {verb} {here}" for verb in ("logs -f", "status", "stop")),
    )
    return DONE


def logs(call: Call) -> int:
    """What a job prints; followed, the exit code tells how it ended."""
    jobs, job = _named(call)
    if not call.flags & {"-f", "--follow"}:
        _print(call, jobs.logs(job))
        return DONE
    try:
        for part in jobs.follow(job):
            _print(call, part)
    except KeyboardInterrupt:
        say(stderr(), [f"autoprune: {job.id} goes on"])
        return INTERRUPTED
    return _ended(call, jobs.find(job.id))


def stop(call: Call) -> int:
    """Ask a job to end, and wait until it has."""
    jobs, job = _named(call, to_stop=True)
    if job.over:
        call.say(f"{job.id} has ended already: {job.state}")
        return DONE

    def waiting(job: Job) -> None:
        call.say(f"{job.id} finishes its running trials; Ctrl-C leaves it to that")

    try:
        job = jobs.stop(job, waiting=waiting)
    except KeyboardInterrupt:
        return INTERRUPTED
    call.say(f"{job.id}: {job.state} after {job.seconds:.0f} s")
    return DONE


def status(call: Call) -> int:
    """How a job stands, and the last lines that it printed."""
    jobs, job = _named(call)
    tail = jobs.logs(job).splitlines()[-TAIL:]
    if call.as_json:
        print(json.dumps({**asdict(job), "seconds": job.seconds, "log": tail}, indent=2))
        return DONE
    call.say(*_standing(job), *tail)
    return DONE


def _named(call: Call, *, to_stop: bool = False) -> tuple[Jobs, Job]:
    _check_address(call.config["executor"]["address"])
    jobs = Jobs(call.config["executor"]["address"])
    return jobs, jobs.find(call.config["job"] or LATEST, to_stop=to_stop)


def _ended(call: Call, job: Job) -> int:
    call.say(*_standing(job))
    return ENDS.get(job.state, BROKE_OFF)


def _standing(job: Job) -> Iterator[str]:
    yield f"job       {job.id}: {job.state} after {job.seconds:.0f} s"
    if job.state is JobStatus.FAILED and job.message:
        yield f"reason    {job.message}"


def _print(call: Call, text: str) -> None:
    call.console.print(text, end="", highlight=False, markup=False, soft_wrap=True)


def _sweep(call: Call) -> list[str]:
    """The command that the job runs: the sweep that was asked for, on the cluster around it."""
    words = [word for word in call.words if word.lstrip("+").partition("=")[0] not in OWN_KEYS]
    folder = [] if call.config_dir is None else ["--config-dir", _inside(call.config_dir)]
    return ["autoprune", "sweep", *words, "executor.address=auto", *folder]


def _resume(call: Call) -> list[str]:
    """The command that the job runs to go on with a sweep, on the cluster that it began on."""
    if not call.config["resume"]:
        raise AutopruneError("resume= names no sweep; write resume=latest, or the id of one")
    own = {*OWN_KEYS, "output", "name"}
    others = sorted(k for k in call.given - own if not k.startswith("budget."))
    if others:
        raise AutopruneError(
            f"resume goes on with a sweep as it was begun; leave out {', '.join(others)}, or "
            "start a new one"
        )
    limits = [word for word in call.words if word.startswith("budget.")]
    config = call.config
    return [
        "autoprune",
        "resume",
        f"sweep={config['resume']}",
        f"output={quoted(config['output'])}",
        *limits,
    ]


def _inside(config_dir: str) -> str:
    folder, here = Path(config_dir).resolve(), Path.cwd()
    if not folder.is_relative_to(here):
        raise AutopruneError(
            f"--config-dir {config_dir} is not in the folder that goes to the cluster, {here}; run "
            "this from a folder that holds both your modules and your configs"
        )
    return str(folder.relative_to(here))


def _check_kind(kind: str) -> None:
    if kind != "ray":
        raise AutopruneError(
            f"executor.kind={kind} runs trials in this process; a job's run on its cluster: choose "
            "executor=ray"
        )


def _check_output(output: str) -> None:
    if not Path(output).is_absolute():
        raise AutopruneError(
            f"output={output} would be a folder inside the job's, which goes when the job ends; "
            "name one that the nodes of the cluster share, such as output=/outputs"
        )


def _check_address(address: str | None) -> None:
    # Ray takes an empty variable for none, and then whichever cluster it finds on this machine
    elsewhere = any(os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"))
    if address == "" or (address is None and not elsewhere):
        raise AutopruneError(
            "executor.address is not set; name the cluster's dashboard, such as "
            "executor.address=http://HEAD:8265"
        )


def _check_secrets(words: Sequence[str]) -> None:
    for word in words:
        if shown(word) != word:
            raise AutopruneError(
                f"{shown(word)} holds a password, which the cluster would show to whoever asks it "
                "for its jobs; leave it out, and give the head MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or ~/.mlflow/credentials"
            )
