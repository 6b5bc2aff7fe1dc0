"""ONNX Runtime as a runtime to measure on. Needs the extra ``autoprune[onnx]``."""

import importlib
import re
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line, unknown
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.difference import arrays_of
from autoprune.measurement.runtimes.onnx_int8 import Feed, batches, quantised
from autoprune.measurement.runtimes.protocol import (
    TOLERANCES,
    Inference,
    call_arguments,
    check_threads,
    frozen_copy,
)
from autoprune.measurement.runtimes.silence import silence
from autoprune.tasks.protocol import Inputs, move

_CPU = "CPUExecutionProvider"
_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
PRECISIONS = ("fp32", "int8")
CALIBRATION_SAMPLES = 128
_EXTRA = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime on the program that torch's exporter writes for the example's shapes.

    The threads do not spin while they wait, which would steal the cores of whoever trains
    beside them. `providers` are asked for in this order; the first must really be used.
    `precision` is ``fp32`` or ``int8``: ONNX Runtime's own static quantiser, weights by channel,
    with the ranges of activations over `calibration`, inputs as the network receives them.
    """

    threads: int = 1
    providers: tuple[str, ...] = (_CPU,)
    precision: str = "fp32"
    calibration: tuple[Inputs, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "providers", tuple(self.providers))  # from a config, a list
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        check_threads(self.name, self.threads)
        if not self.providers:
            raise AutopruneError(f"runtime 'onnx' has no provider; choose for example {_CPU!r}")
        _require_extra()

    @property
    def name(self) -> str:
        """``onnx``, with the precision where it is not the usual."""
        return "onnx" if self.precision == "fp32" else f"onnx {self.precision}"

    @property
    def tolerance(self) -> float:
        """How far outputs may be from eager PyTorch in float32, as a part of the largest one."""
        return TOLERANCES[self.precision]

    @property
    def calibration_samples(self) -> int:
        """How many samples it wants; 0 where it needs none, or has them."""
        wants = self.precision == "int8" and not self.calibration
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
        _require_extra()
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
            _export(frozen_copy(model), example, path)
            if self.precision == "int8":
                path = quantised(path, self._feeds(path, example))
            return _Program(partial(self._session, path), example, stack.pop_all())

    def _feeds(self, path: Path, example: Inputs) -> list[Feed]:
        """The calibration as the program at `path` takes it, in batches of the example's shape."""
        import onnxruntime

        heard = batches(self.calibration, example)
        session = onnxruntime.InferenceSession(path, providers=[_CPU])
        return [_feed(session, batch) for batch in heard]

    def _session(self, path: Path) -> Any:
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(
                path, self._options(), providers=list(self.providers)
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

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
        return options


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
        self._run = partial(session.run, None, _feed(session, self._example))


def _require_extra() -> None:
    for module in _EXTRA:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise AutopruneError(
                f"runtime 'onnx' needs the package {module!r}, which is not installed; "
                "pip install 'autoprune[onnx]'"
            ) from error


def _export(model: nn.Module, example: Inputs, path: Path) -> None:
    args, kwargs = call_arguments(example)
    try:
        with silence():
            program = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
            assert program is not None
            program.save(path)
    except torch.onnx.OnnxExporterError as error:
        raise TrialError(
            Cause.RUNTIME,
            f"the network cannot be exported to ONNX: {_reason(error)}; choose the runtime eager",
        ) from error


def _feed(session: Any, example: Inputs) -> Feed:
    names = [node.name for node in session.get_inputs()]
    if isinstance(example, dict) and set(names) <= set(example):
        return {name: example[name].numpy() for name in names}
    arrays = arrays_of(example)
    assert len(arrays) == len(names), f"{len(arrays)} inputs for an ONNX program of {names}"
    return dict(zip(names, arrays, strict=True))


def _reason(error: BaseException) -> str:
    """The operator at fault where the exporter names one, otherwise its innermost complaint."""
    innermost = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    for text in (str(innermost), str(error)):
        found = re.search(r"op='([\w.:]+)'", text)
        if found:
            return f"operator {found.group(1)!r} has no ONNX form"
    return str(innermost).strip().partition("\n")[0]
