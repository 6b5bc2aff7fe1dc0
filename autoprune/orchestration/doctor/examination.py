"""The whole examination: of the driver, of the cluster, then of all nodes at a time."""

import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from time import time

import mlflow
import ray

from autoprune.measurement.meter import PairedMeter
from autoprune.orchestration.doctor.authentication import ray_verdicts, server_verdicts
from autoprune.orchestration.doctor.clocks import EXCHANGES, clock_verdict, offset_of
from autoprune.orchestration.doctor.findings import (
    DRIVER,
    LIMIT_S,
    Check,
    Finding,
    Verdict,
    examined,
    examined_together,
    ok,
    warning,
)
from autoprune.orchestration.doctor.measuring import (
    Graphics,
    Noise,
    gate_verdict,
    graphics_verdict,
    library_verdict,
    noise_verdict,
)
from autoprune.orchestration.doctor.places import Here, Place, There, places
from autoprune.orchestration.doctor.storage import Probe, Room, locks, probing, room_verdict
from autoprune.orchestration.doctor.tracking import TrackingStore
from autoprune.orchestration.executors.bench import RESOURCE, check_offered, offered
from autoprune.orchestration.executors.cluster import (
    check_address,
    check_same,
    cluster,
    installed,
    nodes,
    this_machine,
)
from autoprune.orchestration.executors.seeing import look, refuse_blind
from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.request import Executor
from autoprune.orchestration.store import Store, check_store

METER_S = 300.0
"""How long a check that measures may take: some runtimes compile for a minute."""


@dataclass(frozen=True)
class Examination:
    """What a sweep would run on; `tracking` None is a sweep without tracking.

    Trials save in `output`, or in `storage` where that is not None.
    `meter` measures in the trials or, where `where` is ``bench``, on the cluster's benches;
    `device` is where trials and the baseline train.
    """

    executor: Executor
    meter: PairedMeter
    output: Path
    storage: Store | None = None
    tracking: TrackingStore | None = None
    where: str = "trial"
    device: str = "cpu"

    @property
    def on_ray(self) -> TuneExecutor | None:
        """The executor where it is Ray's; None where trials run in this process."""
        return self.executor if isinstance(self.executor, TuneExecutor) else None

    @property
    def address(self) -> str | None:
        """Where the cluster is; None where trials run on this machine."""
        return None if self.on_ray is None else self.on_ray.address

    @property
    def gpus(self) -> float:
        """What a trial asks for of its node's GPUs."""
        return 0.0 if self.on_ray is None else self.on_ray.demand.gpus

    def examine(self, report: Callable[[Finding], None]) -> None:
        """Examine everything; `report` hears of findings as they come.

        What is written or made on the way, files, runs and experiments, is deleted again.
        """
        with ExitStack() as stack:
            tour = _Tour(self, stack)
            for check in tour.of_driver():
                for finding in examined(check):
                    report(finding)
            for finding in examined_together(tour.of_place(place) for place in tour.places()):
                report(finding)


class _Tour:
    """The checks of an examination, and what the first of them leave to the others."""

    def __init__(self, asked: Examination, stack: ExitStack) -> None:
        """`stack` keeps what has been made or joined until the end."""
        self.asked, self._stack = asked, stack
        self._probe: Probe | None = None

    def of_driver(self) -> Iterator[Check]:
        """Those of this process, of the tracking store, and of the cluster as a whole."""
        asked = self.asked
        yield Check(DRIVER, "versions", lambda: [ok(_versions_here())])
        yield Check(DRIVER, "storage", self._storage)
        yield from self._of_tracking()
        if asked.on_ray is not None:
            # what Ray 2.60 starts is killed when the thread that started it ends (PR_SET_PDEATHSIG)
            yield Check(DRIVER, "ray", self._join, limit_s=LIMIT_S if asked.address else None)
        if asked.address is None or ray.is_initialized():
            yield Check(DRIVER, "resources", self._resources)
        if ray.is_initialized():
            yield Check(DRIVER, "authentication", ray_verdicts)
        if asked.address is not None:
            # the baseline is trained, and measured in trials' stead, in the driver
            trains = asked.where == "trial" or asked.device != "cpu"
            yield from self._measuring(Here(DRIVER, this_machine()), trains=trains)

    def places(self) -> list[Place]:
        """Where trials would run: the nodes of the cluster, or this machine; none without one."""
        on_ray = self.asked.on_ray
        if on_ray is not None and ray.is_initialized():
            return list(places(on_ray.code_paths))
        return [Here(gethostname(), this_machine())] if self.asked.address is None else []

    def of_place(self, place: Place) -> Iterator[Check]:
        """Those of a node, or of this machine where trials run on it."""
        if isinstance(place, There):
            yield Check(place.name, "versions", lambda: _versions(place))
            yield Check(place.name, "clock", lambda: [_clock(place)])
            if (storage := self.asked.storage) is not None:
                if self._trains(place):
                    yield Check(place.name, "storage", lambda: _saving(place, storage))
            elif (probe := self._probe) is not None:
                yield Check(place.name, "storage", lambda: _meeting(place, probe))
        yield Check(place.name, "disk", lambda: [room_verdict(place.ask(Room.of_temporary))])
        yield from self._measuring(place, trains=self._trains(place))

    def _measuring(self, place: Place, *, trains: bool) -> Iterator[Check]:
        """Of GPUs, gate and meter, as far as trials train there, or are measured there."""
        asked = self.asked
        on_bench = asked.where == "bench"
        measures = place.node.offers.get(RESOURCE, 0.0) > 0 if on_bench else trains
        # the driver trains the baseline, and asks Ray for no GPU to do so
        trains_on_gpu = asked.device.startswith("cuda") or (place.name != DRIVER and asked.gpus > 0)
        measures_on_gpu = asked.meter.runtime.device.startswith("cuda")
        wanted = (trains and trains_on_gpu) or (measures and measures_on_gpu)
        if trains or measures:
            yield Check(place.name, "gpu", lambda: [_graphics(place, wanted=wanted)])
            yield Check(place.name, "gate", lambda: [place.ask(gate_verdict, asked.meter.gate)])
        if measures:
            yield Check(place.name, "meter", lambda: self._noise(place), limit_s=METER_S)

    def _of_tracking(self) -> Iterator[Check]:
        store = self.asked.tracking
        if store is None:
            yield Check(DRIVER, "tracking", lambda: [ok("none: results stay in the folder")])
            return
        yield Check(DRIVER, "tracking", store.verdicts)
        if store.is_server:
            yield Check(DRIVER, "clock", lambda: _server_clock(store))
            yield Check(DRIVER, "authentication", lambda: server_verdicts(store.uri))

    def _trains(self, place: Place) -> bool:
        on_ray = self.asked.on_ray
        return on_ray is None or on_ray.address is None or on_ray.demand.fits(place.node) > 0

    def _storage(self) -> Iterator[Verdict]:
        self._probe = self._stack.enter_context(probing(self.asked.output))
        yield locks(self._probe)
        yield room_verdict(Room.at(self.asked.output))
        if self.asked.storage is not None:
            check_store(self.asked.storage, key="executor.storage")
            yield ok(f"{self.asked.storage} is written, read and deleted in")

    def _join(self) -> Iterator[Verdict]:
        address = self.asked.address
        check_address(address)
        self._stack.enter_context(cluster(address))
        count = len(nodes())
        if address is None:
            yield ok("starts on this machine")
        else:
            yield ok(f"{address} lets this process in; nodes: {count}")

    def _resources(self) -> Iterator[Verdict]:
        on_ray = self.asked.on_ray
        waits = () if on_ray is None else on_ray.waits()
        for wait in waits:
            yield warning(wait, "start them before, to have all slots from the beginning")
        if not waits:
            each = "" if on_ray is None else f", each with {on_ray.demand}"
            yield ok(f"trials at a time: {self.asked.executor.slots}{each}")
        if self.asked.where == "bench" and self.asked.address is not None:
            check_offered(self.asked.address)
            yield ok(f"benches: {offered():g}")

    def _noise(self, place: Place) -> Iterator[Verdict]:
        meter = self.asked.meter
        noise: Noise = place.ask(Noise.here, meter)
        if isinstance(place, There) and self.asked.where == "trial":
            yield library_verdict(noise.library, meter.runtime.library)
        else:
            yield ok(noise.library)
        yield noise_verdict(noise.speedups, meter.settings)


def _versions_here() -> str:
    own = [f"{name} {version or 'not installed'}" for name, version in installed().items()]
    return ", ".join(
        [
            *own,
            f"ray {ray.__version__}",
            f"mlflow {mlflow.__version__}",
            f"Python {platform.python_version()}",
        ]
    )


def _versions(place: There) -> Iterator[Verdict]:
    check_same(place.name, place.ask(installed))
    yield ok("those of the driver")


def _clock(place: There) -> Verdict:
    return clock_verdict(offset_of([(time(), place.ask(time), time()) for _ in range(EXCHANGES)]))


def _graphics(place: Place, *, wanted: bool) -> Verdict:
    found = place.ask(Graphics.here)
    return graphics_verdict(found, wanted=wanted, offered=place.node.offers.get("GPU", 0.0))


def _server_clock(store: TrackingStore) -> Iterator[Verdict]:
    offset = store.offset()
    if offset is not None:
        yield clock_verdict(offset, "the tracking server's")


def _saving(place: There, storage: Store) -> Iterator[Verdict]:
    """The node reads what the driver has written where trials save, and writes there."""
    with storage.trace() as (name, data):
        reason = place.ask(look, storage, name, data)
    refuse_blind({place.name: reason} if reason else {}, storage)
    yield ok(f"{storage} is the driver's, and can be written")


def _meeting(place: There, probe: Probe) -> Iterator[Verdict]:
    """Driver and node read what the other has written."""
    place.ask(Probe.meet, probe, place.key)
    probe.check_seen(place.key)
    yield ok(f"{probe.folder.parent} is the driver's, and can be written")
