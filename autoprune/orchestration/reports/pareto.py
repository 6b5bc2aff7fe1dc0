"""Reports of a sweep as plain data and text: what `pareto.json`, the CSV and the note hold."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from autoprune.domain.trial import Failure, Measurement, Observation
from autoprune.orchestration.history import STATES, state_of
from autoprune.orchestration.view import SweepView

T = TypeVar("T")

NOTE_ROWS = 8
BASELINE_FIRST = ("latency_ms", "macs", "params")


def pareto_json(view: SweepView) -> dict[str, Any]:
    """The front and its baseline in plain JSON types, the same for the same view.

    Members stand best first by the goal's main metric, which goes under its own name. A value
    that was not measured is None; the bounds of the main metric are present where known.
    """
    return {
        "sweep_id": view.sweep_id,
        "baseline": _baseline(view),
        "front": [_member(view, observation) for observation in view.front.members],
        "hypervolume": view.hypervolume,
        "counts": dict(view.counts),
        "search_s": view.search_s,
        "utilisation": view.utilisation,
    }


def pareto_csv(view: SweepView) -> str:
    """The front as CSV with one row a member and one column ``kept:<group>`` a group."""
    rows = []
    for member in pareto_json(view)["front"]:
        widths = member.pop("widths")
        rows.append(member | {f"kept:{name}": width for name, width in widths.items()})
    main = view.goal.main.metric
    columns = ["trial", "run_id", main, f"{main}_low", f"{main}_high", *_COSTS]
    columns += ["speedup_settled", "rho", "precision"]
    columns += [f"kept:{group.name}" for group in sorted(view.space.groups, key=lambda g: g.name)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def note_markdown(view: SweepView, promote_command: str) -> str:
    """The note of the sweep's run: the front in a few rows and how to promote from it.

    A front of more than `NOTE_ROWS` members is thinned evenly between its two ends.
    """
    main = view.goal.main.metric
    lines = [
        f"### Sweep `{view.sweep_id}`",
        "",
        f"Baseline: {main} {view.baseline[main]:.4g}"
        + (f", {view.baseline['latency_ms']:.3g} ms" if "latency_ms" in view.baseline else "")
        + f". Trials: {tally(view)}. Hypervolume {view.hypervolume:.4g}.",
        "",
    ]
    members = view.front.members
    if not members:
        return "\n".join([*lines, "The front is empty so far."])
    shown = spread(members, NOTE_ROWS)
    lines += [
        f"| trial | {main} | speedup | 95% interval | latency (ms) |",
        "|--:|--:|--:|:-:|--:|",
    ]
    for row in [_member(view, member) for member in shown]:
        interval = f"{_text(row['speedup_low'])} to {_text(row['speedup_high'])}"
        lines.append(
            f"| {row['trial']} | {row[main]:.4g} | {_text(row['speedup'])}x | {interval} "
            f"| {_text(row['latency_ms'])} |"
        )
    if len(members) > len(shown):
        lines.append(f"\n{len(members) - len(shown)} more members are in `pareto.json`.")
    return "\n".join([*lines, "", "Promote one:", "", "```", promote_command, "```"])


def fastest_worth_having(view: SweepView) -> Observation | None:
    """The front's fastest member whose main metric is within the goal's reference, if any."""
    edge, sign = view.goal.reference[0], view.goal.main.direction.sign
    worth = [
        (sure_speedup(observation), -observation.trial.number, observation)
        for observation in view.front.members
        if "speedup" in metrics_of(observation)
        and sign * (metrics_of(observation)[view.goal.main.metric] - edge) >= 0
    ]
    return max(worth, key=lambda found: found[:2])[2] if worth else None


def sure_speedup(observation: Observation) -> float:
    """What a measured trial is sure to give: the lower end of its speedup's interval."""
    found = metrics_of(observation)
    return found.get("speedup_low", found["speedup"])


def tally(view: SweepView) -> str:
    """How many trials came to what, such as ``20 finished, 3 stopped by a constraint``."""
    words = {"paused": "paused on the ladder", "stopped": "stopped by a constraint"}
    always = ("finished", "stopped", "failed")
    counts = view.counts
    return ", ".join(
        f"{counts[state]} {words.get(state, state)}"
        for state in STATES
        if state in always or counts[state]
    )


def live_metrics(view: SweepView) -> dict[str, float]:
    """What the sweep's run shows while it goes on."""
    found = {
        "hypervolume": view.hypervolume,
        "front_size": float(len(view.front)),
        "failed": float(view.counts["failed"]),
        **view.figures,
    }
    best = fastest_worth_having(view)
    return found | ({} if best is None else {"best_speedup_at_budget": metrics_of(best)["speedup"]})


def metrics_of(observation: Observation) -> dict[str, float]:
    """What was measured, with the bounds of the speedup beside it; empty for a failure."""
    outcome = observation.outcome
    if isinstance(outcome, Failure):
        return {}
    speed = outcome.speedup
    if speed is None:
        return dict(outcome.metrics)
    bounds = {"speedup_low": speed.low, "speedup_high": speed.high}
    measured = {"speedup": speed.ratio, **bounds, "latency_ms": speed.candidate_ms}
    return measured | dict(outcome.metrics)


def rho(view: SweepView, found: Mapping[str, float]) -> float | None:
    """Realised efficiency: the measured speedup over the one that MACs promise.

    Below 1 the network is slower than its multiplications say. None where either is not known.
    """
    macs, speedup = found.get("macs", 0.0), found.get("speedup")
    if speedup is None or macs <= 0 or "macs" not in view.baseline:
        return None
    return speedup * macs / view.baseline["macs"]


def settled(observation: Observation) -> bool:
    """Whether its speed's interval became as narrow as was asked; True where none was measured."""
    outcome = observation.outcome
    return isinstance(outcome, Failure) or outcome.speedup is None or outcome.speedup.settled


def place_of(view: SweepView, observation: Observation) -> str:
    """``front``, ``dominated``, ``infeasible`` (finished), ``paused``, ``stopped`` or ``failed``.

    One that paused on the ladder is on the front like any other.
    """
    if observation.trial.number in view.front:
        return "front"
    state = state_of(observation)
    if state != "finished":
        return state
    assert isinstance(observation.outcome, Measurement)
    return "dominated" if view.goal.feasible(observation.outcome) else "infeasible"


_COSTS = ("speedup", "speedup_low", "speedup_high", "latency_ms", "macs", "params")


def _baseline(view: SweepView) -> dict[str, float]:
    names = [view.goal.main.metric, *BASELINE_FIRST]
    first = {name: view.baseline[name] for name in names if name in view.baseline}
    return first | {name: view.baseline[name] for name in sorted(view.baseline)}


def _member(view: SweepView, observation: Observation) -> dict[str, Any]:
    main, found = view.goal.main.metric, metrics_of(observation)
    bounds = {name: found[name] for name in (f"{main}_low", f"{main}_high") if name in found}
    return {
        "trial": observation.trial.number,
        "run_id": view.run_ids.get(observation.trial.number),
        main: found[main],
        **bounds,
        **{name: _whole(name, found) for name in _COSTS if name != main},
        "speedup_settled": settled(observation),
        "rho": rho(view, found),
        "precision": observation.trial.spec.precision,
        "widths": observation.trial.spec.widths,
    }


def _whole(name: str, found: Mapping[str, float]) -> float | int | None:
    value = found.get(name)
    counts = name in ("macs", "params") and value is not None and float(value).is_integer()
    return int(value) if counts and value is not None else value


def spread(members: Sequence[T], most: int) -> list[T]:
    """At most `most` members, evenly apart, with the first and the last among them."""
    if len(members) <= most:
        return list(members)
    return [members[round(i * (len(members) - 1) / (most - 1))] for i in range(most)]


def _text(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
