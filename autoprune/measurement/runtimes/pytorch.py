"""PyTorch as a runtime to measure on: as it is, compiled, ahead of time, and as a CUDA graph."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line, unknown
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.runtimes.protocol import (
    TOLERANCES,
    Inference,
    check_threads,
    exported,
    frozen_copy,
    is_device,
    torch_threads,
)
from autoprune.measurement.runtimes.silence import silence
from autoprune.tasks.protocol import Inputs, forward, map_inputs, move

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
"""What a network is converted to; None leaves it in the types that it has."""

MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
Forward = Callable[[Inputs], object]
Loader = Callable[[], Forward]
"""Loads what an engine made; a second call puts it elsewhere in memory."""


@dataclass(frozen=True, slots=True)
class TorchRuntime:
    """PyTorch in evaluation and inference mode.

    `engine` is ``eager``; ``compile`` (torch.compile, one graph, fixed shapes); ``aot``
    (torch.export and AOTInductor, what a C++ server loads); or ``graph``, a CUDA graph that is
    replayed. The second and third need a C++ compiler and take tens of seconds a network.
    `precision` ``bf16`` converts weights and inputs; ``fp32`` leaves them in the types that they
    have, as networks that cast by themselves need it. `memory_format` is ``contiguous`` or
    ``channels_last``, which convolutions on processors like. On CUDA a call ends when the device is
    idle, and time is taken by events on the device.
    """

    engine: str = "eager"
    threads: int = 1
    device: str = "cpu"
    precision: str = "fp32"
    memory_format: str = "contiguous"

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, Iterable[str]]] = {
            "engine": (self.engine, ENGINES),
            "precision": (self.precision, PRECISIONS),
            "memory format": (self.memory_format, MEMORY_FORMATS),
        }
        for what, (name, known) in choices.items():
            if name not in known:
                raise unknown(what, name, known)
        check_threads(self.name, self.threads)
        if not is_device(self.device):
            raise AutopruneError(
                f"runtime {self.name!r} on device {self.device!r}: no such device; "
                "choose cpu, cuda or cuda:<number>"
            )
        if self.engine == "graph" and torch.device(self.device).type != "cuda":
            raise AutopruneError(
                f"runtime 'graph' replays CUDA graphs and has device {self.device!r}; set device "
                "to cuda, or choose eager, compile or aot"
            )

    @property
    def name(self) -> str:
        """The engine, with the precision and the memory format where they are not the usual."""
        usual = ("fp32", "contiguous")
        chosen = (part for part in (self.precision, self.memory_format) if part not in usual)
        return " ".join([self.engine, *chosen])

    @property
    def library(self) -> str:
        """The version of torch."""
        return f"torch {torch.__version__}"

    @property
    def tolerance(self) -> float:
        """How far outputs may be from eager PyTorch in float32, as a part of the largest one."""
        return TOLERANCES[self.precision]

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        """A call of a copy of `model` on the device, by the engine.

        Raises TrialError (cause runtime) for a network that the engine cannot express, and
        AutopruneError where a device or a compiler is missing.
        """
        device = torch.device(self.device)
        if device.type == "cuda":
            self._check_cuda(device)
        dtype, layout = PRECISIONS[self.precision], MEMORY_FORMATS[self.memory_format]
        ready = frozen_copy(model, self.device)
        ready = ready if dtype is None else ready.to(dtype)
        ready = ready.to(memory_format=layout)  # type: ignore[call-overload]  # torch 2.13 lacks it
        inputs = map_inputs(lambda x: _formatted(x, dtype, layout), move(example, device))
        # compiled kernels are made for the number of threads that torch has just then
        with torch_threads(self.threads), torch.inference_mode():
            load = ENGINES[self.engine](ready, inputs)
        if device.type == "cuda":
            return _OnCuda(load(), inputs, device)
        return _OnCpu(load, inputs)

    def _check_cuda(self, device: torch.device) -> None:
        """Raise AutopruneError where this machine does not show the device."""
        if not torch.cuda.is_available():
            raise AutopruneError(
                f"runtime {self.name!r} on device {self.device!r}: this machine shows no CUDA "
                "device; choose device cpu, or measure on a machine with one"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise AutopruneError(
                f"runtime {self.name!r} on device {self.device!r}: this machine has "
                f"{torch.cuda.device_count()} CUDA devices, counted from 0; choose one of them"
            )


class _OnCpu:
    """An inference on the CPU."""

    def __init__(self, load: Loader, inputs: Inputs) -> None:
        self._load, self._inputs = load, inputs
        self.reload()

    def __call__(self) -> object:
        with torch.inference_mode():
            return self._run(self._inputs)

    def reload(self) -> None:
        """Load what the engine made to another place in memory."""
        self._run = self._load()


@dataclass(frozen=True, slots=True)
class _OnCuda:
    """An inference on a CUDA device, timed by events on its stream."""

    run: Forward
    inputs: Inputs
    device: torch.device

    def __call__(self) -> object:
        with torch.inference_mode():
            outputs = self.run(self.inputs)
        torch.cuda.synchronize(self.device)
        return outputs

    def seconds(self) -> float:
        """What one inference takes on the device."""
        with torch.cuda.device(self.device), torch.inference_mode():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            self.run(self.inputs)
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def _moved(model: nn.Module) -> None:
    """Copy the weights of a network on the CPU to another place in memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.detach().clone()


def _formatted(
    tensor: torch.Tensor, dtype: torch.dtype | None, layout: torch.memory_format
) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    fits = tensor.ndim == 4 or layout is torch.contiguous_format
    layout = layout if fits else torch.preserve_format
    return tensor.to(dtype=dtype or tensor.dtype, memory_format=layout)


def _eager(model: nn.Module, inputs: Inputs) -> Loader:
    del inputs

    def load() -> Forward:
        _moved(model)
        return lambda given: forward(model, given)

    return load


def _compiled(model: nn.Module, inputs: Inputs) -> Loader:
    # A network of its own code each: torch.compile counts what it makes of one piece of code, and
    # silently goes back to eager after a few candidates of one class (torch 2.13)
    program = exported(model, inputs).module()
    compiled: Any = torch.compile(program, fullgraph=True, dynamic=False)
    _compiling(lambda: forward(compiled, inputs))

    def load() -> Forward:
        _moved(program)
        return lambda given: forward(compiled, given)

    return load


def _ahead_of_time(model: nn.Module, inputs: Inputs) -> Loader:
    program = exported(model, inputs)
    package = _compiling(lambda: torch._inductor.aoti_compile_and_package(program))

    def load() -> Forward:
        loaded = torch._inductor.aoti_load_package(package)
        return lambda given: forward(loaded, given)

    return load


def _graphed(model: nn.Module, inputs: Inputs) -> Loader:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # as CUDA asks for before a capture: lazy handles are made here
            forward(model, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            outputs = forward(model, inputs)
    except RuntimeError as error:
        raise TrialError(
            Cause.RUNTIME,
            f"the network cannot be captured as a CUDA graph: {first_line(error)}; choose eager",
        ) from error

    def replay(given: Inputs) -> object:
        assert given is inputs, "a graph replays the inputs that it was captured with"
        graph.replay()
        return outputs

    return lambda: replay


ENGINES: dict[str, Callable[[nn.Module, Inputs], Loader]] = {
    "eager": _eager,
    "compile": _compiled,
    "aot": _ahead_of_time,
    "graph": _graphed,
}


def _compiling(work: Callable[[], Any]) -> Any:
    from torch._inductor import config, exc

    # by itself Inductor starts a pool of processes, which outlive the measurement
    with config.patch(compile_threads=1), silence():
        try:
            return work()
        except Exception as error:
            if isinstance(error, exc.InvalidCxxCompiler) or "C++ compiler" in str(error):
                raise AutopruneError(
                    "the engines compile and aot need a C++ compiler, and none works here; "
                    "install g++, or choose the engine eager"
                ) from error
            raise TrialError(
                Cause.RUNTIME,
                f"the network cannot be compiled: {first_line(error)}; choose the engine eager",
            ) from error
