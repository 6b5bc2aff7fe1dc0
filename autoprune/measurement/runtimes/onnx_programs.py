"""Programs of ONNX: how they are made of networks, loaded, and given their inputs.

Needs the extra ``autoprune[onnx]``.
"""

import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.difference import arrays_of
from autoprune.measurement.runtimes.protocol import call_arguments
from autoprune.measurement.runtimes.silence import silence
from autoprune.tasks.protocol import Inputs, map_inputs

CPU = "CPUExecutionProvider"
BATCH = "batch"
"""What the free first axis of inputs and outputs is called in a program."""

Feed = Mapping[str, NDArray[Any]]
"""The inputs of one call by their names in the program."""

_EXTRA = ("onnx", "onnxscript", "onnxruntime")


def require_extra() -> None:
    """Raise AutopruneError where a package of the extra is missing."""
    for module in _EXTRA:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise AutopruneError(
                f"runtime 'onnx' needs the package {module!r}, which is not installed; "
                "pip install 'autoprune[onnx]'"
            ) from error


def export_onnx(model: nn.Module, example: Inputs, path: Path, *, free_batch: bool = False) -> None:
    """Write the program of a network in evaluation mode, on the CPU, for the example's shapes.

    With `free_batch` the first axis of every input may have any size. Raises TrialError (cause
    runtime) for a network that torch's exporter cannot follow.
    """
    shapes: dict[str, Any] = {}
    if free_batch:
        # torch.export takes an axis of size 1 for a constant
        example = map_inputs(lambda x: torch.cat([x[:1], x[:1]]), example)
        example = _in_order(model, example) if isinstance(example, dict) else example
        shapes["dynamic_shapes"] = _batch_free(example)
    args, kwargs = call_arguments(example)
    try:
        with silence():
            program = torch.onnx.export(
                model, args, kwargs=kwargs, dynamo=True, verbose=False, **shapes
            )
            assert program is not None
            program.save(path)
    except torch.onnx.OnnxExporterError as error:
        how = " with the batch free" if free_batch else ""
        remedy = (
            "let forward take batches of any size" if free_batch else "choose the runtime eager"
        )
        raise TrialError(
            Cause.RUNTIME,
            f"the network cannot be exported to ONNX{how}: {_reason(error)}; {remedy}",
        ) from error


def _in_order(model: nn.Module, example: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs by name in the order of the network's arguments, as torch 2.13 wants free axes."""
    names = [*inspect.signature(model.forward).parameters, *example]
    return {name: example[name] for name in sorted(example, key=names.index)}


def _batch_free(example: Inputs) -> Any:
    """What torch.onnx takes as the axes that are free."""
    if isinstance(example, dict):
        return {name: {0: BATCH} for name in example}
    args, _ = call_arguments(example)
    return tuple({0: BATCH} for _ in args)


def feed(session: Any, inputs: Inputs) -> Feed:
    """The inputs of a network as a session of its program takes them."""
    names = [node.name for node in session.get_inputs()]
    if isinstance(inputs, dict) and set(names) <= set(inputs):
        return {name: inputs[name].numpy() for name in names}
    arrays = arrays_of(inputs)
    assert len(arrays) == len(names), f"{len(arrays)} inputs for an ONNX program of {names}"
    return dict(zip(names, arrays, strict=True))


def session_options(threads: int) -> Any:
    """Options of a session that computes on so many threads.

    They do not spin while they wait, which would steal the cores of whoever trains beside them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options


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
