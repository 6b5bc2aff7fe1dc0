"""Measuring two networks against each other, row by row: what fails costs its own row only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import psutil
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.latency import PairedMeter
from autoprune.measurement.prepared import fitting, repeated
from autoprune.measurement.programs import runnable
from autoprune.measurement.runtimes import Inference, Runtime
from autoprune.measurement.runtimes.protocol import exported, torch_threads
from autoprune.orchestration.comparison.memory import peak_mb
from autoprune.orchestration.comparison.pair import NetworkPair
from autoprune.orchestration.comparison.records import Both, Comparison, Row, Timed, Untimed
from autoprune.tasks.protocol import Inputs, forward

Report = Callable[[Comparison], None]
"""Hears of the comparison so far, before the first row and after each one."""


@dataclass(frozen=True)
class ComparisonRequest:
    """A pair, and the meters to measure it with, by the names that the user chose.

    Without `batch_sizes` each meter has its own; programs for one batch size have that.
    `memory` has the peak memory measured, too, in processes that find modules in `code_paths`.
    """

    pair: NetworkPair
    meters: Mapping[str, PairedMeter]
    batch_sizes: tuple[int, ...] = ()
    memory: bool = False
    code_paths: Sequence[str] = ()


def compare(request: ComparisonRequest, *, report: Report = lambda _: None) -> Comparison:
    """A row for every runtime and batch size; `report` hears of each.

    What goes wrong in a row is that row's reason, and the others are still measured.
    """
    baseline, candidate = request.pair.facts
    found = Comparison(baseline, candidate, request.pair.difference, notes=_notes(request.pair))
    report(found)
    for name, meter in request.meters.items():
        for size in _sizes(request, meter):
            row = _row(request, name, size)
            if isinstance(row, Timed) and request.memory:
                row, remarks = _with_memory(request, row)
                found = replace(found, notes=(*found.notes, *remarks))
            found = replace(found, rows=(*found.rows, row))
            report(found)
    return found


def _sizes(request: ComparisonRequest, meter: PairedMeter) -> tuple[int, ...]:
    low, high = request.pair.batches
    own = (int(low),) if low == high else meter.settings.batch_sizes
    return request.batch_sizes or own


def _row(request: ComparisonRequest, name: str, size: int) -> Row:
    pair, meter = request.pair, request.meters[name]
    keeping = _Keeping(meter.runtime)
    meter = replace(meter, runtime=keeping, settings=replace(meter.settings, batch_sizes=(size,)))
    try:
        _check_size(pair, size)
        with fitting(size):
            models = _alike(pair, size)
            off = [_off_eager(meter, role, model, pair.example) for role, model in models.items()]
            speedup = meter.measure(models["candidate"], models["baseline"], pair.example)
    except Exception as error:  # whatever a network, a runtime or its exporter raises
        return Untimed(name, size, _reason(error, size))
    finally:
        keeping.kept.clear()
    return Timed(name, size, speedup, Both(*off))


def _with_memory(request: ComparisonRequest, row: Timed) -> tuple[Row, list[str]]:
    """The row with its peak memory, or a remark why it has none."""
    meter, size = request.meters[row.runtime], row.batch_size
    inputs = repeated(request.pair.example, size)
    models = _alike(request.pair, size).values()
    where = f"memory on {row.runtime} at batch size {size}"
    try:
        with meter.gate.step():
            found = [
                peak_mb(meter.runtime, model, inputs, code_paths=request.code_paths)
                for model in models
            ]
    except AutopruneError as error:
        return row, [f"{where}: {error}"]
    baseline, candidate = found
    if baseline is None or candidate is None:
        return row, [f"{where}: this system does not tell"]
    return replace(row, peak_mb=Both(baseline, candidate)), []


def _alike(pair: NetworkPair, size: int) -> dict[str, nn.Module]:
    """Both networks as code, or both as exported programs, which call operators another way."""
    if pair.baseline.program == pair.candidate.program:
        return {role: network.model for role, network in pair.networks.items()}
    inputs = repeated(pair.example, size)
    return {
        role: network.model if network.program else runnable(exported(network.model, inputs))
        for role, network in pair.networks.items()
    }


def _off_eager(meter: PairedMeter, role: str, model: nn.Module, example: Inputs) -> float:
    """Prepare a network for the meter's runtime, check it, and tell its distance from eager."""
    try:
        meter.check(model, example)
    except AutopruneError as error:
        raise AutopruneError(f"{role}: {error}") from error
    inputs = repeated(example, meter.settings.batch_sizes[0])
    with meter.gate.step(), torch_threads(meter.runtime.threads), torch.no_grad():
        infer = meter.runtime.prepare(model, inputs)
        return relative_difference(infer(), forward(model, inputs))


@dataclass(frozen=True)
class _Keeping:
    """A runtime that prepares each network once, for inputs of one shape."""

    runtime: Runtime
    kept: dict[int, Inference] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.runtime.name

    @property
    def library(self) -> str:
        return self.runtime.library

    @property
    def device(self) -> str:
        return self.runtime.device

    @property
    def tolerance(self) -> float:
        return self.runtime.tolerance

    @property
    def threads(self) -> int:
        return self.runtime.threads

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        if id(model) not in self.kept:
            self.kept[id(model)] = self.runtime.prepare(model, example)
        return self.kept[id(model)]


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


def _notes(pair: NetworkPair) -> tuple[str, ...]:
    if pair.baseline.program == pair.candidate.program:
        return ()
    program, code = sorted(pair.networks, key=lambda role: not pair.networks[role].program)
    return (
        f"the {program} is an exported program, so the {code} was exported, too: both call the "
        "same operators in the same way",
    )
