"""Finding in MLflow what belongs to a sweep: its experiment, its run, and those of its trials."""

import time

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.tracking.connection import check_in_place
from autoprune.orchestration.view import SweepView

SWEEP, KIND, TRIAL = "autoprune.sweep", "autoprune.kind", "trial"
"""The tags of a run: the sweep's id, ``sweep`` or ``trial``, and the trial's number."""


def tagged(sweep_id: str, kind: str, number: int | None = None) -> str:
    """What MLflow is asked for to find a sweep's runs of a kind, or that of one trial."""
    condition = f"tags.`{SWEEP}` = '{sweep_id}' and tags.`{KIND}` = '{kind}'"
    return condition if number is None else f"{condition} and tags.`{TRIAL}` = '{number}'"


def find_or_make_experiment(client: MlflowClient, name: str, root: str | None) -> str:
    """The id of an experiment; a new one keeps artifacts below `root`, None leaves it to a server.

    Raises AutopruneError for one that was deleted, or whose artifacts were moved.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = None if root is None else f"{root}/{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            return str(client.create_experiment(name, artifact_location=folder))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    check_in_place(client.tracking_uri, str(found.artifact_location))
    if found.lifecycle_stage != "active":
        raise AutopruneError(
            f"MLflow experiment {name!r} was deleted; restore it or choose another name"
        )
    return str(found.experiment_id)


def find_run(client: MlflowClient, view: SweepView, number: int) -> str:
    """The run of a trial. Raises AutopruneError where the store has none, or was moved."""
    experiment = client.get_experiment_by_name(view.experiment)
    found: list[Run] = []
    if experiment is not None:
        check_in_place(client.tracking_uri, str(experiment.artifact_location))
        condition = tagged(view.sweep_id, "trial", number)
        found = client.search_runs([experiment.experiment_id], condition, max_results=1)
    if not found:
        raise AutopruneError(
            f"trial {number} of {view.sweep_id} has no run in MLflow; "
            f"{view.command('resume')} writes what is missing"
        )
    return str(found[0].info.run_id)


def find_sweep_run(client: MlflowClient, experiment: str, sweep_id: str) -> Run | None:
    """The parent run of a sweep, None where the store has none."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs([found.experiment_id], tagged(sweep_id, "sweep"), max_results=1)
    return runs[0] if runs else None
