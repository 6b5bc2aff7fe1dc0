"""Choosing the member of a front to promote."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Metric
from autoprune.domain.trial import Failure, Measurement, Observation
from autoprune.orchestration.reports.pareto import sure_speedup
from autoprune.orchestration.view import SweepView


@dataclass(frozen=True, slots=True)
class Selection:
    """Which member of the front: one rule, or none for the knee.

    `max_drop` takes the fastest member whose main metric is at most that much worse than the
    baseline's; `min_speedup` the best by the main metric that is at least that fast; both
    together the fastest that meets both; `trial` a trial by its number, on the front or not.
    A member is as fast as the lower end of its interval: what it is sure to give.
    """

    max_drop: float | None = None
    min_speedup: float | None = None
    trial: int | None = None

    def __post_init__(self) -> None:
        if self.trial is not None and (self.max_drop is not None or self.min_speedup is not None):
            raise AutopruneError(
                "select.trial names one trial; leave select.max_accuracy_drop and "
                "select.min_speedup out"
            )
        for name, value in (
            ("max_accuracy_drop", self.max_drop),
            ("min_speedup", self.min_speedup),
        ):
            if value is not None and not value >= 0:
                raise AutopruneError(f"select.{name} is {value}; choose 0 or more")


def choose(view: SweepView, selection: Selection) -> Observation:
    """The member that the selection names.

    Raises AutopruneError where there is none, saying what the front offers.
    """
    if selection.trial is not None:
        return _numbered(view, selection.trial)
    members = view.front.members
    if not members:
        raise AutopruneError(
            f"the front of {view.sweep_id} is empty; every trial failed or broke a constraint, as "
            f"`autoprune status sweep={view.sweep_id}` shows"
        )
    fits = [m for m in members if _fits(view, m, selection)]
    if not fits:
        raise AutopruneError(
            f"no member of the front of {view.sweep_id} fits; it offers {_offer(view)}; "
            "allow a larger drop or ask for less speedup"
        )
    if selection.max_drop is not None:
        return max(fits, key=lambda m: (sure_speedup(m), -m.trial.number))
    if selection.min_speedup is not None:
        return fits[0]
    return knee(view)


def knee(view: SweepView) -> Observation:
    """The member farthest from the line between the front's two ends, in units of its ranges.

    With more than two objectives, or two members, it is the one nearest to the best value of
    each objective. Method: Das 1999, doi:10.1007/BF01195985. Of equally good ones the best by
    the main metric is taken.
    """
    members = view.front.members
    points = np.array([view.goal.values(_measured(m)) for m in members])
    points = np.where(view.goal.maximise, points, -points)
    span = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
    if scaled.shape[1] == 2 and len(members) > 2:
        # the ends are (1, 0) and (0, 1): distance from their line grows with the sum
        score = scaled.sum(axis=1)
    else:
        score = -np.linalg.norm(1.0 - scaled, axis=1)
    return members[int(score.argmax())]


def drop(metric: Metric, baseline: Mapping[str, float], found: Mapping[str, float]) -> float:
    """How much worse `found` is than `baseline` by a metric, in its own unit."""
    return metric.direction.sign * (baseline[metric.name] - found[metric.name])


def _fits(view: SweepView, member: Observation, selection: Selection) -> bool:
    main = view.goal.main
    metric = Metric(main.metric, main.direction)
    lost = drop(metric, view.baseline, _measured(member).metrics)
    return (selection.max_drop is None or lost <= selection.max_drop + 1e-12) and (
        selection.min_speedup is None or sure_speedup(member) >= selection.min_speedup
    )


def _numbered(view: SweepView, number: int) -> Observation:
    offer = f"choose one that finished; the front's are {sorted(_numbers(view))}"
    for observation in view.observations:
        if observation.trial.number != number:
            continue
        match observation.outcome:
            case Failure() as failure:
                raise AutopruneError(f"trial {number} failed ({failure.reason}); {offer}")
            case Measurement(stopped_by=str() as broken):
                raise AutopruneError(f"trial {number} was stopped: it breaks {broken}; {offer}")
            case Measurement():
                return observation
    raise AutopruneError(
        f"{view.sweep_id} has no trial {number}; the front's are {sorted(_numbers(view))}"
    )


def _numbers(view: SweepView) -> list[int]:
    return [member.trial.number for member in view.front.members]


def _offer(view: SweepView) -> str:
    main = view.goal.main.metric
    return ", ".join(
        f"{_metric(m, main):.4f} at {_metric(m, 'speedup'):.2f}x" for m in view.front.members
    )


def _measured(observation: Observation) -> Measurement:
    assert isinstance(observation.outcome, Measurement)
    return observation.outcome


def _metric(observation: Observation, name: str) -> float:
    return _measured(observation).metrics[name]
