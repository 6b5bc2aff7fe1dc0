"""What the user of a sweep should know of its front: each a sentence or two."""

from collections.abc import Iterator
from itertools import takewhile

from autoprune.domain.pareto import ParetoFront
from autoprune.domain.trial import Measurement
from autoprune.orchestration.reports.pareto import settled
from autoprune.orchestration.view import SweepView

DRIFT = 1.15
"""How far the baseline's time may move in a sweep before that is told: under the load of others on
a shared processor networks slow down by unlike factors, which no pairing mends."""


def notes(view: SweepView) -> Iterator[str]:
    """What speaks for the front, and against it; nothing of what is as it should be."""
    for note in (_lost, _unmet, _unsettled, _of_two_kinds, _drifted, _against_uniform):
        if line := note(view):
            yield line


def _lost(view: SweepView) -> str:
    """How often trials were run again because their worker was gone."""
    if not view.lost:
        return ""
    causes = ", ".join(f"{count} {cause}" for cause, count in sorted(view.lost.items()))
    return f"Trials were run again {sum(view.lost.values())} times ({causes})."


def _unmet(view: SweepView) -> str:
    """Which constraints kept every trial off the front, and how near the nearest came."""
    measured = [o.outcome for o in view.observations if isinstance(o.outcome, Measurement)]
    if view.front.members or not measured:
        return ""
    told = []
    for constraint in view.goal.constraints:
        values = [m.metrics[constraint.metric] for m in measured if constraint.metric in m.metrics]
        if values and all(constraint.violation(value) > 0 for value in values):
            nearest = min(values, key=constraint.violation)
            told.append(f"no trial met {constraint} (the nearest had {nearest:.4g})")
    return f"The front is empty: {'; '.join(told) or 'no trial met every constraint'}."


def _unsettled(view: SweepView) -> str:
    members = [m.trial.number for m in view.front.members if not settled(m)]
    if not members:
        return ""
    return (
        f"~ the speed of {', '.join(map(str, members))} did not settle: its interval stayed wide, "
        "or others, whom the quiet gate does not hold, kept the node busy; judge by the lower end, "
        "or promote, which measures again"
    )


def _of_two_kinds(view: SweepView) -> str:
    """Whether the front's speeds come from machines that do not compare."""
    devices = {
        m.outcome.speedup.device
        for m in view.front.members
        if isinstance(m.outcome, Measurement) and m.outcome.speedup is not None
    }
    if len(devices) < 2:
        return ""
    return (
        f"The front was measured on {len(devices)} kinds of machine "
        f"({' and '.join(sorted(devices))}): a speedup on one says little of the other; sweep on "
        "nodes of one kind"
    )


def _drifted(view: SweepView) -> str:
    """Whether a machine's own speed moved so far that its trials compare less than they seem to."""
    by_machine: dict[tuple[str, str], list[float]] = {}
    for o in view.observations:
        if isinstance(o.outcome, Measurement) and o.outcome.speedup is not None:
            # a bench is another machine than the trial's own
            machine = (o.host, o.outcome.speedup.device)
            by_machine.setdefault(machine, []).append(o.outcome.speedup.baseline_ms)
    ranges = [(min(took_ms), max(took_ms)) for took_ms in by_machine.values()]
    least_ms, most_ms = max(ranges, key=lambda ends: ends[1] / ends[0], default=(1.0, 1.0))
    if most_ms < DRIFT * least_ms:
        return ""
    return (
        f"The machine's own speed moved by {100 * (most_ms / least_ms - 1):.0f}% during the sweep "
        f"(beside the trials the baseline took {least_ms:.3g} to {most_ms:.3g} ms): a speedup told "
        "at one moment may be off at another by more than its interval; promote measures again, "
        "and so does `autoprune measure`"
    )


def _against_uniform(view: SweepView) -> str:
    by_number = sorted(view.observations, key=lambda o: o.trial.number)
    uniform = list(takewhile(lambda o: view.space.is_uniform(o.trial.spec), by_number))
    if not uniform or len(uniform) == len(by_number) or not view.front.members:
        return ""
    baseline = ParetoFront(view.goal, uniform).hypervolume()
    if view.hypervolume <= baseline * 1.001:
        return (
            f"The search did not beat the {len(uniform)} uniform points it started from "
            f"(hypervolume {view.hypervolume:.4g}): give it more trials, or take one of them."
        )
    gain = f"{100 * (view.hypervolume / baseline - 1):.0f}% more" if baseline > 0 else "from none"
    return (
        f"Over the {len(uniform)} uniform points it started from, the search gained hypervolume "
        f"{baseline:.4g} -> {view.hypervolume:.4g} ({gain})."
    )
