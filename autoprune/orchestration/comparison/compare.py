"""Measuring two networks against each other, row by row: what fails costs its own row only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import psutil
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.trial import Speedup
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.prepared import Ready, fitting, ready, repeated
from autoprune.measurement.programs import runnable
from autoprune.measurement.runtimes import Int8Network
from autoprune.measurement.runtimes.protocol import exported
from autoprune.orchestration.comparison.memory import peak_mb
from autoprune.orchestration.comparison.networks import Network
from autoprune.orchestration.comparison.pair import NetworkPair
from autoprune.orchestration.comparison.records import Both, Comparison, Row, Timed, Untimed
from autoprune.tasks.protocol import Inputs


@dataclass(frozen=True, slots=True)
class NoMeter:
    """A runtime that cannot be had, and why."""

    reason: str


MeterOrNone = PairedMeter | NoMeter
"""What measures the rows of a runtime, or why nothing can."""

Report = Callable[[Comparison], None]
"""Hears of the comparison so far, before the first row and after each one."""


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """A pair, and the meters to measure it with, by the names that the user chose.

    Without `batch_sizes` each meter has its own; programs for one batch size have that.
    `memory` has the peak memory measured, too, in processes that find modules in `code_paths`.
    """

    pair: NetworkPair
    meters: Mapping[str, MeterOrNone]
    batch_sizes: tuple[int, ...] = ()
    memory: bool = False
    code_paths: Sequence[str] = ()


def compare(request: ComparisonRequest, *, report: Report = lambda _: None) -> Comparison:
    """A row for every runtime and batch size; `report` hears of each.

    What goes wrong in a row is that row's reason, and the others are still measured.
    """
    baseline, candidate = request.pair.facts
    found = Comparison(
        baseline, candidate, request.pair.difference, notes=tuple(_notes(request.pair))
    )
    report(found)
    for name, meter in request.meters.items():
        for size in _sizes(request, meter):
            row, remarks = _row(request, name, meter, size)
            found = replace(found, rows=(*found.rows, row), notes=(*found.notes, *remarks))
            report(found)
    return found


def _sizes(request: ComparisonRequest, meter: MeterOrNone) -> tuple[int, ...]:
    if request.batch_sizes:
        return request.batch_sizes
    low, high = request.pair.batches
    if low == high:
        return (int(low),)
    settings = MeterSettings() if isinstance(meter, NoMeter) else meter.settings
    return settings.batch_sizes


def _row(
    request: ComparisonRequest, name: str, meter: MeterOrNone, size: int
) -> tuple[Row, list[str]]:
    """A row, and what a reader must know of it."""
    if isinstance(meter, NoMeter):
        return Untimed(name, size, meter.reason), []
    try:
        speedup, off_eager = _timed(request.pair, meter, size)
    except Exception as error:  # whatever a network, a runtime or its exporter raises
        return Untimed(name, size, _reason(error, size)), []
    row = Timed(name, size, speedup, off_eager)
    if not request.memory:
        return row, []
    try:
        return replace(row, peak_mb=_peak_mb(request, meter, size)), []
    except AutopruneError as error:
        return row, [f"memory on {name} at batch size {size}: {error}"]


def _timed(pair: NetworkPair, meter: PairedMeter, size: int) -> tuple[Speedup, Both]:
    _check_size(pair, size)
    with fitting(size):
        inputs = repeated(pair.example, size)
        with meter.gate.step():
            networks = _alike(pair, inputs)
        baseline, candidate = (
            _ready(meter, role, model, inputs) for role, model in networks.items()
        )
        speedup = meter.time(baseline.infer, candidate.infer, batch_size=size)
    return speedup, Both(baseline.off_eager, candidate.off_eager)


def _peak_mb(request: ComparisonRequest, meter: PairedMeter, size: int) -> Both:
    inputs = repeated(request.pair.example, size)
    with meter.gate.step():
        networks = _alike(request.pair, inputs)
    found = []
    for model in networks.values():
        with meter.gate.step():
            found.append(peak_mb(meter.runtime, model, inputs, code_paths=request.code_paths))
    return Both(*found)


def _alike(pair: NetworkPair, inputs: Inputs) -> dict[str, nn.Module]:
    """Both networks as code, or both as exported programs, which call operators another way.

    By their roles, the baseline first.
    """
    if pair.baseline.program == pair.candidate.program:
        return {role: network.model for role, network in pair.networks.items()}
    return {role: _as_program(network, inputs) for role, network in pair.networks.items()}


def _as_program(network: Network, inputs: Inputs) -> nn.Module:
    """A network as an exported program; one in int8 is a program already."""
    if network.program or isinstance(network.model, Int8Network):
        return network.model
    return runnable(exported(network.model, inputs))


def _ready(meter: PairedMeter, role: str, model: nn.Module, inputs: Inputs) -> Ready:
    try:
        with meter.gate.step():
            return ready(meter.runtime, model, inputs)
    except AutopruneError as error:
        raise AutopruneError(f"{role}: {error}") from error


def _check_size(pair: NetworkPair, size: int) -> None:
    for role, network in pair.networks.items():
        low, high = network.batches
        if not low <= size <= high:
            raise AutopruneError(
                f"the {role} was exported for {network.batches_text}; export it with the batch "
                f"free, or set 'batch_sizes=[{low}]'"
            )
    needed_mb = max(fact.size_mb for fact in pair.facts) + size * pair.sample_mb
    free_mb = psutil.virtual_memory().available / 1e6
    if needed_mb > free_mb:
        raise AutopruneError(
            f"a batch of {size} needs about {needed_mb / 1e3:.3g} GB of memory, and "
            f"{free_mb / 1e3:.3g} GB are free; choose a smaller one"
        )


def _reason(error: Exception, size: int) -> str:
    if isinstance(error, AutopruneError):
        return str(error)
    return (
        f"{type(error).__name__}: {first_line(error)}; both networks take one sample, so look at "
        f"what they do with a batch of {size}"
    )


def _notes(pair: NetworkPair) -> Iterator[str]:
    yield from pair.strange
    if pair.baseline.program != pair.candidate.program:
        program, code = sorted(pair.networks, key=lambda role: not pair.networks[role].program)
        yield (
            f"the {program} is an exported program, so the {code} was exported, too: both call the "
            "same operators in the same way"
        )
