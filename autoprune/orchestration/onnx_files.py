"""Programs of ONNX in files, read without reaching for anything outside of them.

ONNX Runtime (1.31) reads the tensors that a program says are in other files, and hands nodes of its
execution providers the files that they name.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.runtimes.onnx_programs import require_extra
from autoprune.orchestration.untrusted import UntrustedError, check_file, memory, read_bytes

ONNX_FILE = "model.onnx"
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Where operators come from that ONNX Runtime has by itself."""

FILES = ("EPContext",)
"""Those of them that read files."""


def read_onnx(path: Path) -> bytes:
    """The program in a file. No code from the file is run, and no other file is read.

    Raises AutopruneError for what is no program, and for one that names files or operators which
    ONNX Runtime has not by itself.
    """
    require_extra()
    onnx = importlib.import_module("onnx")
    try:
        program = read_bytes(path, most=check_file(path, most=memory()))
        model = onnx.load_model_from_string(program)
    except OSError:
        raise AutopruneError(
            f"no program at {path}, which the recipe beside it says is in int8; restore it from a "
            "copy"
        ) from None
    except UntrustedError:
        raise
    except Exception as error:  # protobuf raises what it likes
        raise AutopruneError(
            f"{path} is not a program of ONNX ({type(error).__name__}); restore it from a copy"
        ) from error
    fault = next(_faults(model), None)
    if fault is not None:
        raise UntrustedError(f"{path} holds {fault}; export the network again, into one file")
    return program


def _faults(model: Any) -> Iterator[str]:
    """What of a program is not in it."""
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto" and (message.external_data or message.data_location):
            yield f"the tensor {message.name[:80]!r} in another file"
        if kind == "NodeProto" and (message.domain not in DOMAINS or message.op_type in FILES):
            yield f"the operator {message.op_type[:80]!r} of {message.domain[:80]!r}"


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message with all that are in it, however deep."""
    left = [message]
    while left:
        found = left.pop()
        yield found
        for field, value in found.ListFields():
            if field.message_type is not None:
                left += [value] if hasattr(value, "ListFields") else value
