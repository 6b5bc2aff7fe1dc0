"""Programs of ONNX in 8 bits, by ONNX Runtime's static quantiser."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.runtimes.onnx_programs import Feed
from autoprune.measurement.runtimes.silence import silence
from autoprune.tasks.protocol import Inputs, map_inputs, tensors_of


def batches(calibration: Sequence[Inputs], example: Inputs) -> list[Inputs]:
    """The calibration's samples in batches of the example's shape.

    Raises AutopruneError where there are not enough for one.
    """
    shapes = [tensor.shape for tensor in tensors_of(example)]
    size, found = shapes[0][0], []
    for inputs in calibration:
        for start in range(0, len(tensors_of(inputs)[0]) - size + 1, size):
            batch: Inputs = map_inputs(partial(_rows, start=start, size=size), inputs)
            if [tensor.shape for tensor in tensors_of(batch)] == shapes:
                found.append(batch)
    if not found:
        raise AutopruneError(
            "precision int8 needs data to calibrate with, and there are no inputs of shape "
            f"{[tuple(shape) for shape in shapes]}; give the runtime a calibration, or a smaller "
            "batch size"
        )
    return found


def _rows(tensor: torch.Tensor, *, start: int, size: int) -> torch.Tensor:
    return tensor[start : start + size]


def quantised(path: Path, feeds: Sequence[Feed]) -> Path:
    """The program with 8-bit weights and activations, beside the one at `path`.

    The ranges of activations are those over `feeds`. Raises TrialError (cause runtime) for a
    program that the quantiser cannot rewrite.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    left = iter(feeds)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def get_next(self) -> Any:
            return next(left, None)

    ready, written = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    try:
        with silence():
            quant_pre_process(path, ready, skip_symbolic_shape=True)
            quantize_static(
                ready,
                written,
                Reader(),
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
            )
    except Exception as error:  # whatever the quantiser does not know
        raise TrialError(
            Cause.RUNTIME,
            f"ONNX Runtime cannot quantise the network: {first_line(error)}; choose precision fp32",
        ) from error
    return written
