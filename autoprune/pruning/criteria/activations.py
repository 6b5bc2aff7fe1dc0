"""Criteria that listen to what units say of data.

Axis legend: B = batch, w = inputs or outputs of a layer, u = units of a group.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from autoprune.domain.errors import AutopruneError
from autoprune.pruning.bypass import first_input
from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.criteria.protocol import Scores, Scoring, over_batches
from autoprune.pruning.criteria.readers import READERS, blocks_of, input_axis, readers_of, rows_of
from autoprune.pruning.criteria.weights import gather, or_l1
from autoprune.pruning.cuts import has_inputs
from autoprune.tasks.protocol import Task, tensors_of

Hear = Callable[[str, torch.Tensor], None]
"""Hears what a layer takes or gives: its name, and values [rows, w]."""


@dataclass(frozen=True)
class Activation:
    """How loud a unit is: the mean absolute value that the layers reading it receive.

    Over samples of up to `scoring.batches` batches of train and over positions, in evaluation
    mode, then over the layers that read the unit (each counts alike); behind whatever norm and
    activation function stand in between. Molchanov et al., Pruning Convolutional Neural Networks
    for Resource Efficient Inference, ICLR 2017, compare it with others. Of a block it is the mean
    absolute value of what it adds to its input. A group that no convolution or linear layer reads
    falls back to L1.
    """

    name: str = "activation"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task or without data."""
        heard = Means()
        with (
            _inputs_heard(model, lambda name, values: heard.add(name, values.abs())),
            _blocks_heard(model, couplings, heard.add),
        ):
            over_batches(self.name, model, scoring, _judged(model), needs="data")
        found = _by_reader(model, couplings, heard) | _by_block(model, couplings, heard)
        return or_l1(found, model, couplings)


@dataclass(frozen=True)
class ShareOfNonzeros:
    """How often a unit says anything: 1 less its average percentage of zeros (APoZ), in [0, 1].

    Hu et al., Network Trimming, 2016 (arXiv:1607.03250). Taken where `Activation` is: what the
    reading layers receive. A group in which no value is exactly zero, because no ReLU stands
    before its readers, falls back to L1; a network without a zero behind its first layers is
    refused.
    """

    name: str = "apoz"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task, without data, and for a network
        whose activations are never zero.
        """
        heard = Means()
        with _inputs_heard(model, lambda name, values: heard.add(name, (values != 0).float())):
            over_batches(self.name, model, scoring, _judged(model), needs="data")
        if all((mean == 1).all() for mean in heard.by_layer.values()):
            raise AutopruneError(
                f"criterion {self.name!r} counts zeros, and no activation of "
                f"{type(model).__name__} is ever zero (it has no ReLU); choose activation or taylor"
            )
        found = _by_reader(model, couplings, heard)
        silent = {name: share for name, share in found.items() if (share < 1).any()}
        return or_l1(silent, model, couplings)


@dataclass(frozen=True)
class Gate:
    """How far a squeeze-and-excite gate lets a unit through: its mean over data, in [0, 1].

    Hu et al., Squeeze-and-Excitation Networks, CVPR 2018. A gate is the sigmoid (also the hard
    one, as a function of PyTorch's) taken directly of the outputs of a convolution or linear layer
    that is coupled to another one, which it gates. Mean over samples of up to `scoring.batches`
    batches of train, over positions, and over the gates of a group, in evaluation mode. A group
    without a gate falls back to L1; a network without any is refused.
    """

    name: str = "se_gate"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task or data, and without a gate."""
        heard = Means()
        with _gates_heard(model, heard.add) as gates:

            def step(task: Task, batch: Any) -> None:
                with torch.no_grad(), gates:
                    task.loss(model, batch)
                gates.forget()

            over_batches(self.name, model, scoring, step, needs="data")
        if not heard.by_layer:
            raise AutopruneError(
                f"criterion {self.name!r} reads squeeze-and-excite gates and "
                f"{type(model).__name__} has none (a sigmoid of a layer's outputs); choose l1, "
                "activation or taylor"
            )
        found = {}
        for coupling in couplings:
            made = [m for m in coupling.members if m.side == "out"]
            makers = [m for m in made if has_inputs(model.get_submodule(m.layer))]
            gating = [m for m in makers if m.layer in heard.by_layer]
            if gating and len(gating) < len(makers):
                means = [_mean_by_unit(coupling, m, heard.by_layer[m.layer]) for m in gating]
                found[coupling.group.name] = torch.stack(means).mean(0)
        return or_l1(found, model, couplings)


@dataclass(eq=False)
class Means:
    """The mean of everything that was heard of each layer, by its inputs or outputs [w]."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, name: str, values: torch.Tensor) -> None:
        """Take note of values [rows, w] of a layer."""
        self.sums[name] = self.sums.get(name, 0.0) + values.double().sum(0).cpu()
        self.rows[name] += len(values)

    @property
    def by_layer(self) -> Mapping[str, torch.Tensor]:
        """The means float64 [w] of every layer that was heard."""
        return {name: total / self.rows[name] for name, total in self.sums.items()}


class _Gates(TorchFunctionMode):
    """While it is entered, hears of the sigmoids that are taken of what layers gave.

    A layer's output is known again by its memory, which a reshape shares.
    """

    def __init__(self, hear: Hear) -> None:
        super().__init__()
        self._hear = hear
        self._outputs: dict[int, tuple[str, nn.Module, torch.Tensor]] = {}

    def remember(self, name: str, layer: nn.Module, output: torch.Tensor) -> None:
        """Keep an output as long as the pass goes on, so that its memory is not used again."""
        self._outputs[output.untyped_storage().data_ptr()] = (name, layer, output)

    def forget(self) -> None:
        """The pass is over."""
        self._outputs.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        squash = _SQUASH.get(getattr(func, "__name__", ""))
        if squash is not None and args and isinstance(args[0], torch.Tensor):
            known = self._outputs.get(args[0].untyped_storage().data_ptr())
            if known is not None and known[2].numel() == args[0].numel():
                name, layer, output = known
                # before the call, which may be in place
                self._hear(name, rows_of(squash(output), input_axis(layer)))
        return func(*args, **(kwargs or {}))


_SQUASH: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(("sigmoid", "sigmoid_", "expit", "special_expit"), torch.sigmoid),
    **dict.fromkeys(("hardsigmoid", "hardsigmoid_"), F.hardsigmoid),
}


@contextmanager
def _inputs_heard(model: nn.Module, hear: Hear) -> Iterator[None]:
    """Hear what every convolution and linear layer takes, but for the network's own input."""
    outer: set[int] = set()

    def begin(_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        outer.clear()
        given = tensors_of([*args, *kwargs.values()])
        outer.update(tensor.untyped_storage().data_ptr() for tensor in given)

    hooks = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    for name, layer in model.named_modules():
        if not has_inputs(layer):
            continue

        def listen(layer: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            given = first_input(args, kwargs)
            if given.untyped_storage().data_ptr() not in outer:
                hear(name, rows_of(given.detach(), input_axis(layer)))

        hooks.append(layer.register_forward_pre_hook(listen, with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _blocks_heard(model: nn.Module, couplings: Sequence[Coupling], hear: Hear) -> Iterator[None]:
    """Hear how much every block of the groups adds to its input: one value a sample, [B, 1]."""
    hooks = []
    for coupling in couplings:
        for _, name, block in blocks_of(model, coupling):

            def listen(
                _: nn.Module, args: Any, kwargs: Any, output: torch.Tensor, name: str = name
            ) -> None:
                added = (output - first_input(args, kwargs)).detach()
                hear(name, added.abs().flatten(1).mean(1, keepdim=True))

            hooks.append(block.register_forward_hook(listen, with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _gates_heard(model: nn.Module, hear: Hear) -> Iterator[_Gates]:
    """Let gates be heard of: the mode to enter around a forward pass."""
    gates, hooks = _Gates(hear), []
    for name, layer in model.named_modules():
        if not isinstance(layer, READERS):
            continue

        def keep(layer: nn.Module, _args: Any, output: torch.Tensor, name: str = name) -> None:
            gates.remember(name, layer, output)

        hooks.append(layer.register_forward_hook(keep))
    try:
        yield gates
    finally:
        for handle in hooks:
            handle.remove()


def _judged(model: nn.Module) -> Callable[[Task, Any], None]:
    """A step that computes the loss of a batch, for whoever listens."""

    def step(task: Task, batch: Any) -> None:
        with torch.no_grad():
            task.loss(model, batch)

    return step


def _by_reader(
    model: nn.Module, couplings: Sequence[Coupling], heard: Means
) -> dict[str, torch.Tensor]:
    """What was heard of each unit, averaged over the layers that read it: float64 [u] by group."""
    by_layer, found = heard.by_layer, {}
    for coupling in couplings:
        means = [
            _mean_by_unit(coupling, member, by_layer[member.layer])
            for member, _ in readers_of(model, coupling)
            if member.layer in by_layer
        ]
        if means:
            found[coupling.group.name] = torch.stack(means).mean(0)
    return found


def _by_block(
    model: nn.Module, couplings: Sequence[Coupling], heard: Means
) -> dict[str, torch.Tensor]:
    """What was heard of the blocks of each group that has such: float64 [u]."""
    by_layer, found = heard.by_layer, {}
    for coupling in couplings:
        said = torch.zeros(coupling.group.size, dtype=torch.float64)
        blocks = blocks_of(model, coupling)
        for unit, name, _ in blocks:
            said[unit] = by_layer[name]
        if blocks:
            found[coupling.group.name] = said
    return found


def _mean_by_unit(coupling: Coupling, member: Member, values: torch.Tensor) -> torch.Tensor:
    """The mean over the inputs or outputs of a layer that belong to a unit: float64 [u]."""
    counts = np.bincount(member.unit, minlength=coupling.group.size)
    owned = torch.from_numpy(counts).clamp_min(1)
    return gather(member, values, coupling.group.size) / owned
