"""A sweep with its tracker, its files and its models: what the command and the API both run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from autoprune.domain.errors import AutopruneError, first_line, shown
from autoprune.orchestration.artifacts import MODEL_FOLDER, load
from autoprune.orchestration.baseline import EpochReport
from autoprune.orchestration.exports import export_network
from autoprune.orchestration.folders import JOURNAL_FILE, check_writable, trial_folder
from autoprune.orchestration.journal import check_free
from autoprune.orchestration.networks import NetworksWatcher
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.profiling import PointReport, with_profile
from autoprune.orchestration.reports.files import ReportsWatcher
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.session import SweepResult, check_places, resume, start
from autoprune.orchestration.sweep import Watcher
from autoprune.orchestration.tracking.connection import check, complaint, missing_file
from autoprune.orchestration.tracking.optuna_watcher import OptunaWatcher
from autoprune.orchestration.tracking.provenance import gather
from autoprune.orchestration.tracking.serving import ServingError, log_model
from autoprune.orchestration.tracking.tracker import MlflowTracker


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where results go besides the sweep's folder: an MLflow URI, or nowhere.

    `optuna` keeps a study in that folder, for optuna-dashboard. The front's networks are written in
    the formats of `export`, too.
    """

    uri: str | None = None
    keep_all_models: bool = False
    optuna: bool = True
    export: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launched:
    """A sweep that ended, and what its user should know: what of it was lost, in its folder or in
    its tracking store, and what speaks against its settings. `exported` says what was written for
    other programs.
    """

    result: SweepResult
    warnings: tuple[str, ...] = ()
    exported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who hears of a sweep: of the baseline's training by `on_epoch`, of its figures by
    `on_prepared`, of every point of the profile by `on_point`, and of all that follows.
    """

    watchers: Sequence[Watcher] = ()
    on_epoch: EpochReport | None = None
    on_prepared: Callable[[Prepared], None] | None = None
    on_point: PointReport | None = None


def launch(
    request: SweepRequest,
    tracking: Tracking,
    *,
    folder: Path | None = None,
    listeners: Listeners | None = None,
) -> Launched:
    """Run a sweep, or go on with the one in `folder`, and log the front's networks.

    Folder, storage, executor and tracking store are tried before anything else: without them
    nothing starts. A new sqlite store is made once the baseline stands, so that a request at fault
    leaves none.
    """
    listeners = listeners or Listeners()
    waits = _tried(request, tracking, folder)
    prepared = prepare(request, report=listeners.on_epoch)
    prepared = replace(prepared, doubts=(*prepared.doubts, *waits))
    if tracking.uri is not None:
        check(tracking.uri)
    if listeners.on_prepared is not None:
        listeners.on_prepared(prepared)
    if folder is None and request.profile:
        prepared = with_profile(prepared, report=listeners.on_point)
    tracker = None
    if tracking.uri is not None:
        tracker = MlflowTracker(
            tracking.uri, provenance=gather(_shown(request.config or {}), Path.cwd())
        )

    def run_ids() -> Mapping[int, str]:
        return tracker.run_ids if tracker is not None else {}

    files: list[NetworksWatcher | ReportsWatcher | OptunaWatcher] = []

    def watch(place: Path) -> Sequence[Watcher]:
        storage = request.storage_of(place)
        files.append(NetworksWatcher(place, storage, keep_all=tracking.keep_all_models))
        files.append(ReportsWatcher(place, run_ids=run_ids))
        if tracking.optuna:
            files.append(OptunaWatcher(place, run_ids=run_ids))
        return [*filter(None, [tracker]), *files, *listeners.watchers]

    if folder is None:
        result = start(prepared, watchers=watch)
    else:
        result = resume(prepared, folder, watchers=watch)
    lost = [*result.lost, *(watcher.fault for watcher in files)]
    if tracker is not None:
        unwritten = tracker.summary()
        lost += [unwritten] if unwritten else _log_front(prepared, result, tracker)
    exported, unexported = _export_front(prepared, result) if tracking.export else ([], [])
    warnings = [*lost, *unexported, *result.doubts]
    return Launched(result, tuple(line for line in warnings if line), tuple(exported))


def _tried(request: SweepRequest, tracking: Tracking, folder: Path | None) -> Sequence[str]:
    """What trials would wait for. Raises AutopruneError where the sweep could not run or save."""
    check_writable(request.output)
    if folder is not None:
        # a sweep that is running, or damaged, is refused before anything is measured
        check_free(folder / JOURNAL_FILE)
    waits = check_places(request)
    if tracking.uri is not None:
        file = missing_file(tracking.uri)
        if file is None:
            check(tracking.uri)
        else:
            check_writable(file.parent)
    return waits


def _shown(config: Any) -> Any:
    """A config as it may be shown: without passwords in the addresses of what it names."""
    match config:
        case str():
            return shown(config)
        case Mapping():
            return {key: _shown(value) for key, value in config.items()}
        case list() | tuple():
            return [_shown(value) for value in config]
    return config


def _log_front(prepared: Prepared, result: SweepResult, tracker: MlflowTracker) -> list[str]:
    """Log the front's networks to their runs; what could not be, and why."""
    client, request = MlflowClient(tracking_uri=tracker.uri), prepared.request
    lost: list[str] = []
    for number, place in _ended(result):
        try:
            with request.gate.step():
                network = load(place, model=prepared.baseline.model)
                run_id = tracker.run_ids[number]
                log_model(client, run_id, network, example=request.task.example())
        except ServingError as error:
            # what one network of the architecture cannot do, none can
            return [*lost, f"the networks are not in MLflow: {error}"]
        except (MlflowException, AutopruneError, OSError, KeyError) as error:
            lost.append(f"the network of trial {number} is not in MLflow: {complaint(error)}")
    return lost


def _export_front(prepared: Prepared, result: SweepResult) -> tuple[list[str], list[str]]:
    """Write the front's networks for other programs; what was written, and what could not be."""
    request = prepared.request
    exported, lost = list[str](), list[str]()
    for number, place in _ended(result):
        try:
            with request.gate.step():
                network = load(place, model=prepared.baseline.model)
                exported.append(f"trial {number}: {export_network(network, request.task, place)}")
        except (AutopruneError, OSError) as error:
            lost.append(f"the network of trial {number} is not exported: {first_line(error)}")
    return exported, lost


def _ended(result: SweepResult) -> Iterator[tuple[int, Path]]:
    """The front's trials that came to their end, with the folders of their networks.

    One that waits on the ladder is not what it will be: a resume goes on with it.
    """
    for member in result.view.front.members:
        if member.rung is None:
            number = member.trial.number
            yield number, trial_folder(result.folder, number) / MODEL_FOLDER
