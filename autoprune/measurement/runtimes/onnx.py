"""ONNX Runtime as a runtime to measure on. Needs the extra ``autoprune[onnx]``."""

import importlib
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import nn

from autoprune.domain.errors import AutopruneError, first_line, unknown
from autoprune.domain.space import FP32, INT8, PRECISIONS
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.runtimes.int8_network import Int8Network
from autoprune.measurement.runtimes.onnx_int8 import batches, quantised
from autoprune.measurement.runtimes.onnx_programs import (
    CPU,
    Feed,
    export_onnx,
    feed,
    require_extra,
    session_options,
)
from autoprune.measurement.runtimes.protocol import (
    TOLERANCES,
    Inference,
    check_threads,
    frozen_copy,
)
from autoprune.tasks.protocol import Inputs, move

_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
CALIBRATION_SAMPLES = 128


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime on the program that torch's exporter writes for the example's shapes.

    `providers` are asked for in this order; the first must really be used. `precision` is
    ``fp32`` or ``int8``: ONNX Runtime's own static quantiser, weights by channel, with the ranges
    of activations over `calibration`, inputs as the network receives them. In fp32 it also takes
    networks that are in 8 bits already (`Int8Network`), and runs their own programs.
    """

    threads: int = 1
    providers: tuple[str, ...] = (CPU,)
    precision: str = FP32
    calibration: tuple[Inputs, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "providers", tuple(self.providers))  # from a config, a list
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        check_threads(self.name, self.threads)
        if not self.providers:
            raise AutopruneError(f"runtime 'onnx' has no provider; choose for example {CPU!r}")
        require_extra()

    @property
    def name(self) -> str:
        """``onnx``, with the precision where it is not the usual."""
        return "onnx" if self.precision == FP32 else f"onnx {self.precision}"

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of networks that it takes: int8 where it leaves them as they are, and on
        the CPU, whose kernels the quantiser writes for.
        """
        return PRECISIONS if self.precision == FP32 and self.device == "cpu" else (FP32,)

    @property
    def tolerance(self) -> float:
        """How far outputs may be from eager PyTorch in float32, as a part of the largest one."""
        return TOLERANCES[self.precision]

    @property
    def calibration_samples(self) -> int:
        """How many samples it wants; 0 where it needs none, or has them."""
        wants = self.precision == INT8 and not self.calibration
        return CALIBRATION_SAMPLES if wants else 0

    def calibrated(self, inputs: Sequence[Inputs]) -> Self:
        """The same runtime with inputs of the network, in batches of any size."""
        return replace(self, calibration=tuple(inputs))

    @property
    def library(self) -> str:
        """The version of ONNX Runtime, whose packages for GPUs go by other names."""
        return f"onnxruntime {importlib.import_module('onnxruntime').__version__}"

    @property
    def device(self) -> str:
        """Where the first provider runs: CUDA's and TensorRT's on ``cuda:0``, any other on ``cpu``.

        Some of the others drive a device that torch has no name for (OpenVINO's, CoreML's): a
        time of theirs goes by the name of the CPU beside it.
        """
        return "cuda:0" if self.providers[0] in _CUDA else "cpu"

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        """Export a copy of `model` and load it.

        Raises TrialError (cause runtime) for a network that cannot be exported or loaded,
        AutopruneError for a provider that is not there.
        """
        require_extra()
        import onnxruntime

        missing = set(self.providers) - set(onnxruntime.get_available_providers())
        if missing:
            raise AutopruneError(
                f"runtime 'onnx' asks for providers {sorted(missing)}; this ONNX Runtime has "
                f"{onnxruntime.get_available_providers()}; choose from these or install its build"
            )
        example = move(example, "cpu")
        with ExitStack() as stack:
            # A file, for protobuf holds no more than 2 GB in memory.
            folder = tempfile.TemporaryDirectory(prefix="autoprune-onnx-")
            path = Path(stack.enter_context(folder)) / "model.onnx"
            if isinstance(model, Int8Network):
                path.write_bytes(model.program)
            else:
                export_onnx(frozen_copy(model), example, path)
                if self.precision == INT8:
                    path = quantised(path, self._feeds(path, example))
            return _Program(partial(self._session, path), example, stack.pop_all())

    def _feeds(self, path: Path, example: Inputs) -> list[Feed]:
        """The calibration as the program at `path` takes it, in batches of the example's shape."""
        import onnxruntime

        heard = batches(self.calibration, example)
        session = onnxruntime.InferenceSession(path, providers=[CPU])
        return [feed(session, batch) for batch in heard]

    def _session(self, path: Path) -> Any:
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(
                path, session_options(self.threads), providers=list(self.providers)
            )
        except Exception as error:
            raise TrialError(
                Cause.RUNTIME,
                f"ONNX Runtime cannot load the exported network: {first_line(error)}; choose "
                "another runtime",
            ) from error
        # ONNX Runtime falls back to the CPU with no more than a log line.
        if session.get_providers()[0] != self.providers[0]:
            raise AutopruneError(
                f"ONNX Runtime could not start {self.providers[0]!r} and would use "
                f"{session.get_providers()[0]!r}; mend its libraries or choose the latter"
            )
        return session


class _Program:
    """An inference of an exported program; its `files` go when it does."""

    def __init__(self, load: Callable[[], Any], example: Inputs, files: ExitStack) -> None:
        self._load, self._example = load, example
        weakref.finalize(self, files.close)
        self.reload()

    def __call__(self) -> object:
        return self._run()

    def reload(self) -> None:
        """Load the program's file into a session of its own."""
        session = self._load()
        self._run = partial(session.run, None, feed(session, self._example))
