"""`autoprune plan`."""

from rich.table import Table

from autoprune.cli.call import DONE, Call
from autoprune.orchestration.forecast import Forecast, forecast
from autoprune.orchestration.planning import Plan, make_plan
from autoprune.orchestration.reports.console import count, short
from autoprune.orchestration.request import SweepRequest
from autoprune.settings.build import build_request


def plan(call: Call) -> int:
    """Show the groups, the space, the costs and an estimate of the time; start nothing."""
    request = build_request(call.config, code_paths=call.code_paths)
    found = make_plan(request)
    times = _times(forecast(request, found))
    table = Table(title=f"Groups of {request.name}", title_justify="left")
    for name in ("group", "kind", "units", "may keep", "step", "layers that change with it"):
        table.add_column(name, overflow="fold")
    for axis in found.space.axes:
        group = axis.group
        table.add_row(
            group.name,
            group.kind,
            str(group.size),
            f"{axis.widths[0]} to {axis.widths[-1]}",
            str(group.step),
            ", ".join(layer for layer in group.layers if layer != group.name),
        )
    call.console.print(table)
    call.say(*(f"not pruned  {r.name}: {r.reason}" for r in found.dependencies.refused))
    call.say(*_costs(request, found), *times)
    return DONE


def _costs(request: SweepRequest, found: Plan) -> list[str]:
    budget = request.budget
    epochs = max(recovery.epochs for recovery in request.recoveries.values())
    trials = "any number of" if budget.trials is None else str(budget.trials)
    return [
        f"network     {short(found.costs['macs'])} MACs, "
        f"{short(found.costs['params'])} parameters, {found.costs['size_mb']:.3g} MB",
        f"space       {len(found.space.axes)} groups, {count(found.space.size)} specs",
        f"budget      {trials} trials, {request.executor.slots} at a time, up to {epochs} epochs "
        f"each{_climb(request)}",
        *(f"recovery    {name}: {recovery}" for name, recovery in request.recoveries.items()),
        *([f"precisions  {', '.join(request.precisions)}"] if len(request.precisions) > 1 else []),
        *(f"warning     {warning}" for warning in found.warnings),
    ]


def _climb(request: SweepRequest) -> str:
    if request.ladder is None:
        return ""
    rungs = ", ".join(map(str, request.ladder.epochs))
    return f", one in {request.ladder.reduction:g} goes on after {rungs}"


def _times(found: Forecast | None) -> list[str]:
    if found is None:
        return ["time        unknown: the task trains by a loop of its own"]
    sweep = "no limit" if found.sweep_s is None else f"about {clock(found.sweep_s)}"
    before = [
        f"{clock(seconds)} for the {what} (once)"
        for what, seconds in (("baseline", found.baseline_s), ("profile", found.profile_s))
        if seconds
    ]
    return [
        f"time        {sweep} for the trials ({clock(found.trial_s)} each)"
        + (f", after {' and '.join(before)}" if before else ""),
        "            from a few steps of the unpruned network: pruned ones are faster, slots that "
        "share a machine slower",
    ]


def clock(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
