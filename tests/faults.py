"""Tasks that go wrong, for the tests of sweeps; workers import them from here."""

import ctypes
import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.tasks import Classification
from tests.pruning_tasks import Blobs, small_net


class Faulty(Blobs):
    """Blobs that fails in one trial after the other as it is told; None lets a trial be.

    Where a trial stands is told by files, for the trials of a sweep share no memory.
    """

    def __init__(self, folder: Path, faults: Iterable[Any]) -> None:
        super().__init__()
        self.folder, self.faults, self.driver = folder, tuple(faults), os.getpid()

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        value = super().loss(model, batch)
        if not torch.is_grad_enabled():
            return value
        fault = self._fault(model)
        if fault in ("kill", "kill once", "hang"):
            assert os.getpid() != self.driver
            return value * self._struck(fault, model)
        if isinstance(fault, Exception):
            raise fault
        return value * (1.0 if fault is None else fault)

    def _struck(self, fault: str, model: nn.Module) -> float:
        struck = self.folder / f"{_widths(model)}.struck"
        if fault == "kill once" and struck.exists():
            return 1.0
        struck.touch()
        while fault == "hang":
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("nobody survives that")

    def _fault(self, model: nn.Module) -> Any:
        """The fault of the trial that this network, by its widths, is the first training of."""
        widths = _widths(model)
        if widths == _widths(small_net()):  # tried out before any trial
            return None
        known = sorted(self.folder.glob("*.trial"), key=lambda path: path.stat().st_mtime_ns)
        names = [path.stem for path in known]
        if widths not in names:
            (self.folder / f"{widths}.trial").touch()
            names.append(widths)
        number = names.index(widths)
        return self.faults[number] if number < len(self.faults) else None


def _widths(model: nn.Module) -> str:
    return "-".join(str(tuple(p.shape)) for p in model.parameters())


class Sleepy(Blobs):
    """A task whose evaluation takes a second without keeping a core busy."""

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        time.sleep(1.0)
        return super().evaluate(model, batches)


@dataclass(frozen=True)
class Prey(Classification):
    """A classification whose every evaluation takes `pause_s`, and that takes orders.

    A file in the folder `orders` is taken by the first trial that sees it, in whatever process but
    that of the driver, and it then does what the file is called: `hang` or `allocate`.
    """

    orders: str = ""
    pause_s: float = 0.0
    driver: int = field(default_factory=os.getpid)

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        for order in (hang, allocate) if os.getpid() != self.driver else ():
            with suppress(FileNotFoundError):
                (Path(self.orders) / order.__name__).unlink()
                order()
        time.sleep(self.pause_s)
        return super().evaluate(model, batches)


def hang() -> None:
    """Wait in native code that keeps the interpreter to itself."""
    ctypes.PyDLL(None).pause()


MOST_BYTES = 12 * 2**30


def allocate() -> None:
    """Take memory until somebody objects."""
    taken = []
    while len(taken) * 2**28 < MOST_BYTES:
        taken.append(b"x" * 2**28)
        time.sleep(0.05)
    raise AssertionError("nobody objected")


class Stranger(Blobs):
    """A task that can be unpickled in the process that made it, and in no worker."""

    def __reduce__(self) -> Any:
        return (_only_in, (os.getpid(),))


def _only_in(process: int) -> Blobs:
    if os.getpid() != process:
        raise ModuleNotFoundError("no module of the user's")
    return Blobs()
