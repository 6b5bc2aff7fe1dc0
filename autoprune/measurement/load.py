"""What else a node did while something was timed on it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import psutil
import torch


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """How busy a node was over a span of time, the process that asks left out.

    `others` counts the cores that other processes kept busy, on average; `steal` is the share of
    the cores' time that the hypervisor gave to other machines, in [0, 1]; `frequency_mhz` is the
    clock, at the end, of the processor that ran the network, None where the system does not tell.
    """

    others: float
    steal: float
    frequency_mhz: float | None


def average(loads: Sequence[NodeLoad]) -> NodeLoad:
    """The load over spans of equal length, at least one; the clock is the last one's."""
    return NodeLoad(
        others=fmean(load.others for load in loads),
        steal=fmean(load.steal for load in loads),
        frequency_mhz=loads[-1].frequency_mhz,
    )


class LoadWatch(Protocol):
    """Watches a node from the moment it is made."""

    def read(self) -> NodeLoad:
        """The load since then."""
        ...


class NodeWatch:
    """Watches this node, and the clock of a device of it.

    The kernel counts in hundredths of a second: over less than a tenth a load means little. The
    clock of a CUDA device is read through NVML (extra ``autoprune[nvidia]``).
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._at, self._own, self._all = time.perf_counter(), _own_s(), psutil.cpu_times()

    def read(self) -> NodeLoad:
        """The load since it was made."""
        now = psutil.cpu_times()
        span = max(time.perf_counter() - self._at, 1e-9)
        busy = _busy_s(now) - _busy_s(self._all) - (_own_s() - self._own)
        steal = getattr(now, "steal", 0.0) - getattr(self._all, "steal", 0.0)
        return NodeLoad(
            others=max(0.0, busy / span),
            steal=min(1.0, max(0.0, steal / (span * (psutil.cpu_count() or 1)))),
            frequency_mhz=_frequency_mhz(self._device),
        )


def _own_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _busy_s(times: object) -> float:
    names = ("user", "nice", "system", "irq", "softirq")
    return float(sum(getattr(times, name, 0.0) for name in names))


def _frequency_mhz(device: torch.device) -> float | None:
    if device.type == "cuda":
        try:
            return float(torch.cuda.clock_rate(device))
        except (ImportError, RuntimeError):  # without NVML's library, or its driver
            return None
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return float(found.current) if found is not None and found.current else None
