"""The sparsity study: one network thinned out in several ways, equally far; size and speed.

Accuracy is not looked at: neither size nor speed depends on it, and nothing is trained.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from autoprune.domain.bounds import build_space, of_kinds
from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.trial import TrialError
from autoprune.evaluation import portable
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.runtimes import TorchRuntime
from autoprune.measurement.runtimes.protocol import Runtime, torch_threads
from autoprune.orchestration.baseline import Baseline, BaselineCache
from autoprune.orchestration.preparation import load_baseline
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.studies.candidates import Candidate, Workbench
from autoprune.orchestration.studies.records import (
    Absent,
    Kind,
    Row,
    SparsityStudy,
    Speed,
    Unmeasured,
)
from autoprune.pruning.graph import trace

Report = Callable[[SparsityStudy], None]
"""Hears of the study as it stands, after every row."""


@dataclass(frozen=True, slots=True)
class SparsityRequest:
    """What is asked of the study.

    Of `sweep` the network, its weights, the task's example and the space count. Speed is measured
    by every one of `meters`; the first must be able to run the network, others are left out where
    they cannot. `kept` are shares of the parameters, `kinds` how they are to be reached.
    """

    sweep: SweepRequest
    meters: Sequence[PairedMeter]
    kept: Sequence[float]
    kinds: Sequence[Kind]


def study_sparsity(request: SparsityRequest, *, report: Report | None = None) -> SparsityStudy:
    """Thin the network out by every kind at every level, and measure what came of it.

    The weights are those of a checkpoint, or those that a sweep has trained before, or the first
    ones. Raises AutopruneError (GraphError and others among it) for a network that cannot be
    pruned or that the first runtime cannot run.
    """
    sweep = request.sweep
    with torch_threads(sweep.threads):
        baseline = _weights_at_hand(sweep)
        bench = _workbench(request, baseline.model)
        meters, left_out = _usable(request.meters, bench)
        study = SparsityStudy(
            name=sweep.name,
            weights=baseline.source,
            runtimes=tuple(meter.runtime.name for meter in meters),
            rows=(),
            left_out=left_out,
        )
        for found in _candidates(request, bench):
            if isinstance(found, Absent):
                study = replace(study, absent=(*study.absent, found))
                continue
            row = _row(found, meters, bench)
            study = replace(study, rows=(*study.rows, row))
            if report is not None:
                report(study)
    return study


def _weights_at_hand(sweep: SweepRequest) -> Baseline:
    """The network with the best weights that there are without training any."""
    wanted = sweep.baseline
    if wanted.checkpoint is not None:
        return load_baseline(sweep)
    model = copy.deepcopy(sweep.model)
    cache = BaselineCache.below(sweep.output)
    kept = cache.find(wanted.identity, model) if wanted.plan is not None else None
    return kept or Baseline(portable(model), f"not trained, the first ones of seed {sweep.seed}")


def _workbench(request: SparsityRequest, model: nn.Module) -> Workbench:
    sweep, example = request.sweep, request.sweep.task.example()
    dependencies = trace(model, example, time_limit_s=sweep.graph_limit_s)
    space = build_space(
        of_kinds(dependencies.groups, sweep.space.kinds),
        sweep.space.bounds,
        overrides=sweep.space.overrides,
        exclude=sweep.space.exclude,
    )
    device = request.meters[0].runtime.device
    return Workbench(model, example, space, dependencies, device)


def _usable(
    meters: Sequence[PairedMeter], bench: Workbench
) -> tuple[list[PairedMeter], tuple[str, ...]]:
    """The meters whose runtimes can run the network, and why others cannot."""
    first, *further = meters
    first.check(bench.model, bench.example)
    usable, left_out = [first], []
    for meter in further:
        try:
            meter.check(bench.model, bench.example)
            usable.append(meter)
        except AutopruneError as error:
            left_out.append(f"{meter.runtime.name} is left out: {first_line(error)}")
    return usable, tuple(left_out)


def _candidates(request: SparsityRequest, bench: Workbench) -> Iterator[Candidate | Absent]:
    yield bench.unpruned()
    if Kind.CSR in request.kinds:
        yield bench.csr_of_all()
    for asked in sorted(request.kept, reverse=True):
        yield from bench.level(asked, request.kinds)


def _row(found: Candidate, meters: Sequence[PairedMeter], bench: Workbench) -> Row:
    speeds = {meter.runtime.name: _speed(found, meter, bench) for meter in meters}
    return replace(found.row, speeds=speeds)


def _speed(found: Candidate, meter: PairedMeter, bench: Workbench) -> Speed:
    if found.fault is not None:
        return Unmeasured(found.fault)
    network = found.dense
    if found.sparse is not None:
        if not _has_sparse_kernels(meter.runtime):
            return Unmeasured(f"runtime {meter.runtime.name!r} has no kernels for it")
        network = found.sparse
        meter = _in_half(meter) if found.row.kind is Kind.TWO_OF_FOUR else meter
    elif found.row.kind is Kind.UNPRUNED:
        network = copy.deepcopy(found.dense)  # a twin of the baseline, not the baseline
    try:
        return meter.measure(network, bench.model, bench.example)
    except (TrialError, RuntimeError) as error:  # torch's word for kernels that it lacks
        return Unmeasured(first_line(error))


def _has_sparse_kernels(runtime: Runtime) -> bool:
    return isinstance(runtime, TorchRuntime) and runtime.engine == "eager"


def _in_half(meter: PairedMeter) -> PairedMeter:
    """The meter in 16 bits, which 2:4 kernels want, for both networks of the pair."""
    runtime = meter.runtime
    assert isinstance(runtime, TorchRuntime)
    return replace(meter, runtime=replace(runtime, precision="bf16"))
