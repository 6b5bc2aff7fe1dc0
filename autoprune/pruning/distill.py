"""Knowledge distillation: a task whose loss asks for agreement with the unpruned network, too.

Axis legend: K classes, w = units of one side of a layer.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

from autoprune.domain.errors import AutopruneError, FaultsError, broken_rules
from autoprune.domain.objective import Metric
from autoprune.domain.typed import check_types
from autoprune.pruning.cuts import LAYERS, Cut, width
from autoprune.tasks.protocol import CustomFit, Inputs, Split, Task, every_module, tensors_of

Call = tuple[tuple[Any, ...], dict[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Distillation:
    """How much of the loss is the teacher's.

    The loss is ``(1 - weight) task + weight T^2 KL(teacher || student)`` of the class scores, both
    divided by the `temperature` T (Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural
    Network, 2015), and `hints` times the mean squared difference of the features of `hint_layers`
    (patterns of names), as a share of the teacher's mean square. A cut layer is held against those
    of the teacher's units that it kept, so that hints need no layer of their own to learn (unlike
    Romero et al., FitNets, ICLR 2015); one that the cut took whole gives none.
    """

    weight: float = 0.7
    temperature: float = 4.0
    hints: float = 0.0
    hint_layers: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_types(self)
        rules = {
            "weight": (0 <= self.weight <= 1, "a number in [0, 1]"),
            "temperature": (0 < self.temperature < math.inf, "a positive number"),
            "hints": (0 <= self.hints < math.inf, "0 or more"),
        }
        faults = broken_rules(self, rules)
        if bool(self.hints) != bool(self.hint_layers):
            faults.append(
                f"hints is {self.hints:g} and hint_layers is {list(self.hint_layers)}; give both, "
                "or neither"
            )
        if faults:
            raise FaultsError(faults)


class Distilled:
    """A task with another loss: what `task` says of a student and what its teacher says of it.

    `teacher` is the unpruned network, on the student's device; `cuts` led from it to the student.
    It is asked in evaluation mode and never trained.
    """

    def __init__(
        self, task: Task, teacher: nn.Module, plan: Distillation, *, cuts: Sequence[Cut] = ()
    ) -> None:
        """Raises AutopruneError for a task that trains by itself, and for hints that match no
        layer.
        """
        if isinstance(task, CustomFit):
            raise AutopruneError(
                f"{type(task).__name__} trains by a fit of its own, which knows of no teacher; "
                "choose a recovery without distillation"
            )
        self.task, self.plan = task, plan
        self.teacher = teacher.eval().requires_grad_(False)
        self._kept = _hinted(teacher, plan.hint_layers, cuts)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's own."""
        return self.task.metrics

    def batches(self, split: Split, *, seed: int | None = None) -> Iterable[Any]:
        """The task's own."""
        return self.task.batches(split, seed=seed)

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """The task's own."""
        return self.task.evaluate(model, batches)

    def example(self) -> Inputs:
        """The task's own."""
        return self.task.example()

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss that `Distillation` describes: the task's calls of the student are listened to,
        and repeated with the teacher.

        Raises AutopruneError where the task does not call the network itself, or the network
        returns no class scores or calls no layer that gives hints.
        """
        plan, names = self.plan, tuple(self._kept)
        with _listening(model, names) as (calls, felt):
            loss = self.task.loss(model, batch)
        if not calls:
            raise AutopruneError(
                f"{type(self.task).__name__}.loss does not call the network itself, so nobody can "
                "say what a teacher would; choose a recovery without distillation"
            )
        if names and not any(felt.values()):
            raise AutopruneError(
                f"hint_layers: the network never calls {', '.join(names)}; choose layers that it "
                "calls"
            )
        with torch.no_grad(), every_module(), _listening(self.teacher, names) as (taught, known):
            for args, kwargs, _ in calls:
                self.teacher(*args, **kwargs)
        terms = [
            _divergence(said[2], told[2], plan.temperature)
            for said, told in zip(calls, taught, strict=True)
        ]
        loss = (1 - plan.weight) * loss + plan.weight * torch.stack(terms).mean()
        if names:
            gaps = [
                _gap(of_student, _of_kept(of_teacher, self.teacher.get_submodule(name), kept))
                for name, kept in self._kept.items()
                for of_student, of_teacher in zip(felt[name], known[name], strict=True)
            ]
            loss = loss + plan.hints * torch.stack(gaps).mean()
        return loss


@contextmanager
def _listening(
    model: nn.Module, names: Sequence[str]
) -> Iterator[tuple[list[Call], dict[str, list[torch.Tensor]]]]:
    """The calls of a network, and what its layers `names` put out in each."""
    calls: list[Call] = []
    felt: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def heard(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, kwargs, output))

    with ExitStack() as hooks:

        def until_the_end(handle: RemovableHandle) -> None:
            hooks.callback(handle.remove)

        until_the_end(model.register_forward_hook(heard, with_kwargs=True))
        for name in names:
            layer = model.get_submodule(name)
            until_the_end(
                layer.register_forward_hook(
                    lambda _, __, output, name=name: felt[name].append(output)
                )
            )
        yield calls, felt


def _divergence(student: Any, teacher: Any, temperature: float) -> torch.Tensor:
    """KL of the class distributions, in nats, the mean over all but the class axis, times T^2."""
    scores, axis = _scores(student)
    expected, _ = _scores(teacher)
    if scores.shape != expected.shape:
        raise AutopruneError(
            f"distillation: the student scores {list(scores.shape)} and the teacher "
            f"{list(expected.shape)}; both must put out the same"
        )
    of_student = functional.log_softmax(scores.float() / temperature, axis)
    of_teacher = functional.log_softmax(expected.float() / temperature, axis)
    terms = functional.kl_div(of_student, of_teacher, reduction="none", log_target=True)
    return terms.sum(axis).mean() * temperature**2


def _scores(output: Any) -> tuple[torch.Tensor, int]:
    """The class scores in what a network returns, and their axis: the second of [B, K] and of
    [B, K, H, W], the last of [B, T, K].
    """
    for tensor in tensors_of(output):
        if tensor.dim() >= 2 and tensor.is_floating_point():
            axis = tensor.dim() - 1 if tensor.dim() == 3 else 1
            if tensor.shape[axis] > 1:
                return tensor, axis
    shapes = [list(tensor.shape) for tensor in tensors_of(output)]
    raise AutopruneError(
        f"distillation compares the scores of two classes or more, and the network puts out "
        f"{shapes}; choose a recovery without it"
    )


def _of_kept(features: torch.Tensor, layer: nn.Module, kept: torch.Tensor | None) -> torch.Tensor:
    """What a layer put out of the units `kept`; None for all of them."""
    if kept is None:
        return features
    # a layer norm of the network's own may be over channels that come first
    is_last = isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Embedding))
    axis = -1 if is_last and features.shape[-1] == width(layer, "out") else 1
    return features.index_select(axis, kept.to(features.device))


def _gap(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """How far features are from the teacher's, as a share of the teacher's mean square."""
    square = teacher.float().square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    gap: torch.Tensor = functional.mse_loss(student.float(), teacher.float()) / square
    return gap


def _hinted(
    teacher: nn.Module, patterns: Sequence[str], cuts: Sequence[Cut]
) -> dict[str, torch.Tensor | None]:
    """The layers that give hints, and which of the teacher's units the student's are."""
    layers = {
        name: module
        for name, module in teacher.named_modules()
        # nn.MultiheadAttention (torch 2.8) reads its out_proj, of that class, and never calls it
        if name and isinstance(module, LAYERS)
        if not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            raise AutopruneError(
                f"hint_layers: {pattern!r} matches no layer; the layers are {', '.join(layers)}"
            )
    gone = tuple(f"{cut.layer}." for cut in cuts if cut.side in ("block", "branch"))
    removed = {cut.layer: cut for cut in cuts if cut.side == "out"}
    return {
        name: removed[name].kept(width(layer, "out")) if name in removed else None
        for name, layer in layers.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if not f"{name}.".startswith(gone)
    }
