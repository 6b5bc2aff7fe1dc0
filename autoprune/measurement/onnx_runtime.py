"""ONNX Runtime as a runtime to measure on. Needs the extra ``autoprune[onnx]``."""

import importlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._pytree import tree_leaves

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.runtimes import Inference, check_threads, frozen_copy
from autoprune.tasks.protocol import Inputs, forward, move

_CPU = "CPUExecutionProvider"
_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_NOISY_LOGGERS = ("torch", "torch.onnx", "torch.fx.experimental", "onnxscript", "onnx_ir")
_EXTRA = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime on the program that torch's exporter writes for the example's shapes.

    The threads do not spin while they wait, which would steal the cores of whoever trains
    beside them. `providers` are asked for in this order; the first must really be used. A time
    is only believed where the outputs agree with eager PyTorch within `tolerance`, as a part of
    the largest output.
    """

    threads: int = 1
    providers: tuple[str, ...] = (_CPU,)
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_threads(self.name, self.threads)
        if not self.providers:
            raise AutopruneError(f"runtime 'onnx' has no provider; choose for example {_CPU!r}")
        _require_extra()

    @property
    def name(self) -> str:
        """``onnx``."""
        return "onnx"

    @property
    def library(self) -> str:
        """The version of ONNX Runtime."""
        return f"onnxruntime {version('onnxruntime')}"

    @property
    def device(self) -> str:
        """Where the first provider runs: CUDA's and TensorRT's on ``cuda:0``, any other on ``cpu``.

        Some of the others drive a device that torch has no name for (OpenVINO's, CoreML's): a
        time of theirs goes by the name of the CPU beside it.
        """
        return "cuda:0" if self.providers[0] in _CUDA else "cpu"

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        """Export a copy of `model`, load it, and compare its outputs with eager PyTorch.

        Raises TrialError (cause runtime) for a network that cannot be exported or loaded, or
        whose outputs differ; AutopruneError for a provider that is not there.
        """
        _require_extra()
        example = move(example, "cpu")
        ready = frozen_copy(model)
        with torch.inference_mode():
            expected = _arrays(forward(ready, example))
        session = self._session(ready, example)
        infer: Inference = partial(session.run, None, _feed(session, example))
        difference = relative_difference(_arrays(infer()), expected)
        if not difference <= self.tolerance:
            raise TrialError(
                Cause.RUNTIME,
                f"the outputs of ONNX Runtime differ from those of eager PyTorch by "
                f"{difference:.2g} of the largest output; at most {self.tolerance:g} is allowed, "
                "so its time means nothing; choose the runtime eager or raise the tolerance",
            )
        return infer

    def _session(self, model: nn.Module, example: Inputs) -> Any:
        import onnxruntime

        missing = set(self.providers) - set(onnxruntime.get_available_providers())
        if missing:
            raise AutopruneError(
                f"runtime 'onnx' asks for providers {sorted(missing)}; this ONNX Runtime has "
                f"{onnxruntime.get_available_providers()}; choose from these or install its build"
            )
        # A file, for protobuf holds no more than 2 GB in memory.
        with tempfile.TemporaryDirectory(prefix="autoprune-onnx-") as folder:
            path = Path(folder) / "model.onnx"
            _export(model, example, path)
            try:
                session = onnxruntime.InferenceSession(
                    path, self._options(), providers=list(self.providers)
                )
            except Exception as error:
                raise TrialError(
                    Cause.RUNTIME, f"ONNX Runtime cannot load the exported network: {error}"
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
    args, kwargs = _call_arguments(example)
    try:
        with _silence():
            program = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
            assert program is not None
            program.save(path)
    except torch.onnx.OnnxExporterError as error:
        raise TrialError(
            Cause.RUNTIME,
            f"the network cannot be exported to ONNX: {_reason(error)}; choose the runtime eager",
        ) from error


def _call_arguments(example: Inputs) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), None


def _feed(session: Any, example: Inputs) -> dict[str, NDArray[Any]]:
    names = [node.name for node in session.get_inputs()]
    if isinstance(example, dict) and set(names) <= set(example):
        return {name: example[name].numpy() for name in names}
    arrays = _arrays(example)
    assert len(arrays) == len(names), f"{len(arrays)} inputs for an ONNX program of {names}"
    return dict(zip(names, arrays, strict=True))


def _arrays(outputs: Any) -> list[NDArray[Any]]:
    leaves = (leaf for leaf in tree_leaves(outputs) if isinstance(leaf, (torch.Tensor, np.ndarray)))
    return [leaf.numpy() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


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


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's reports of progress and missing libraries off the screen."""
    levels: Mapping[logging.Logger, int] = {
        logger: logger.level for logger in map(logging.getLogger, _NOISY_LOGGERS)
    }
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for logger, level in levels.items():
            logger.setLevel(logging.CRITICAL)
            stack.callback(logger.setLevel, level)
        yield
