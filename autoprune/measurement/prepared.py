"""Networks made ready for a runtime, once they are known to compute what they should."""

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.space import INT8
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.device import usable_cores
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.runtimes.int8_network import Int8Network
from autoprune.measurement.runtimes.protocol import (
    TOLERANCES,
    Inference,
    Runtime,
    frozen_copy,
    precisions_of,
    torch_threads,
)
from autoprune.tasks.protocol import Inputs, forward, map_inputs, tensors_of

_KEPT = 8
_PREPARED: "weakref.WeakKeyDictionary[nn.Module, deque[tuple[Any, Inference]]]" = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True, slots=True)
class Ready:
    """A network ready to be timed, and how far its outputs are from eager PyTorch's, as a part of
    the largest entry.
    """

    infer: Inference
    off_eager: float


def ready(runtime: Runtime, model: nn.Module, example: Inputs) -> Ready:
    """A network ready to be timed, once it is known to compute what eager PyTorch computes.

    A network in 8 bits is held against its own outputs. Raises what `runtime.prepare` raises,
    TrialError (cause runtime) where outputs differ by more than the runtime's tolerance or the
    runtime does not take the network's precision, TrialError (cause out of memory) where the batch
    does not fit, and AutopruneError for more threads than the process has cores.
    """
    _check_cores(runtime)
    if isinstance(model, Int8Network) and INT8 not in precisions_of(runtime):
        raise TrialError(
            Cause.RUNTIME,
            f"the network is in int8, and runtime {runtime.name!r} takes networks in fp32 only; "
            "choose onnxruntime, or the network's `origin`, which is in fp32",
        )
    with fitting(len(tensors_of(example)[0])):
        # copies, for a network may write into what it is given
        infer = runtime.prepare(model, _copied(example))
        with torch_threads(runtime.threads), torch.no_grad():
            reference = frozen_copy(model)
            expected = forward(reference, _copied(example))
            difference = relative_difference(infer(), expected)
            tolerance = max(runtime.tolerance, _own_tolerance(model))
            if difference <= tolerance:
                return Ready(infer, difference)
            again = relative_difference(forward(reference, _copied(example)), expected)
    if again > tolerance:
        raise TrialError(
            Cause.RUNTIME,
            f"the network is random: on one input its outputs differ by {again:.2g} of the largest "
            "one from call to call, in evaluation mode, too; what it computes cannot be checked; "
            "let chance depend on self.training",
        )
    raise TrialError(
        Cause.RUNTIME,
        f"the outputs of runtime {runtime.name!r} differ from those of eager PyTorch by "
        f"{difference:.2g} of the largest one; at most {tolerance:g} is allowed, so "
        "its time means nothing; choose another runtime or precision",
    )


def _copied(example: Inputs) -> Inputs:
    copied: Inputs = map_inputs(lambda tensor: tensor.detach().cpu().clone(), example)
    return copied


def _own_tolerance(model: nn.Module) -> float:
    """How far outputs may be off because the network itself computes in 16 bits."""
    halves = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return TOLERANCES["bf16"] if halves else 0.0


def prepared(runtime: Runtime, model: nn.Module, example: Inputs) -> Inference:
    """`ready`, for whoever wants to time the network only."""
    return ready(runtime, model, example).infer


def _check_cores(runtime: Runtime) -> None:
    cores = usable_cores()
    if runtime.threads > cores:
        raise AutopruneError(
            f"runtime {runtime.name!r} has {runtime.threads} threads and this process may use "
            f"{cores} cores: they would wait for each other; set threads to {cores} at most"
        )


def prepared_once(runtime: Runtime, baseline: nn.Module, example: Inputs) -> Inference:
    """The same, prepared once a process for a network, a runtime and shapes.

    Kept beside the module, not in the meter: a worker unpickles a new meter for every trial. The
    last `_KEPT` of them are, for several batch sizes take turns.
    """
    key = (runtime, shapes(baseline.state_dict()), shapes(example))
    kept = _PREPARED.setdefault(baseline, deque(maxlen=_KEPT))
    found = next((infer for known, infer in kept if known == key), None)
    if found is None:
        found = prepared(runtime, baseline, example)
        kept.append((key, found))
    return found


def repeated(example: Inputs, batch_size: int) -> Inputs:
    """An example of batch size 1 as a batch of `batch_size`.

    Raises TrialError (cause out of memory) for a batch that does not fit.
    """
    with fitting(batch_size):
        batch: Inputs = map_inputs(
            lambda x: x.repeat(batch_size, *(1 for _ in x.shape[1:])), example
        )
    return batch


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    # torch 2.13 and ONNX Runtime 1.31 raise a bare RuntimeError where the CPU has no more
    signs = ("can't allocate memory", "not enough memory", "bad_alloc", "bad allocation")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(sign in str(error) for sign in signs)


@contextmanager
def fitting(batch_size: int) -> Iterator[None]:
    """Raise TrialError (cause out of memory) for a batch that does not fit inside."""
    try:
        yield
    except Exception as error:
        if isinstance(error, AutopruneError) or not out_of_memory(error):
            raise
        raise TrialError(
            Cause.OUT_OF_MEMORY,
            f"a batch of {batch_size} does not fit in memory ({first_line(error)}); choose "
            "smaller batch_sizes",
        ) from error


def shapes(tensors: Any) -> Any:
    """The shapes and types of nested tensors, as something that can be compared and hashed."""
    if isinstance(tensors, torch.Tensor):
        return tensors.shape, tensors.dtype
    if isinstance(tensors, dict):
        return tuple((name, shapes(tensor)) for name, tensor in tensors.items())
    if isinstance(tensors, tuple):
        return tuple(shapes(tensor) for tensor in tensors)
    return None
