"""What a criterion is, what it is given, and how it goes over data.

Axis legend: u = units of a group.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.protocols import StepGuard
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.isolation import own_rng
from autoprune.tasks.protocol import Task, device_of

Scores = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Scoring:
    """What a criterion may need besides the network: data and loss, a seed, and the guard.

    `batches` bounds how many batches of the training split it reads, `step_guard` opens the
    context in which every step of computation on batches must run, and `device` is where the
    network is scored.
    """

    task: Task | None = None
    seed: int = 0
    batches: int = 8
    step_guard: StepGuard = nullcontext
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise AutopruneError(f"importance reads {self.batches} batches; choose 1 or more")


class Criterion(Protocol):
    """Scores the units of groups; the lowest are cut.

    Scores compare inside one group. Those of two groups compare only once they are normalised
    (`autoprune.domain.ranking`), or where the criterion says that they do.
    """

    @property
    def name(self) -> str:
        """What a spec calls it."""
        ...

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """One finite score a unit, float [u], by group name.

        `model` is the unpruned network in a copy that the criterion may use up. `couplings` may
        leave out groups that nothing is cut of: whether a criterion suits a network must not
        depend on them.
        """
        ...


def over_batches(
    criterion: str,
    model: nn.Module,
    scoring: Scoring,
    step: Callable[[Task, Any], None],
    *,
    needs: str,
) -> int:
    """Run `step` on up to `scoring.batches` batches of train, each in the guard; how many it were.

    The network is in evaluation mode, all its parameters take gradients, and whatever is drawn at
    random follows the seed. `needs` says what the task is needed for.

    Raises AutopruneError without a task and without data.
    """
    task = scoring.task
    if task is None:
        raise AutopruneError(
            f"criterion {criterion!r} needs a task for its {needs}; pass Scoring(task), or choose "
            "a criterion that reads weights alone, such as l1"
        )
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    seen = 0
    with own_rng(scoring.seed, device_of(model)), torch.enable_grad():
        for batch in islice(task.batches("train", seed=scoring.seed), scoring.batches):
            with scoring.step_guard():
                step(task, batch)
            seen += 1
    if not seen:
        raise AutopruneError(
            f"criterion {criterion!r}: the task's train split has no batch; give it data, or "
            "choose a criterion that reads weights alone, such as l1"
        )
    return seen
