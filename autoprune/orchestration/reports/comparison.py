"""A comparison of two networks as a table with what a reader must know of it."""

import math
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autoprune.orchestration.comparison.records import Both, Comparison, Facts, Timed
from autoprune.orchestration.reports.console import interval, short, times

COLUMNS = (
    *("runtime", "batch", "baseline ms (p95)", "candidate ms (p95)", "speedup", "95% interval"),
    *("samples/s", "off eager"),
)


class ComparisonDrawing:
    """On a terminal the rows appear as they come; at the end the whole is printed once.

    What has no measured row is not printed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        live = Live(console=console, auto_refresh=False, transient=True)
        self._live = live if console.is_terminal else None
        self._last: Comparison | None = None

    def update(self, comparison: Comparison) -> None:
        """Hear of the comparison so far."""
        self._last = comparison
        if self._live is not None:
            self._live.start()
            self._live.update(comparison_view(comparison), refresh=True)

    def stop(self) -> None:
        """No more rows come."""
        if self._live is not None:
            self._live.stop()
        if self._last is not None and self._last.timed:
            self._console.print(comparison_view(self._last))


def comparison_view(comparison: Comparison) -> Group:
    """The two networks, the machine, the rows, and what was not measured and why."""
    lines = [Text(line, overflow="fold") for line in _head(comparison)]
    tail = [Text(line, overflow="fold") for line in _tail(comparison)]
    return Group(*lines, comparison_table(comparison), *tail)


def comparison_table(comparison: Comparison) -> Table:
    """A row for every runtime and batch size; ``~`` marks a speedup that did not settle."""
    table = Table()
    with_memory = any(row.peak_mb is not None for row in comparison.timed)
    for name in (*COLUMNS, *(["peak MB"] if with_memory else [])):
        table.add_column(name, justify="left" if name == "runtime" else "right")
    for row in comparison.rows:
        first = (row.runtime, str(row.batch_size))
        if isinstance(row, Timed):
            table.add_row(*first, *_cells(row, with_memory=with_memory))
        else:
            table.add_row(*first, *["-"] * (len(table.columns) - 2), style="dim")
    return table


def _cells(row: Timed, *, with_memory: bool) -> Iterator[str]:
    speed = row.speedup
    yield _time(speed.baseline_ms, speed.baseline_p95_ms)
    yield _time(speed.candidate_ms, speed.candidate_p95_ms)
    yield times(speed.ratio, settled=speed.settled)
    yield interval(speed.low, speed.high)
    yield _both(row.throughput, _rate)
    off = max(row.off_eager.baseline, row.off_eager.candidate)
    yield f"{off:.0e}" if off else "0"
    if with_memory:
        yield "" if row.peak_mb is None else _both(row.peak_mb, lambda value: f"{value:.1f}")


def _rate(per_s: float) -> str:
    return short(per_s) if per_s >= 1000 else f"{per_s:.3g}"


def _time(middle_ms: float, p95_ms: float | None) -> str:
    return f"{middle_ms:.3f}" if p95_ms is None else f"{middle_ms:.3f} ({p95_ms:.3f})"


def _both(pair: Both, shown: Callable[[float], str]) -> str:
    return f"{shown(pair.baseline)} -> {shown(pair.candidate)}"


def _head(comparison: Comparison) -> Iterator[str]:
    yield f"baseline   {_network(comparison.baseline)}"
    yield f"candidate  {_network(comparison.candidate)}"
    yield f"outputs    {_difference(comparison.difference)} on one example input"
    for device in comparison.devices:
        yield f"machine    {device}"
    if comparison.timed:
        yield f"noise      {_noise(comparison)}"


def _network(facts: Facts) -> str:
    return (
        f"{facts.source}: {short(facts.macs)} MACs, {short(facts.params)} parameters, "
        f"{facts.size_mb:.3g} MB"
    )


def _difference(found: float) -> str:
    if not math.isfinite(found):
        return "cannot be compared, for one network gives NaN, infinity or nothing but zeros"
    return f"differ by up to {found:.2g} times the baseline's largest" if found else "are equal"


def _noise(comparison: Comparison) -> str:
    found = [row.speedup for row in comparison.timed]
    low, high = (f"{end(speed.noise for speed in found):.1%}" for end in (min, max))
    clock = next((s.frequency_mhz for s in found if s.frequency_mhz is not None), None)
    return (
        f"others kept up to {max(s.others for s in found):.2f} cores busy, "
        f"{max(s.steal for s in found):.1%} of the time was stolen"
        + ("" if clock is None else f", the clock ran at {clock:.0f} MHz")
        + f"; pairs spread by {' to '.join(dict.fromkeys((low, high)))}"
    )


def _tail(comparison: Comparison) -> Iterator[str]:
    loose = [f"{r.runtime} at {r.batch_size}" for r in comparison.timed if not r.speedup.settled]
    if loose:
        yield (
            f"~ {', '.join(loose)} did not settle: the interval stayed wide in the time allowed, "
            "or others kept the node busy; measure again when it is quiet, or raise meter.max_s"
        )
    for row in comparison.untimed:
        yield f"- {row}"
    for note in comparison.notes:
        yield f"note       {note}"
