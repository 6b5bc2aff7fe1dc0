"""A network's groups, and what a front cut, as tables, lines and plain JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from autoprune.domain.space import KINDS, Group
from autoprune.orchestration.reports.console import short, times
from autoprune.orchestration.reports.pareto import metrics_of, settled, spread
from autoprune.orchestration.understanding.front import ExplainedFront, ExplainedMember, Survivors
from autoprune.orchestration.understanding.network import ExplainedGroup, ExplainedNetwork
from autoprune.pruning.anatomy import Role

NOTHING = "-"
LISTED = 6
"""Layers of one role that a line names."""

COLUMNS = 8
"""Members of a front that the table on a console shows."""

VERBS = {
    Role.MAKES: "made by",
    Role.FOLLOWS: "followed by",
    Role.READS: "read by",
    Role.UNIT: "units",
}


def header(found: ExplainedNetwork) -> list[str]:
    """The columns of `cells`."""
    return ["group", "kind", "units", "may keep", "params", "time", f"{found.main.metric}, alone"]


def cells(found: ExplainedNetwork, explained: ExplainedGroup) -> list[str]:
    """A row of the table as texts."""
    group, axis, alone = explained.group, explained.axis, explained.alone
    kept = "not in the space" if axis is None else f"{axis.widths[0]} to {axis.widths[-1]}"
    cost = NOTHING
    if alone is not None and found.whole is not None:
        fall = alone.metrics[found.main.metric] - found.whole
        cost = f"{fall:+.4f} at {alone.widths[group.name]}"
    return [
        group.name,
        group.kind,
        str(group.size),
        kept,
        f"{explained.params / found.costs['params']:.1%}",
        NOTHING if explained.time_share is None else f"{explained.time_share:.1%}",
        cost,
    ]


def network_table(found: ExplainedNetwork) -> Table:
    """One row a group, in forward order."""
    table = Table(title=f"Groups of {found.name}", title_justify="left")
    for at, name in enumerate(header(found)):
        table.add_column(name, justify="left" if at < 2 else "right", overflow="fold")
    for explained in found.groups:
        table.add_row(*cells(found, explained))
    return table


def network_lines(found: ExplainedNetwork) -> Iterator[str]:
    """What hangs together in every group, what cannot be pruned, and what the columns mean."""
    width = max(len(explained.group.name) for explained in found.groups)
    for explained in found.groups:
        yield f"{explained.group.name:<{width}}  {together(explained)}"
    yield from (f"not pruned  {refused.name}: {refused.reason}" for refused in found.refused)
    yield (
        f"network     {short(found.costs['macs'])} MACs, "
        f"{short(found.costs['params'])} parameters, {found.costs['size_mb']:.3g} MB"
    )
    yield from (f"{name:<11} {text}" for name, text in notes(found))
    yield from (f"warning     {warning}" for warning in found.warnings)


def together(explained: ExplainedGroup, *, most: int | None = LISTED) -> str:
    """What a group consists of, in one line; of each role `most` layers, None for all."""
    told = []
    for role, verb in VERBS.items():
        names = explained.layers(role)
        left = 0 if most is None else max(0, len(names) - most)
        more = f" and {left} more" if left else ""
        told += [f"{verb} {', '.join(names[:most])}{more}"] if names else []
    named = [name for unit, name in enumerate(explained.units) if name != str(unit)]
    if named and not explained.layers(Role.UNIT):
        told.append(f"units {', '.join(named)}")
    return "; ".join(told)


def notes(found: ExplainedNetwork) -> Iterator[tuple[str, str]]:
    """What the columns mean, by their names."""
    for kind in dict.fromkeys(explained.group.kind for explained in found.groups):
        yield kind, KINDS[kind]
    yield "params", "what goes with all units of the group; a weight between two belongs to both"
    if found.whole is None:
        yield "time", "not known without a profile: set profile=true, or run autoprune profile"
        return
    yield "time", "what would go with all units, by the latency model of the profile"
    yield "alone", f"{found.main.metric} on val where the group alone keeps so many, not fine-tuned"


def network_json(found: ExplainedNetwork) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        "name": found.name,
        "costs": dict(found.costs),
        "metric": found.main.metric,
        "baseline": found.whole,
        "layers": list(found.layers),
        "groups": [_group_json(explained) for explained in found.groups],
        "refused": [asdict(refused) for refused in found.refused],
    }


def _group_json(explained: ExplainedGroup) -> dict[str, Any]:
    alone = explained.alone
    return {
        "name": explained.group.name,
        "kind": explained.group.kind,
        "size": explained.group.size,
        "searched": explained.axis is not None,
        "params": explained.params,
        "time_share": explained.time_share,
        "alone": None
        if alone is None
        else {"kept": alone.widths[explained.group.name], "metrics": dict(alone.metrics)},
        "units": list(explained.units),
        **{str(role): explained.layers(role) for role in Role},
    }


def member_name(member: ExplainedMember) -> str:
    """A member by its trial, and how fast it is."""
    speed = metrics_of(member.observation).get("speedup")
    told = "" if speed is None else f" {times(speed, settled=settled(member.observation))}"
    return f"#{member.number}{told}"


def front_table(found: ExplainedFront) -> Table:
    """One row a group, one column a member: the units that are left, and their share."""
    shown = spread(found.members, COLUMNS)
    table = Table(title=f"What the front of {found.view.sweep_id} keeps", title_justify="left")
    for name in ("group", "kind"):
        table.add_column(name, overflow="fold")
    for name in ("units", *map(member_name, shown)):
        table.add_column(name, justify="right")
    for group in found.view.space.groups:
        shares = [_share(member, group) for member in shown]
        table.add_row(group.name, group.kind, str(group.size), *shares)
    return table


def _share(member: ExplainedMember, group: Group) -> str:
    if group.name in member.went_with:
        return "gone"
    width = member.observation.trial.spec.widths[group.name]
    return f"{width} ({width / group.size:.0%})"


def front_lines(found: ExplainedFront) -> Iterator[str]:
    """Which heads, blocks, branches and connections are gone, which are left, and what went with
    them.
    """
    for member in found.members:
        name = f"trial {member.number}"
        yield from (f"{name:<10} {group}: {text}" for group, text in fates(member))
    more = len(found.members) - COLUMNS
    if more > 0:
        yield f"{more} more members are in explain.html and explain.json"
    yield from (f"warning    {line}" for line in found.unnamed)


def fates(member: ExplainedMember) -> Iterator[tuple[str, str]]:
    """What became of the groups whose units have names or that went with others, in words."""
    for group, survivors in member.survivors.items():
        if group not in member.went_with:
            yield group, _survived(survivors)
    for group, wholes in member.went_with.items():
        yield group, f"gone with {_names(wholes)}"


def _survived(survivors: Survivors) -> str:
    if not survivors.gone:
        return f"all {len(survivors.left)} are left"
    return f"{_names(survivors.gone)} gone, {_names(survivors.left)} left"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)


def front_json(found: ExplainedFront) -> dict[str, Any]:
    """Plain JSON types."""
    view = found.view
    return {
        "sweep_id": view.sweep_id,
        "groups": [{"name": g.name, "kind": g.kind, "size": g.size} for g in view.space.groups],
        "front": [
            {
                "trial": member.number,
                "metrics": metrics_of(member.observation),
                "kept": member.observation.trial.spec.widths,
                "survivors": {name: asdict(one) for name, one in member.survivors.items()},
                "went_with": dict(member.went_with),
            }
            for member in found.members
        ],
        "unnamed": list(found.unnamed),
    }
