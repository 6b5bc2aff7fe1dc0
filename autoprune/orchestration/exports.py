"""Networks written for other programs to run, beside what autoprune rebuilds them from."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.space import FP32, INT8
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.runtimes.int8_network import Int8Network
from autoprune.measurement.runtimes.onnx_programs import (
    CPU,
    export_onnx,
    feed,
    require_extra,
    session_options,
)
from autoprune.measurement.runtimes.protocol import TOLERANCES, frozen_copy
from autoprune.orchestration.onnx_files import ONNX_FILE
from autoprune.tasks.protocol import Inputs, Task, forward, map_inputs, network_inputs

FORMATS = ("onnx",)
BATCHES = (1, 3)
"""Sizes of the batches on which a program is held against the network."""


class ExportError(AutopruneError):
    """A network whose program computes something else."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A program that was written, the precision it is in, and how far its outputs are from those of
    PyTorch in fp32, as a part of the largest one.
    """

    path: Path
    precision: str
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.path} ({self.precision}, batch free; outputs differ from PyTorch's in fp32 by "
            f"up to {self.difference:.2g} of the largest one)"
        )


def check_formats(key: str, formats: Sequence[str]) -> None:
    """Raise AutopruneError for a format that there is not, and where an extra is missing."""
    for name in formats:
        if name not in FORMATS:
            raise AutopruneError(f"{key}: {unknown('format', name, FORMATS)}")
    if formats:
        require_extra()


def export_network(network: nn.Module, task: Task, folder: Path) -> Exported:
    """Write a network into its folder as ``model.onnx``, with the batch free, and compare it.

    It is run on samples of val, in batches of `BATCHES`. The program of a network in int8 is there
    already, and how far it is off is told only. Raises ExportError where a program in fp32 is off
    by more than rounding explains, TrialError (cause runtime) for a network that cannot be
    exported.
    """
    path = folder / ONNX_FILE
    if isinstance(network, Int8Network):
        assert network.origin is not None, "load gives a network its origin"
        off = _difference(network.program, network.origin, _samples(network.origin, task))
        return Exported(path, INT8, off)
    model = frozen_copy(network)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".draft-") as place:
        draft = Path(place) / ONNX_FILE
        export_onnx(model, task.example(), draft, free_batch=True)
        off = _difference(str(draft), model, _samples(model, task))
        if not off <= TOLERANCES[FP32]:
            raise ExportError(
                f"the ONNX program of {folder} differs from the network by {off:.2g} of the "
                f"largest output; at most {TOLERANCES[FP32]:g} is allowed: its forward must not "
                "depend on the batch size or on chance"
            )
        for file in Path(place).iterdir():  # weights beyond 2 GB are a file of their own
            file.replace(folder / file.name)
    return Exported(path, FP32, off)


def _samples(model: nn.Module, task: Task) -> Inputs:
    """Some samples of val as the network is given them."""
    return network_inputs(model, task, "val", most=1)[0]


def _difference(program: str | bytes, model: nn.Module, samples: Inputs) -> float:
    """How far a program is off a network, in the worst of the batches."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program, session_options(1), providers=[CPU])
    worst = 0.0
    for size in BATCHES:
        batch: Inputs = map_inputs(itemgetter(slice(size)), samples)
        with torch.no_grad():
            expected = forward(model, batch)
        worst = max(worst, relative_difference(session.run(None, feed(session, batch)), expected))
    return worst
