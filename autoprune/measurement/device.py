"""Which machine a time was measured on."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True, slots=True)
class Device:
    """The identity of a device: times from two devices that differ in it do not compare.

    `name` is the model of the processor that runs the network, `cores` the CPU cores this
    process may use, `governor` the frequency policy (``unknown`` where the system does not
    tell), and `library` what runs the network, with its version.
    """

    name: str
    cores: int
    governor: str
    library: str

    @classmethod
    def of(cls, place: str, library: str) -> Self:
        """The device at `place` (``cpu``, ``cuda:0``) of this machine."""
        device = torch.device(place)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
        return cls(name, usable_cores(), _governor(), library)

    def __str__(self) -> str:
        return f"{self.name}, {self.cores} cores, governor {self.governor}, {self.library}"


def threads_text(threads: int) -> str:
    """How many of a device's cores a time was measured on: ``1 thread``, ``2 threads``."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def cpu_model() -> str:
    """The processor's name; Linux tells it only in /proc/cpuinfo."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _governor() -> str:
    try:
        return _GOVERNOR.read_text().strip()
    except OSError:
        return "unknown"
