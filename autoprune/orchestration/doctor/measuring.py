"""What a node measures with: its runtime, gate and GPUs, and how finely it tells speeds apart."""

import copy
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import torch

from autoprune.domain.errors import first_line
from autoprune.domain.trial import Speedup
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.quiet import Gate, QuietNode
from autoprune.measurement.runtimes.protocol import uncalibrated
from autoprune.models import resnet
from autoprune.orchestration.doctor.findings import Verdict, fault, ok, warning
from autoprune.orchestration.doctor.storage import network_of
from autoprune.orchestration.executors.cluster import ALIKE

REPEATS, LONG_S = 3, 15.0
"""How often a node's noise floor is measured, and after how long no further time."""


@dataclass(frozen=True, slots=True)
class Graphics:
    """The CUDA devices that torch finds, and what it says where it cannot use them."""

    names: tuple[str, ...]
    reason: str = ""

    @classmethod
    def here(cls) -> "Graphics":
        """Those of this machine."""
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:  # no build for CUDA is an AssertionError
            return cls((), first_line(error))
        return cls(tuple(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))))


def graphics_verdict(found: Graphics, *, wanted: bool, offered: float = 0.0) -> Verdict:
    """Whether torch can use the GPUs that a sweep wants, or that Ray offers on the node."""
    count = len(found.names)
    reason = f" ({found.reason})" if found.reason else ""
    remedy = (
        "install a torch that is built for CUDA, and a driver that is new enough for it; in a "
        "container give it the GPUs; or choose executor.gpus=0 executor.device=cpu"
    )
    if wanted and not count:
        return fault(f"torch finds no CUDA device{reason}", remedy)
    if wanted and count < offered:
        return fault(f"Ray offers {offered:g} GPUs, and torch finds {count}{reason}", remedy)
    if not wanted:
        return ok("none is asked for" + (f"; {count} could be used" if count else ""))
    return ok(", ".join(found.names))


def gate_verdict(gate: Gate) -> Verdict:
    """Whether trials of this node can agree on when to be quiet. Raises what the gate raises."""
    if not isinstance(gate, QuietNode):
        return warning(
            "there is none: trials measure while others train",
            "set meter.gate=true, unless one trial at a time has this machine for itself",
        )
    with _tidied(gate):
        with gate.measuring():
            kind = network_of(gate.place)
        if kind is None:
            return ok(f"{gate.place} can be locked")
        return warning(
            f"{gate.place} is on a network file system ({kind}), so that the nodes that share it "
            "wait for each other",
            "set meter.gate_folder, or TMPDIR, to a folder on a disk of the node's own",
        )


@dataclass(frozen=True, slots=True)
class Noise:
    """What runs a node's networks, and one network measured against itself again and again."""

    library: str
    speedups: tuple[Speedup, ...]

    @classmethod
    def here(cls, meter: PairedMeter) -> "Noise":
        """This machine's, on a network of some tenths of a millisecond.

        Raises what the meter raises, as it does where the runtime is not installed.
        """
        network, example = _network()
        heard = uncalibrated(meter.runtime)
        runtime = meter.runtime if heard is None else heard.calibrated([example])
        first = meter.settings.batch_sizes[:1]
        meter = replace(meter, runtime=runtime, settings=replace(meter.settings, batch_sizes=first))
        began, found = time.perf_counter(), list[Speedup]()
        with _tidied(meter.gate):
            twin = copy.deepcopy(network)
            while len(found) < REPEATS and time.perf_counter() - began < LONG_S:
                found.append(meter.measure(twin, network, example))
        return cls(runtime.library, tuple(found))


def noise_verdict(speedups: Sequence[Speedup], settings: MeterSettings) -> Verdict:
    """Whether the meter becomes as sure of a speedup as it is asked to."""
    half = median((found.high - found.low) / (2 * found.ratio) for found in speedups)
    off = max(abs(found.ratio - 1) for found in speedups)
    others = median(found.others for found in speedups)
    steal = median(found.steal for found in speedups)
    told = (
        f"{speedups[0].runtime}: one network against itself is measured to within {half:.1%}, "
        f"and was off by {off:.1%} at most in {len(speedups)} measurements; others kept "
        f"{others:.2f} cores busy, {steal:.1%} of the time was stolen"
    )
    if sum(found.settled for found in speedups) * 2 > len(speedups):
        return ok(told)
    remedy = f"raise meter.max_s, or meter.half_width from {settings.half_width:g}"
    if others > settings.others_limit:
        remedy = "end what else runs there, or measure elsewhere with meter.where=bench"
    elif steal > settings.steal_limit:
        remedy = "measure on a machine whose processor is not shared, with meter.where=bench"
    return warning(f"the meter does not settle; {told}", remedy)


def library_verdict(there: str, here: str) -> Verdict:
    """Whether the same runs the networks there as here: speeds of two versions do not compare."""
    if there == here:
        return ok(there)
    return warning(f"networks run on {there} there and on {here} here", ALIKE)


def _network() -> tuple[torch.nn.Module, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet(width=16, depth=8, in_channels=1).eval()
        return network, torch.randn(1, 1, 16, 16)


@contextmanager
def _tidied(gate: Gate) -> Iterator[None]:
    """Leave no gate's folder where there was none; who enters the gate later makes it again."""
    place = gate.place if isinstance(gate, QuietNode) else None
    is_new = place is not None and not os.path.lexists(place)
    try:
        yield
    finally:
        if is_new and place is not None:
            shutil.rmtree(place, ignore_errors=True)
