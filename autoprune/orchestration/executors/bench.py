"""Measuring on other machines: a Ray task on a node that offers the resource ``bench``."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import cloudpickle
import ray
from ray.exceptions import RayError, RayTaskError
from torch import nn

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.objective import Direction
from autoprune.domain.trial import Cause, Speedup, TrialError
from autoprune.measurement.meter import PairedMeter, SpeedMeter
from autoprune.measurement.prepared import repeated, shapes
from autoprune.measurement.programs import pack, unpack
from autoprune.orchestration.executors.cluster import cluster, nodes
from autoprune.orchestration.executors.user_code import importable
from autoprune.tasks.protocol import Inputs

RESOURCE = "bench"
"""What a node offers on which speed is measured: one unit measures one pair at a time."""

WHERE = ("trial", "bench")
"""Where speed may be measured: in the worker of the trial, or on a bench."""

PATIENCE_S = 30.0
"""How long a measurement waits for a bench while there is none."""

_ASK_S = 2.0
_KEPT = 8
"""Of how many baselines a bench keeps what it has prepared."""


@dataclass(frozen=True)
class BenchMeter:
    """A SpeedMeter whose measurements run on the nodes of a cluster that offer `RESOURCE`.

    One measurement at a time holds one unit of it, so that a node which offers 1 measures one
    pair at a time while the others train. Networks travel as exported programs, one for each
    batch size, and it is their speed that is measured. `address` is the cluster's, for a process
    that is not in it yet; `code_paths` are put before the import path there, for a runtime of the
    user's own.
    """

    meter: PairedMeter
    address: str = field(repr=False)
    code_paths: Sequence[str] = field(default=(), repr=False)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Those of the meter that runs there."""
        return self.meter.metrics

    def check(self, model: nn.Module, example: Inputs) -> None:
        """Prepare the network on the bench. Raises what `measure` raises."""
        with cluster(self.address):
            for size in self.meter.settings.batch_sizes:
                batch = repeated(example, size)
                with self.meter.gate.step():
                    program = pack(model, batch)
                self._ask(_check_on_bench, program, batch)

    def measure(self, candidate: nn.Module, baseline: nn.Module, example: Inputs) -> Speedup:
        """The speedup that a bench measures.

        Raises what PairedMeter raises there, AutopruneError where no node offers `RESOURCE`, and
        TrialError (cause worker lost) where the last one that did has gone.
        """
        with cluster(self.address):
            first, *further = (
                self._measured(candidate, baseline, repeated(example, size), size)
                for size in self.meter.settings.batch_sizes
            )
        return replace(first, further=tuple(further))

    def _measured(
        self, candidate: nn.Module, baseline: nn.Module, example: Inputs, size: int
    ) -> Speedup:
        # exporting a network is work like a training step: somebody may be measuring on this node
        with self.meter.gate.step():
            programs = (pack(candidate, example), _packed_once(baseline, example))
        found: Speedup = self._ask(_measure_on_bench, *programs, example, size)
        return found

    def _ask(self, task: Any, *arguments: Any) -> Any:
        check_offered(self.address)
        meter = cloudpickle.dumps(self.meter)
        return _answer(task.remote(meter, tuple(self.code_paths), *arguments))


def check_where(where: str, address: str | None) -> None:
    """Raise AutopruneError unless speed can be measured there."""
    if where not in WHERE:
        raise unknown("place to measure", where, WHERE)
    if where == "bench" and address is None:
        raise AutopruneError(
            "where=bench measures on other nodes of a cluster, and no cluster is named; set "
            'executor=cluster (from Python, address="auto"), or where=trial'
        )


def placed(
    meter: PairedMeter, where: str, *, address: str | None, code_paths: Sequence[str]
) -> SpeedMeter:
    """A meter as it stands, or on the benches of the cluster. Raises what `check_where` does."""
    check_where(where, address)
    if address is None or where == "trial":
        return meter
    return BenchMeter(meter, address, tuple(code_paths))


def offered() -> float:
    """How many units of `RESOURCE` the nodes that are alive offer together."""
    return sum(node.offers.get(RESOURCE, 0.0) for node in nodes())


def check_offered(address: str) -> None:
    """Raise AutopruneError where no node of the cluster, which is at `address`, is a bench."""
    if not offered():
        raise AutopruneError(
            f"meter.where=bench measures on nodes that offer the resource {RESOURCE!r}, and "
            f"the cluster at {address!r} has none; start one with `ray start "
            f"--address=... --num-cpus=0 --resources='{{\"{RESOURCE}\": 1}}'`, or set "
            "meter.where=trial"
        )


def _answer(task: Any) -> Any:
    """What the task comes to; gives up where no node could run it for `PATIENCE_S` seconds."""
    seen = time.perf_counter()
    while True:
        done, _ = ray.wait([task], timeout=_ASK_S)
        if done:
            break
        now = time.perf_counter()
        if offered():
            seen = now
        elif now - seen > PATIENCE_S:
            ray.cancel(task, force=True)
            raise TrialError(
                Cause.WORKER_LOST,
                f"no node has offered the resource {RESOURCE!r} for {PATIENCE_S:g} s, so that "
                "nothing can be measured; start one again and resume the sweep",
            )
    try:
        return ray.get(task)
    except RayTaskError as error:
        # the fault itself, not Ray's story around it
        raise error.cause from None
    except RayError as error:
        raise TrialError(
            Cause.WORKER_LOST,
            f"the measurement on the bench was lost ({type(error).__name__}); look into Ray's logs "
            "there, or set meter.where=trial",
        ) from error


# 0 CPUs, for trials hold those of a node while they wait for it; and a place of its own, for Tune
# keeps the tasks of a trial inside what that was given
_bench_task = ray.remote(
    num_cpus=0, resources={RESOURCE: 1}, max_retries=2, scheduling_strategy="DEFAULT"
)


@_bench_task
def _check_on_bench(
    meter: bytes, code_paths: Sequence[str], program: bytes, example: Inputs
) -> None:
    """Prepare a program on the node that this runs on, for a batch as it is."""
    _loaded(meter, code_paths).check_batch(unpack(program), example)


@_bench_task
def _measure_on_bench(
    meter: bytes,
    code_paths: Sequence[str],
    candidate: bytes,
    baseline: bytes,
    example: Inputs,
    size: int,
) -> Speedup:
    """Measure two programs beside each other, on the node that this runs on."""
    paired = _loaded(meter, code_paths)
    return paired.measure_batch(unpack(candidate), _unpacked_once(baseline), example, size)


def _loaded(meter: bytes, code_paths: Sequence[str]) -> PairedMeter:
    importable(code_paths)
    paired: PairedMeter = cloudpickle.loads(meter)
    return paired


_PACKED: "WeakKeyDictionary[nn.Module, dict[Any, Any]]" = WeakKeyDictionary()
_UNPACKED: dict[str, nn.Module] = {}


def _packed_once(baseline: nn.Module, example: Inputs) -> Any:
    """The baseline's program in Ray's object store, put there once by this process in a job."""
    # a cluster that is left and joined again is another job, which knows nothing of the former's
    job = ray.get_runtime_context().get_job_id()
    key = (job, shapes(baseline.state_dict()), shapes(example))
    kept = _PACKED.setdefault(baseline, {})
    if key not in kept:
        kept[key] = ray.put(pack(baseline, example))
    return kept[key]


def _unpacked_once(data: bytes) -> nn.Module:
    """The same network for the same bytes: what is prepared of a baseline is kept with it."""
    digest = hashlib.sha256(data).hexdigest()
    found = _UNPACKED.pop(digest, None) or unpack(data)
    _UNPACKED[digest] = found  # the last used stands last
    while len(_UNPACKED) > _KEPT:
        del _UNPACKED[next(iter(_UNPACKED))]
    return found
