"""The sparsity study as a table, as lines, and as plain JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from autoprune.domain.trial import Speedup
from autoprune.measurement.cost import MEGABYTE
from autoprune.measurement.device import threads_text
from autoprune.orchestration.reports.console import short, times
from autoprune.orchestration.studies.records import Kind, Row, SparsityStudy, Speed, Unmeasured

NOTHING = "-"


def sparsity_json(study: SparsityStudy) -> dict[str, Any]:
    """The study in plain JSON types: bytes, counts, and every speed with its interval and rho."""
    return {
        "name": study.name,
        "weights": study.weights,
        "runtimes": list(study.runtimes),
        "rows": [_row_json(study, row) for row in study.rows],
        "absent": [asdict(absent) for absent in study.absent],
        "left_out": list(study.left_out),
    }


def _row_json(study: SparsityStudy, row: Row) -> dict[str, Any]:
    speeds = {}
    for runtime, speed in row.speeds.items():
        rho = study.rho(row, runtime)
        speeds[runtime] = asdict(speed) | ({"rho": rho} if isinstance(speed, Speedup) else {})
    return {
        "kind": str(row.kind),
        "asked": row.asked,
        "kept": study.share(row),
        "params": row.params,
        "macs": row.macs,
        "bytes": row.size.bytes,
        "zipped_bytes": row.size.zipped_bytes,
        "kernels": None if row.kernels is None else asdict(row.kernels),
        "speeds": speeds,
    }


def header(study: SparsityStudy) -> list[str]:
    """The columns of `cells`."""
    first = ["kept", "kind", "params", "MB", "zipped", "MACs"]
    return first + [name for runtime in study.runtimes for name in (runtime, "rho")]


def cells(study: SparsityStudy, row: Row) -> list[str]:
    """A row of the table as texts; the unpruned network's speeds are times."""
    found = [
        f"{study.share(row):.1%}",
        label(row),
        short(row.params),
        f"{row.size.bytes / MEGABYTE:.3g}",
        f"{row.size.zipped_bytes / MEGABYTE:.3g}",
        short(row.macs),
    ]
    for runtime in study.runtimes:
        speed, rho = row.speeds[runtime], study.rho(row, runtime)
        if row.kind is Kind.UNPRUNED and isinstance(speed, Speedup):
            found += [f"{speed.baseline_ms:.3f} ms", ""]
        else:
            found += [speed_text(speed), NOTHING if rho is None else f"{rho:.2f}"]
    return found


def label(row: Row) -> str:
    """The kind, and how much of the network runs on its kernels where that is not all."""
    kernels = row.kernels
    if kernels is None or kernels.layers == kernels.of:
        return str(row.kind)
    if not kernels.there:
        return f"{row.kind}, dense kernels"
    return f"{row.kind}, {kernels.layers} of {kernels.of} layers"


def speed_text(speed: Speed) -> str:
    """A speedup with its interval; a dash where there is none."""
    if isinstance(speed, Unmeasured):
        return NOTHING
    return f"{times(speed.ratio, settled=speed.settled)} [{speed.low:.2f}, {speed.high:.2f}]"


def sparsity_table(study: SparsityStudy) -> Table:
    """One row a network, level by level."""
    table = Table(title=f"What sparsity buys {study.name}", title_justify="left")
    for name in header(study):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for level in study.levels:
        for row in level:
            table.add_row(*cells(study, row), style="dim" if row.kind is Kind.UNPRUNED else None)
        table.add_section()
    return table


def row_line(study: SparsityStudy, row: Row) -> str:
    """A row in one line, for who waits for the table."""
    told = [
        f"{runtime} {speed_text(row.speeds[runtime])}"
        for runtime in study.runtimes
        if isinstance(row.speeds[runtime], Speedup)
    ]
    return f"{study.share(row):6.1%}  {label(row):<20}  {'  '.join(told) or 'not measured'}"


def notes(study: SparsityStudy) -> Iterator[tuple[str, str]]:
    """What the table cannot hold, by what it is about: the machine, what is absent, the terms."""
    for runtime in study.runtimes:
        twins = study.unpruned.speeds[runtime]
        if isinstance(twins, Speedup):
            told = f"{threads_text(twins.threads)}, batch {twins.batch_size}"
            yield runtime, f"{twins.device}; {told}"
            yield runtime, f"the unpruned network against its own copy: {speed_text(twins)}"
    yield "weights", study.weights
    yield "kept", f"the parameters of one level differ by {study.spread:.2%} at most"
    yield "MACs", "of masked networks those by weights of zero are left out"
    yield "rho", "the speedup over the one that the MACs which remain promise"
    yield from ((absent.kind, f"at {absent.asked:g}: {absent.reason}") for absent in study.absent)
    yield from (("left out", text) for text in study.left_out)
    yield from _kernel_notes(study)
    if any(not speed.settled for speed in _speedups(study)):
        yield "~", "this speed did not settle: others kept the machine busy, or it is not steady"


def _kernel_notes(study: SparsityStudy) -> Iterator[tuple[str, str]]:
    """What runs on which kernels, once for every kind; then every reason for a missing speed."""
    by_kind = {row.kind: row for row in study.rows}
    if Kind.MASKED in by_kind:
        yield Kind.MASKED, "dense kernels multiply by zeros as by any other number"
    if Kind.CSR in by_kind:
        yield Kind.CSR, "torch's kernels for compressed sparse rows; convolutions by unfold"
    found = by_kind.get(Kind.TWO_OF_FOUR)
    if found is not None and found.kernels is not None and not found.kernels.there:
        yield Kind.TWO_OF_FOUR, "no kernels on this device: the speed is that of dense ones"
    elif found is not None:
        yield Kind.TWO_OF_FOUR, "in bfloat16, against the unpruned network in bfloat16"
    told = dict.fromkeys(
        (row.kind, f"not on {runtime}: {speed.reason}")
        for row in study.rows
        for runtime, speed in row.speeds.items()
        if isinstance(speed, Unmeasured)
    )
    yield from told


def _speedups(study: SparsityStudy) -> Iterator[Speedup]:
    for row in study.rows:
        yield from (speed for speed in row.speeds.values() if isinstance(speed, Speedup))
