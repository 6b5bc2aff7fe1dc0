"""What runs a network when its speed is measured: the runtime it will be deployed on."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.tasks.protocol import Inputs, forward, move

Inference = Callable[[], object]


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
    def threads(self) -> int:
        """CPU threads of one inference; whoever times it holds torch to them (`torch_threads`)."""
        ...

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        """A function that runs one inference on `example` and returns when it is done.

        It computes what `model` computes in evaluation mode. The model is left as it was and is
        not kept: what is returned works when the model is gone or has changed. Raises TrialError
        for a model that this runtime cannot run, AutopruneError where the runtime itself is
        missing.
        """
        ...


def frozen_copy(model: nn.Module, device: str = "cpu") -> nn.Module:
    """A copy in evaluation mode, without gradients, on `device`."""
    return copy.deepcopy(model).eval().requires_grad_(False).to(device)


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


@dataclass(frozen=True, slots=True)
class EagerRuntime:
    """PyTorch as it is: evaluation mode, inference mode; on CUDA a call ends synchronised."""

    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_threads(self.name, self.threads)
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise AutopruneError(
                f"runtime 'eager' on device {self.device!r}: no such device; "
                "choose cpu, cuda or cuda:<number>"
            ) from error

    @property
    def name(self) -> str:
        """``eager``."""
        return "eager"

    @property
    def library(self) -> str:
        """The version of torch."""
        return f"torch {torch.__version__}"

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        """A call of a copy of `model` on the device."""
        device = torch.device(self.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise AutopruneError(
                f"runtime 'eager' on device {self.device!r}: this machine shows no CUDA device; "
                "choose device cpu, or measure on a machine with one"
            )
        ready, inputs = frozen_copy(model, self.device), move(example, device)

        def infer() -> object:
            with torch.inference_mode():
                return forward(ready, inputs)

        def infer_synchronised() -> object:
            outputs = infer()
            torch.cuda.synchronize(device)
            return outputs

        return infer_synchronised if device.type == "cuda" else infer
