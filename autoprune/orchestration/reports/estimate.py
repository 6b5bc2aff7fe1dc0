"""Estimates as a table, as lines, and as plain JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from autoprune.domain.expectation import TELLING, Expectation
from autoprune.domain.latency import Prediction
from autoprune.orchestration.reports.console import short, times
from autoprune.orchestration.understanding.estimate import Estimate, Estimates

UNKNOWN = "not known"


def estimate_table(found: Estimates) -> Table:
    """The unpruned network, then one row a ratio."""
    main, base = found.main.metric, found.baseline
    table = Table(title=f"What pruning {found.name} would give", title_justify="left")
    columns = ("pruned", "params", "MACs", "MB", "speedup", "95% interval")
    for name in (*columns, f"{main} before recovery", "95% interval", f"{main} after recovery"):
        table.add_column(name, justify="right")
    first = ["nothing", short(base["params"]), short(base["macs"]), f"{base['size_mb']:.3g}"]
    ends = _ends(base.get(f"{main}_low"), base.get(f"{main}_high"), "{:.4f}")
    table.add_row(*first, "1.00x", "", f"{base[main]:.4f}", ends, "", style="dim")
    for row in found.rows:
        table.add_row(
            f"{row.ratio:.3g}",
            short(row.costs["params"]),
            short(row.costs["macs"]),
            f"{row.costs['size_mb']:.3g}",
            times(row.speedup.ratio, settled=True),
            _ends(row.speedup.low, row.speedup.high, "{:.2f}"),
            f"{row.before[main]:.4f}",
            _ends(row.before.get(f"{main}_low"), row.before.get(f"{main}_high"), "{:.4f}"),
            _after(row.after),
        )
    return table


def _ends(low: float | None, high: float | None, style: str) -> str:
    if low is None or high is None:
        return ""
    return f"{style.format(low)} to {style.format(high)}"


def _after(after: Expectation | None) -> str:
    if after is None:
        return UNKNOWN
    if not after.telling:
        return f"{after.value:.4f}, how far off is {UNKNOWN}"
    if after.low is None:
        return f"{after.value:.4f}, at most {after.high:.4f} ({after.level:.0%})"
    if after.high is None:
        return f"{after.value:.4f}, at least {after.low:.4f} ({after.level:.0%})"
    return f"{after.value:.4f}, {after.low:.4f} to {after.high:.4f} ({after.level:.0%})"


def estimate_lines(found: Estimates) -> Iterator[str]:
    """What the figures rest on, and the warnings."""
    yield "exact      params, MACs and MB: the network was cut"
    yield f"predicted  speedup on {found.speed.runtime}, {_speed_basis(found.rows[0].speedup)}"
    yield (
        f"measured   {found.main.metric} before recovery: on val, after the cut was mended, not "
        "trained"
    )
    yield f"recovery   {_recovery_basis(found)}"
    doubts = [*found.doubts, *(doubt for row in found.rows for doubt in row.doubts)]
    yield from (f"warning    {doubt}" for doubt in doubts)
    yield from (f"warning    not profiled: {failure}" for failure in found.profiled.failures)


def _speed_basis(speedup: Prediction) -> str:
    if speedup.low is None:
        return "without an interval: too few of the checks could be measured"
    return (
        "from the profile; the interval is of one more measurement, from how far predictions of "
        f"{speedup.unseen} other networks were off, each unseen in turn"
    )


def _recovery_basis(found: Estimates) -> str:
    main, known = found.main.metric, [row.after for row in found.rows if row.after is not None]
    if not known:
        return (
            f"nothing was fine-tuned yet, so what recovery gives is not known: without any "
            f"training a network has its {main} before recovery, and that is the bound; trials of "
            "a sweep of this network will tell"
        )
    vague = (
        f"; where so few give it a level below {TELLING:.0%}, how far off the value may be is "
        f"{UNKNOWN}: more trials of a sweep will tell"
    )
    return (
        f"expected from {known[0].count} trials of sweeps of this network; the interval (with its "
        "level) is bounded by those that were hit harder, and by those hit less"
        f"{'' if all(after.telling for after in known) else vague}"
    )


def estimate_json(found: Estimates) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        "name": found.name,
        "metric": found.main.metric,
        "baseline": dict(found.baseline),
        "runtime": found.speed.runtime,
        "device": found.speed.device,
        "level": 0.95,
        "rows": [_row_json(row) for row in found.rows],
        "doubts": [asdict(doubt) for doubt in found.doubts],
        "failures": list(map(str, found.profiled.failures)),
    }


def _row_json(row: Estimate) -> dict[str, Any]:
    return {
        "ratio": row.ratio,
        "kept": row.spec.widths,
        **dict(row.costs),
        "speedup": asdict(row.speedup),
        "before_recovery": dict(row.before),
        "after_recovery": None if row.after is None else asdict(row.after),
        "doubts": [asdict(doubt) for doubt in row.doubts],
    }
