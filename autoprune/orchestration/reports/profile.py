"""A profile as text: a line a point, a table of groups, and what the latency model is worth."""

from collections.abc import Iterator

from rich.table import Table

from autoprune.domain.latency import PredictionError
from autoprune.domain.objective import Objective
from autoprune.domain.profile import Profile, ProfilePoint
from autoprune.domain.space import Group
from autoprune.orchestration.profiling import Profiled
from autoprune.orchestration.reports.console import interval, times

SHOWN = (0.5, 0.25)
"""Kept shares that the table shows, each by the profiled width that is nearest."""


def point_line(point: ProfilePoint, main: str, done: int, total: int) -> str:
    """What one point came to, as it is measured."""
    digits = len(str(total))
    cut = "random spec" if len(point.widths) > 1 else _cut(point)
    speed = point.speedup
    mark = " " if speed.settled else "~"
    return (
        f"[{done:>{digits}}/{total}] {cut:<32} {main} {point.metrics[main]:.4f}  speedup "
        f"{mark}{speed.ratio:5.2f}x [{speed.low:.2f}, {speed.high:.2f}]"
    )


def profile_table(profile: Profile, main: Objective) -> Table:
    """Every group at about a half and a quarter of its units: speed, and the metric lost."""
    table = Table(title="Each group alone, without fine-tuning", title_justify="left")
    table.add_column("group", overflow="fold")
    table.add_column("units", justify="right")
    for share in SHOWN:
        table.add_column(f"kept (~{share:g})", justify="right")
        table.add_column("speedup", justify="right")
        table.add_column("95% interval", justify="right")
        table.add_column(main.metric, justify="right")
    for group in profile.groups:
        if profile.of(group.name):
            table.add_row(group.name, str(group.size), *_cells(profile, group, main.metric))
    return table


def model_lines(profiled: Profiled) -> list[str]:
    """How far the latency model can be trusted, on measurements that it had not seen."""
    alone, corrected = profiled.error, profiled.corrected
    if alone is None or corrected is None:
        return ["latency model  not judged: it takes two checks at least (checks=12)"]
    sweeps = len(profiled.measured)
    learnt = f"{len(profiled.profile.checks)} random specs"
    learnt += f" and {sweeps} trials of sweeps" if sweeps else ""
    return [
        f"latency model  from single groups alone: {_told(alone)}",
        f"               corrected by {learnt}: {_told(corrected)}, each one unseen in turn",
    ]


def _told(error: PredictionError) -> str:
    rank = "" if error.spearman is None else f", rank correlation {error.spearman:.2f}"
    return f"median error {error.median:.1%}{rank} over {error.count}"


def _cut(point: ProfilePoint) -> str:
    ((name, width),) = point.widths.items()
    return f"{name} to {width}"


def _cells(profile: Profile, group: Group, main: str) -> Iterator[str]:
    for share in SHOWN:
        wanted = share * group.size
        point = min(profile.of(group.name), key=lambda p: abs(p.widths[group.name] - wanted))
        speed = point.speedup
        yield str(point.widths[group.name])
        yield times(speed.ratio, settled=speed.settled)
        yield interval(speed.low, speed.high)
        yield f"{point.metrics[main] - profile.baseline[main]:+.4f}"
