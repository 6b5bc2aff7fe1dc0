"""A contest in MLflow: a run for all of it, and one below for every search."""

import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from autoprune.domain.errors import AutopruneError, shown, without_passwords
from autoprune.orchestration.contest.records import Contest, Entry
from autoprune.orchestration.tracking.connection import (
    artifact_root,
    check,
    complaint,
    short_requests,
)
from autoprune.orchestration.tracking.entries import Entries, log_entries, now_ms
from autoprune.orchestration.tracking.finding import find_or_make_experiment

CONTEST, SEARCH = "autoprune.contest", "autoprune.search"
ALL = "all of them"
REQUEST_S = 30.0


def publish(contest: Contest, folder: Path, *, uri: str, experiment: str) -> str:
    """Write a contest into a store, the files in its folder as artifacts; the run's id.

    What is there already of the same contest is brought up to date. Raises AutopruneError where
    the store does not take it: the folder has everything.
    """
    check(uri)
    client = MlflowClient(tracking_uri=uri)
    try:
        with short_requests(REQUEST_S):
            return _published(client, contest, folder, experiment, root=artifact_root(uri))
    except MlflowException as error:
        raise AutopruneError(
            f"the contest is not in the MLflow store at {shown(uri)} ({complaint(error)}); "
            f"{folder} has everything"
        ) from without_passwords(error)


def _published(
    client: MlflowClient, contest: Contest, folder: Path, experiment: str, *, root: str | None
) -> str:
    experiment_id = find_or_make_experiment(client, experiment, root)
    runs = _runs(client, experiment_id, contest.name)
    tags = {CONTEST: contest.name, SEARCH: ALL}
    parent = runs.get(ALL) or _create(client, experiment_id, contest.name, tags)
    for entry in contest.entries:
        name = f"{entry.course.searcher}-{entry.course.seed}"
        if name not in runs:
            tags = {CONTEST: contest.name, "mlflow.parentRunId": parent}
            run_id = _create(client, experiment_id, name, tags)
            _log_search(client, run_id, entry)
            client.set_tag(run_id, SEARCH, name)  # last: now it is whole
    standings = contest.standings
    if standings is not None:
        means = {f"hypervolume/{s.searcher}": s.mean for s in standings.standings}
        tags = {
            "mlflow.note.content": standings.statement,
            "winner": standings.standings[0].searcher,
        }
        log_entries(client, parent, Entries(means, tags=tags))
    # and not the config beside them, which names folders of this machine
    for file in sorted(folder.glob("compare.*")):
        client.log_artifact(parent, str(file))
    client.set_terminated(parent, status="FINISHED" if contest.complete else "KILLED")
    return parent


def _runs(client: MlflowClient, experiment_id: str, contest: str) -> dict[str, str]:
    """The contest's whole runs by the search that they are of."""
    found: list[Run] = client.search_runs(
        [experiment_id], f"tags.`{CONTEST}` = '{contest}'", max_results=10_000
    )
    whole = [run for run in found if SEARCH in run.data.tags]
    return {run.data.tags[SEARCH]: str(run.info.run_id) for run in whole}


def _create(client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str]) -> str:
    return str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)


def _log_search(client: MlflowClient, run_id: str, entry: Entry) -> None:
    """The hypervolume after every trial, and what the search ended with."""
    course, at_ms = entry.course, now_ms()
    metrics = [
        Metric("hypervolume", value, at_ms, step)
        for step, value in enumerate(course.hypervolume_T, start=1)
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    params = {"searcher": course.searcher, "seed": str(course.seed)}
    log_entries(client, run_id, Entries({"seconds": course.seconds}, params=params))
    client.log_text(run_id, json.dumps({"front": entry.front}, indent=1), "front.json")
    client.set_terminated(run_id)
