"""What the final fronts of a contest are worth, timed again beside each other."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoprune.domain.objective import Goal
from autoprune.domain.pareto import ParetoFront
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Measurement, Observation
from autoprune.measurement.meter import speed_metrics
from autoprune.orchestration.artifacts import MODEL_FOLDER, load
from autoprune.orchestration.contest.records import Contest, Entry
from autoprune.orchestration.folders import JOURNAL_FILE, trial_folder
from autoprune.orchestration.preparation import Prepared
from autoprune.orchestration.record import last_told, read_journal

TimedReport = Callable[[int, int], None]
"""Hears how many networks of how many have been timed again."""


def timed_again(
    prepared: Prepared, contest: Contest, folder: Path, *, report: TimedReport | None = None
) -> Contest:
    """The contest with what its final fronts are worth by speeds measured now, one after another.

    The searches told their speeds at different times, in which the machine was not the same, and
    of many measured members a front keeps the lucky ones: both would count as the searcher's
    merit. Now every network is measured in one go, in random order, and networks that are cut
    alike only once. Accuracies stay as told. Without an objective that depends on speed it is the
    same contest. Raises AutopruneError where a network is gone or cannot be measured.
    """
    goal = contest.goal
    measured = {*prepared.request.meter.metrics}
    if not measured & {objective.metric for objective in goal.objectives}:
        return contest
    fronts = [_front(goal, folder / entry.folder) for entry in contest.entries]
    places = {
        member.trial.spec: trial_folder(folder / entry.folder, member.trial.number)
        for entry, front in zip(contest.entries, fronts, strict=True)
        for member in front.members
    }
    speeds: dict[PruningSpec, Mapping[str, float]] = {}
    for spec in _shuffled(places, seed=prepared.request.seed):
        speeds[spec] = _speed(prepared, places[spec])
        if report is not None:
            report(len(speeds), len(places))
    entries = (
        _again(goal, entry, front, speeds)
        for entry, front in zip(contest.entries, fronts, strict=True)
    )
    return replace(contest, entries=tuple(entries), untimed="")


def _front(goal: Goal, folder: Path) -> ParetoFront:
    return ParetoFront(goal, last_told(read_journal(folder / JOURNAL_FILE).events).values())


def _shuffled(specs: Iterable[PruningSpec], *, seed: int) -> list[PruningSpec]:
    ordered = sorted(specs, key=lambda spec: spec.digest)
    return [ordered[at] for at in np.random.default_rng(seed).permutation(len(ordered))]


def _speed(prepared: Prepared, place: Path) -> Mapping[str, float]:
    request, baseline = prepared.request, prepared.baseline.model
    with request.gate.step():
        network = load(place / MODEL_FOLDER, model=baseline)
    speedup = request.meter.measure(network, baseline, request.task.example())
    return speed_metrics(speedup, prepared.context.baseline_ms)


def _again(
    goal: Goal, entry: Entry, front: ParetoFront, speeds: Mapping[PruningSpec, Mapping[str, float]]
) -> Entry:
    now = ParetoFront(goal, (_with(member, speeds[member.trial.spec]) for member in front.members))
    points = tuple(
        goal.values(member.outcome)
        for member in now.members
        if isinstance(member.outcome, Measurement)
    )
    return replace(entry, course=replace(entry.course, again=now.hypervolume()), front_again=points)


def _with(member: Observation, speed: Mapping[str, float]) -> Observation:
    outcome = member.outcome
    assert isinstance(outcome, Measurement), "only measurements are on a front"
    return replace(member, outcome=replace(outcome, metrics={**outcome.metrics, **speed}))
