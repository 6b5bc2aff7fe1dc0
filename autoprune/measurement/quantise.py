"""Static quantisation after training: a network in 8 bits, by ONNX Runtime's quantiser."""

import tempfile
from itertools import islice
from pathlib import Path

from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.runtimes.int8_network import Int8Network
from autoprune.measurement.runtimes.onnx_int8 import quantised
from autoprune.measurement.runtimes.onnx_programs import (
    CPU,
    export_onnx,
    feed,
    require_extra,
    session_options,
)
from autoprune.measurement.runtimes.protocol import frozen_copy
from autoprune.tasks.protocol import Inputs, Task, heard_inputs, tensors_of


def quantise(model: nn.Module, task: Task, *, batches: int, seed: int) -> Int8Network:
    """The network with weights and activations in 8 bits; `model` is left as it is.

    Weights are symmetric, with a scale for every output channel; activations have the ranges that
    they have over `batches` batches of train, which `seed` draws (Jacob et al., Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018; here
    without training for it). Batch norm is folded into the layer before it.

    Raises TrialError (cause runtime) for a network that cannot be exported with the batch free, or
    not quantised, and AutopruneError where train has no batch of inputs like the task's example.
    """
    require_extra()
    import onnxruntime

    origin, example = frozen_copy(model), task.example()
    with tempfile.TemporaryDirectory(prefix="autoprune-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(origin, example, path, free_batch=True)
        session = onnxruntime.InferenceSession(path, session_options(1), providers=[CPU])
        feeds = [
            feed(session, inputs)
            for heard in islice(heard_inputs(model, task, "train", seed=seed), batches)
            for inputs in heard
            if _sample(inputs) == _sample(example)
        ]
        if not feeds:
            raise AutopruneError(
                "precision int8 needs data to calibrate with, and train has no batch of inputs of "
                f"shape {_sample(example)} a sample, as the task's example is; give it data, or "
                "choose precisions=[fp32]"
            )
        return Int8Network(quantised(path, feeds).read_bytes(), origin)


def _sample(inputs: Inputs) -> list[tuple[int, ...]]:
    """The shape of one sample of every input."""
    return [tuple(tensor.shape[1:]) for tensor in tensors_of(inputs)]
