"""The task protocol: what it means to train and to judge.

Whatever a batch is stays between a task's own methods: nobody else looks inside. Inputs are
what the network's forward takes: a tensor, a tuple of positional tensors, or a dict of keyword
tensors, always with the batch as first axis.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from autoprune.domain.objective import Metric

Split = Literal["train", "val", "test"]
Inputs = torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor]


class Task(Protocol):
    """Batches of a split, a loss, metrics with their direction, and an example input.

    The search sees train and val only; test is for promotion.
    """

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that `evaluate` returns; the first is the main one."""
        ...

    def batches(self, split: Split, *, seed: int | None = None) -> Iterable[Any]:
        """One pass over a split, on the CPU; `seed` shuffles (and augments), None keeps order.

        The learning rate follows its schedule step by step through a pass that has a length
        (`collections.abc.Sized`), and changes by whole epochs where it has none.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The scalar training loss of one batch, on the device of the model's parameters."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Every metric over `batches` for a model in evaluation mode, without gradients.

        A metric's 95% interval may stand beside it as ``<name>_low`` and ``<name>_high``.
        """
        ...

    def example(self) -> Inputs:
        """An input that the network accepts, of batch size 1, on the CPU."""
        ...


@runtime_checkable
class CustomFit(Protocol):
    """A task with a training loop of its own."""

    def fit(self, model: nn.Module, *, epochs: int, seed: int) -> Iterator[float]:
        """Train `model` in place; yield the mean training loss after every epoch."""
        ...


def forward(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a network with inputs of any of the three shapes."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(inputs)


@contextmanager
def every_module() -> Iterator[None]:
    """Let every module be called: the fast paths of `nn.MultiheadAttention` and of
    `nn.TransformerEncoderLayer` are one opaque operator that calls none of those inside them.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Every tensor in nested tuples, lists and mappings, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in tensors_of(part)]
    return []


def move(inputs: Any, device: torch.device | str) -> Any:
    """Every tensor in nested tuples, lists and dicts, on `device`."""
    return map_inputs(lambda tensor: tensor.to(device, non_blocking=True), inputs)


def network_inputs(model: nn.Module, task: Task, split: Split, *, most: int) -> list[Inputs]:
    """What a network is given by its task: at least `most` samples of a split, in batches.

    Fewer where the split is smaller; the network's parameters and modes are left as they are.
    """
    found: list[Inputs] = []
    for heard in heard_inputs(model, task, split):
        found += heard
        if sum(len(tensors_of(inputs)[0]) for inputs in found) >= most:
            break
    return found


def heard_inputs(
    model: nn.Module, task: Task, split: Split, *, seed: int | None = None
) -> Iterator[list[Inputs]]:
    """What a network is given by its task in evaluation mode, batch by batch of a split.

    Heard while the task computes its loss, since what a batch holds is the task's own affair.
    """
    heard: list[Inputs] = []

    def hear(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given: Inputs = kwargs if kwargs else args[0] if len(args) == 1 else args
        heard.append(map_inputs(lambda tensor: tensor.detach().cpu().clone(), given))

    listener = copy.deepcopy(model).eval()
    listener.register_forward_pre_hook(hear, with_kwargs=True)
    for batch in task.batches(split, seed=seed):
        with torch.no_grad():  # not around the loop: whoever reads on has a mode of their own
            task.loss(listener, batch)
        yield list(heard)
        heard.clear()


def map_inputs(change: Callable[[torch.Tensor], Any], inputs: Any) -> Any:
    """The same nested tuples, lists and dicts, with what `change` makes of every tensor."""
    if isinstance(inputs, torch.Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {key: map_inputs(change, value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(map_inputs(change, value) for value in inputs)
    return inputs


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
