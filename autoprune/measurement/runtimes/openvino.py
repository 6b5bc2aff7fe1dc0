"""OpenVINO as a runtime to measure on. Needs the extra ``autoprune[openvino]``."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_leaves

from autoprune.domain.errors import AutopruneError, first_line, unknown
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.runtimes.protocol import (
    TOLERANCES,
    Inference,
    check_threads,
    exported,
    frozen_copy,
)
from autoprune.measurement.runtimes.silence import silence
from autoprune.tasks.protocol import Inputs, move

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


@dataclass(frozen=True, slots=True)
class OpenVinoRuntime:
    """OpenVINO's CPU plugin on the program that torch.export makes for the example's shapes.

    One stream, for the lowest latency, on `threads` threads that are not pinned to cores.
    `precision` is what the plugin computes in: ``fp32``, or ``bf16`` where the processor has it.
    """

    threads: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_threads(self.name, self.threads)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        _openvino()

    @property
    def name(self) -> str:
        """``openvino``, with the precision where it is not the usual."""
        return "openvino" if self.precision == "fp32" else f"openvino {self.precision}"

    @property
    def library(self) -> str:
        """The version of OpenVINO."""
        return f"openvino {_openvino().__version__}"

    @property
    def device(self) -> str:
        """``cpu``."""
        return "cpu"

    @property
    def tolerance(self) -> float:
        """How far outputs may be from eager PyTorch in float32, as a part of the largest one."""
        return TOLERANCES[self.precision]

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        """Export a copy of `model`, convert it, and compile it for the plugin.

        Raises TrialError (cause runtime) for a network that cannot be expressed.
        """
        openvino = _openvino()
        example = move(example, "cpu")
        with torch.no_grad():
            program = exported(frozen_copy(model), example)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
        }
        try:
            with silence():
                converted = openvino.convert_model(program)
            return _Program(
                lambda: _core().compile_model(converted, "CPU", settings),
                _in_order(program, example),
            )
        except Exception as error:  # whatever the front end or the plugin raises
            raise TrialError(
                Cause.RUNTIME,
                f"OpenVINO cannot run the network: {_reason(error)}; choose another runtime",
            ) from error


class _Program:
    """An inference of a converted program on inputs in its order."""

    def __init__(self, compile_: Callable[[], Any], arrays: list[NDArray[Any]]) -> None:
        self._compile, self._arrays = compile_, arrays
        self.reload()

    def __call__(self) -> object:
        found = self._request.infer(self._arrays, share_inputs=True, share_outputs=True)
        return [found[i] for i in range(self._outputs)]

    def reload(self) -> None:
        """Compile the program for the plugin, once more."""
        with silence():
            compiled = self._compile()
        self._request, self._outputs = compiled.create_infer_request(), len(compiled.outputs)


@cache
def _core() -> Any:
    """The process's one core, which lives as long as it does.

    Each core's CPU plugin gives the thread that makes it a stack for signals, and takes that stack
    away with itself: where programs of two cores ended in another order than LIFO, or in another
    thread, the next Ctrl-C was a segmentation fault (OpenVINO 2026.4, `SigAltStackSetup`).
    """
    return _openvino().Core()


def _in_order(program: torch.export.ExportedProgram, example: Inputs) -> list[NDArray[Any]]:
    """The example's tensors as arrays, in the order of the program's inputs."""
    if isinstance(example, dict):
        names = program.graph_signature.user_inputs
        return [example[name].numpy() for name in names if isinstance(name, str)]
    return [leaf.numpy() for leaf in tree_leaves(example)]


def _reason(error: Exception) -> str:
    """The operators at fault where OpenVINO names them, otherwise its first complaint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "No conversion rule found" in line or "operation" in line]
    return named[0][:300] if named else first_line(error)


def _openvino() -> Any:
    # it would report its use to its makers
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    try:
        return import_module("openvino")
    except ImportError as error:
        raise AutopruneError(
            "runtime 'openvino' needs the package 'openvino', which is not installed; "
            "pip install 'autoprune[openvino]'"
        ) from error
