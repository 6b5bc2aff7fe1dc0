"""A sweep's trials as a study of Optuna's in a file."""

import json
import zlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from autoprune.domain.objective import Goal
from autoprune.domain.space import SearchSpace
from autoprune.domain.trial import Failure, Measurement, Observation, Outcome, Trial
from autoprune.orchestration.tracking.optuna_journal import JournalFile
from autoprune.orchestration.view import SweepView
from autoprune.searchers.optuna import directions, quiet_optuna

CHECKSUM = "autoprune:checksum"
CONSTRAINTS = "constraints"
"""Where optuna-dashboard 0.21 looks for violations: a list, as Optuna kept them before 5.0."""


class StudyFile:
    """One study in a journal of Optuna's. What is written reaches the disk with `file.save()`."""

    def __init__(self, file: JournalFile, storage: JournalStorage, view: SweepView) -> None:
        self.file, self._storage, self._view = file, storage, view
        self._id = storage.get_study_id_from_name(view.sweep_id)
        self._distributions = distributions(view.space)
        # Optuna's ids by number: its storage finds a trial by its id, or goes through all of them
        self._ids = [trial._trial_id for trial in self._trials]

    @classmethod
    def new(cls, path: Path, view: SweepView) -> "StudyFile":
        """An empty study of the sweep, which takes the place of whatever the file holds."""
        file = JournalFile(path)
        storage = JournalStorage(file)
        goal = view.goal
        with quiet_optuna():
            study = optuna.create_study(
                storage=storage, study_name=view.sweep_id, directions=directions(goal)
            )
            study.set_metric_names([objective.metric for objective in goal.objectives])
        study.set_user_attr("baseline", dict(view.baseline))
        study.set_user_attr("constraints", [str(constraint) for constraint in goal.constraints])
        return cls(file, storage, view)

    @classmethod
    def found(cls, path: Path, view: SweepView) -> "StudyFile | None":
        """The sweep's study in a file; None where it holds none, or cannot be read."""
        try:
            file = JournalFile.read(path)
            return cls(file, JournalStorage(file), view)
        except Exception:  # a damaged journal of Optuna's raises whatever its lines run into
            return None

    def shows(self, number: int) -> bool:
        """Whether the study has all parameters of a trial."""
        return number < len(self._ids) and self._complete(self._trial(number))

    def tells(self, observation: Observation) -> bool:
        """Whether the study tells of a trial what the observation does."""
        number = observation.trial.number
        if number >= len(self._ids):
            return False
        trial = self._trial(number)
        ended = observation.rung is not None or trial.state.is_finished()
        return bool(ended and trial.system_attrs.get(CHECKSUM) == checksum(observation))

    def leads_to(self, last: Mapping[int, Observation]) -> bool:
        """Whether the study may come to tell `last`: no trial that it ended came to anything else.

        Optuna changes no trial that has ended.
        """
        return all(
            number in last and last[number].rung is None and self.tells(last[number])
            for number, trial in enumerate(self._trials)
            if trial.state.is_finished()
        )

    def begin(self, trial: Trial, *, seconds: float = 0.0) -> int:
        """Show a trial, which began so many seconds ago, as running; gives Optuna's id of it."""
        values = trial.spec.widths | {
            "criterion": trial.spec.criterion,
            "recovery": trial.spec.recovery,
            "precision": trial.spec.precision,
        }
        parameters = {name: values[name] for name in self._distributions}
        while len(self._ids) < trial.number:
            # it runs too, since numbers are given in order, but nothing was heard of it yet
            self._new(create_trial(state=TrialState.RUNNING))
        if len(self._ids) == trial.number:
            running = create_trial(
                state=TrialState.RUNNING, params=parameters, distributions=self._distributions
            )
            running.datetime_start = datetime.now() - timedelta(seconds=seconds)
            return self._new(running)
        known = self._trial(trial.number)
        if not self._complete(known):
            for name, distribution in self._distributions.items():
                value = distribution.to_internal_repr(parameters[name])
                self._storage.set_trial_param(known._trial_id, name, value, distribution)
        return known._trial_id

    def _new(self, trial: FrozenTrial) -> int:
        self._ids.append(self._storage.create_new_trial(self._id, trial))
        return self._ids[-1]

    def _complete(self, trial: FrozenTrial) -> bool:
        return len(trial.params) == len(self._distributions)

    def write(self, observation: Observation, runs: Mapping[int, str]) -> None:
        """Write an outcome over what was told of the trial before."""
        goal, outcome = self._view.goal, observation.outcome
        trial_id = self.begin(observation.trial, seconds=observation.seconds)
        for name, value in attributes(observation, goal, runs).items():
            self._storage.set_trial_user_attr(trial_id, name, value)
        if isinstance(outcome, Measurement) and goal.constraints:
            violations = list(goal.violations(outcome.metrics))
            self._storage.set_trial_system_attr(trial_id, CONSTRAINTS, violations)
        if isinstance(outcome, Measurement) and observation.rung is not None:
            main = outcome.metrics[goal.main.metric]
            self._storage.set_trial_intermediate_value(trial_id, observation.rung, main)
        # after all that it stands for, and before the state, after which nothing can be written
        self._storage.set_trial_system_attr(trial_id, CHECKSUM, checksum(observation))
        if observation.rung is None:
            self._end(trial_id, outcome)

    def _end(self, trial_id: int, outcome: Outcome) -> None:
        match outcome:
            case Measurement(complete=True):
                values = self._view.goal.values(outcome)
                self._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, values)
            case Measurement():
                self._storage.set_trial_state_values(trial_id, TrialState.PRUNED)
            case Failure():
                self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def prune_paused(self, view: SweepView) -> None:
        """End what paused and will not go on."""
        paused = {o.trial.number for o in view.observations if o.rung is not None}
        for number in sorted(paused):
            trial = self._trial(number)
            if not trial.state.is_finished():
                self._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED)

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._ids[number])

    @property
    def _trials(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._id, deepcopy=False)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """What each parameter may be: the legal widths of a group, and what else there is to choose."""
    found: dict[str, BaseDistribution] = {}
    for axis in space.axes:
        low, high, step = axis.widths[0], axis.widths[-1], axis.group.step
        found[axis.group.name] = (
            IntDistribution(low, high, step=step)
            if axis.widths == tuple(range(low, high + 1, step))
            else CategoricalDistribution(axis.widths)
        )
    return found | {
        name: CategoricalDistribution(options)
        for name, options in space.choices.items()
        if len(options) > 1
    }


def attributes(observation: Observation, goal: Goal, runs: Mapping[int, str]) -> dict[str, Any]:
    """What is known of a trial besides its parameters and values."""
    number, outcome = observation.trial.number, observation.outcome
    found: dict[str, Any] = {"host": observation.host, "seconds": observation.seconds}
    if number in runs:
        found["mlflow_run"] = runs[number]
    match outcome:
        case Measurement(metrics=metrics, stopped_by=str() as broken):
            return found | dict(metrics) | {"stopped_by": broken}
        case Measurement(metrics=metrics):
            objectives = {objective.metric for objective in goal.objectives}
            return found | {name: v for name, v in metrics.items() if name not in objectives}
        case Failure(stage=stage, cause=cause, reason=reason):
            return found | {"stage": str(stage), "cause": str(cause), "reason": reason}


def checksum(observation: Observation) -> str:
    """Tells one outcome of a trial from another."""
    text = json.dumps(observation.to_json(), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
