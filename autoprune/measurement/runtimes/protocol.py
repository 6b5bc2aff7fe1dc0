"""What a runtime promises: it turns a network into something that can be timed."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.space import FP32
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.runtimes.silence import silence
from autoprune.tasks.protocol import Inputs

TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2, "int8": 2.5e-1}
"""How far outputs may be from float32, as a part of the largest one, by precision.

bfloat16 keeps 8 bits of a number and int8 as many of a whole layer, of which a deep network loses
some; what it costs in accuracy is for the task to judge.
"""

Inference = Callable[[], object]
"""One inference, over when it returns; what it returns is what the network computed."""


@runtime_checkable
class SelfTimed(Protocol):
    """An inference with a better clock than the caller's: events on the device, for instance."""

    def __call__(self) -> object:
        """One inference."""
        ...

    def seconds(self) -> float:
        """What one inference takes."""
        ...


@runtime_checkable
class Reloads(Protocol):
    """An inference that can be loaded again from what was prepared.

    Where weights and code come to lie in memory changes a network's speed by a percent or more,
    and stays as it is for as long as they lie there: only loading again tells how much.
    """

    def __call__(self) -> object:
        """One inference."""
        ...

    def reload(self) -> None:
        """Load the same program to another place in memory; it computes what it did before."""
        ...


class Runtime(Protocol):
    """Turns a network into something that can be timed.

    Runtimes are picklable and compare by what they do (a frozen dataclass does both).
    `RuntimeContract` in tests/contracts is what an implementation must pass.
    """

    @property
    def name(self) -> str:
        """Short name for reports, such as ``eager``."""
        ...

    @property
    def library(self) -> str:
        """What runs the network, with its version."""
        ...

    @property
    def device(self) -> str:
        """Where it runs, as torch writes it: ``cpu``, ``cuda:0``."""
        ...

    @property
    def tolerance(self) -> float:
        """How far outputs may be from eager PyTorch in float32, as a part of the largest one."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads of one inference; whoever times it holds torch to them (`torch_threads`)."""
        ...

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        """A function that runs one inference on `example`.

        It computes what `model` computes in evaluation mode, within `tolerance`: whoever times
        it checks that first. The model is left as it was and is not kept: what is returned works
        when the model is gone or has changed. Raises TrialError for a model that this runtime
        cannot run, AutopruneError where the runtime itself is missing.
        """
        ...


@runtime_checkable
class Calibrates(Runtime, Protocol):
    """A runtime that wants to see what the network is given: for the ranges of its numbers."""

    @property
    def calibration_samples(self) -> int:
        """How many samples it wants; 0 where it needs none, or has them."""
        ...

    def calibrated(self, inputs: Sequence[Inputs]) -> Runtime:
        """The same runtime with inputs of the network, in batches of any size."""
        ...


@runtime_checkable
class TakesPrecisions(Runtime, Protocol):
    """A runtime that says in which precisions it takes networks; every runtime takes fp32."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """Some of `autoprune.domain.space.PRECISIONS`; of int8 an `Int8Network`."""
        ...


def precisions_of(runtime: Runtime) -> tuple[str, ...]:
    """The precisions of the networks that a runtime takes."""
    return runtime.precisions if isinstance(runtime, TakesPrecisions) else (FP32,)


def is_device(name: str) -> bool:
    """Whether it is a device that can be measured: the CPU, or a CUDA device as torch writes it."""
    try:
        return torch.device(name).type in ("cpu", "cuda")
    except RuntimeError:
        return False


def uncalibrated(runtime: Runtime) -> Calibrates | None:
    """The runtime where it still wants samples; None for all others."""
    return runtime if isinstance(runtime, Calibrates) and runtime.calibration_samples else None


def frozen_copy(model: nn.Module, device: str = "cpu") -> nn.Module:
    """A copy in evaluation mode, without gradients, on `device`."""
    with warnings.catch_warnings():
        # torch 2.13 deprecates a class that its own exported programs hold
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        copied = copy.deepcopy(model)
    return copied.eval().requires_grad_(False).to(device)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Hold torch to a number of CPU threads, then give back what was set before.

    Not for every call: setting the number empties oneDNN's cache of compiled kernels
    (torch 2.13), so that the next call of every layer is slow.
    """
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_threads(runtime: str, threads: int) -> None:
    """Raise AutopruneError for a number of threads that nothing can run on."""
    if threads < 1:
        raise AutopruneError(f"runtime {runtime!r} has {threads} threads; choose 1 or more")


def call_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the named arguments by which a network is called on inputs."""
    if isinstance(inputs, dict):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def exported(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The program of a network for the shapes of `inputs`.

    Raises TrialError (cause runtime) for a network that torch.export cannot follow.
    """
    args, kwargs = call_arguments(inputs)
    try:
        with silence():
            return torch.export.export(model, args, kwargs)
    except Exception as error:  # torch.export raises whatever the network's code runs into
        raise TrialError(
            Cause.RUNTIME,
            f"the network cannot be exported by torch.export: {first_line(error)}; choose the "
            "runtime eager",
        ) from error
