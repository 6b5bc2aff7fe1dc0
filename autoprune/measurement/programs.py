"""Networks as exported programs: how they travel to the machine that measures them.

Those in 8 bits are programs already, of ONNX.
"""

import io
import warnings

import torch
from torch import nn

from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.runtimes.int8_network import Int8Network
from autoprune.measurement.runtimes.protocol import TOLERANCES, exported, frozen_copy
from autoprune.tasks.protocol import Inputs, forward, move

_ARCHIVE = b"PK"
"""How the zip files of torch.export begin; those of ONNX begin with a field's number."""


def runnable(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The program as a network that can be copied, moved and put into evaluation mode.

    Without the checks of its inputs, which take time in every call (torch 2.13's `module()` hooks
    them in, and forbids `eval`).
    """
    module = program.module(check_guards=False)
    return torch.fx.GraphModule(module, module.graph)


def pack(model: nn.Module, example: Inputs) -> bytes:
    """A network in evaluation mode as an exported program for the example's shapes, on the CPU.

    The archive holds graph and weights, no code and no pickle. Raises TrialError (cause runtime)
    for a network that torch.export cannot follow, or whose program computes something else.
    """
    if isinstance(model, Int8Network):
        return model.program
    model, example = frozen_copy(model), move(example, "cpu")
    with torch.no_grad():
        program = exported(model, example)
        found, expected = forward(runnable(program), example), forward(model, example)
    difference = relative_difference(found, expected)
    if not difference <= TOLERANCES["fp32"]:
        raise TrialError(
            Cause.RUNTIME,
            f"the network's exported program computes something else: outputs differ by "
            f"{difference:.2g} of the largest one; measure with meter.where=trial",
        )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> nn.Module:
    """The network that `pack` made bytes of."""
    if not data.startswith(_ARCHIVE):
        return Int8Network(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 warns of its own deprecated tree types
        return runnable(torch.export.load(io.BytesIO(data)))
