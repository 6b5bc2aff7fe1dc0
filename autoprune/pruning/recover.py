"""Training: of the baseline, and of a pruned network that has to heal.

Everything random is fixed by the seed and the epoch's number, so a run that stops between two
epochs goes on bit for bit from its optimizer's state, given the same number of threads.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sized
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, FaultsError, broken_rules, unknown
from autoprune.domain.protocols import StepGuard
from autoprune.domain.trial import Cause, TrialError
from autoprune.domain.typed import check_types
from autoprune.pruning.isolation import derive, mode, own_rng
from autoprune.tasks.protocol import CustomFit, Task, device_of

OPTIMIZERS = ("sgd", "adamw")
AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class FitPlan:
    """How to train: the learning rate warms up linearly, then follows a cosine to zero.

    `lr` is the peak, `warmup_epochs` may be a fraction, `momentum` is SGD's, `weight_decay`
    applies to weights and not to biases and norms, `grad_clip` bounds the gradient's norm, and
    `amp` (``off``, ``bf16``, ``fp16``) is mixed precision, which takes effect on CUDA.
    """

    epochs: int
    lr: float = 0.02
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.5
    grad_clip: float | None = None
    amp: str = "off"

    def __post_init__(self) -> None:
        check_types(self)
        faults = []
        for name, known in (("optimizer", OPTIMIZERS), ("amp", AMP_DTYPES)):
            if getattr(self, name) not in known:
                faults.append(str(unknown(name, getattr(self, name), known)))
        rules = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "lr": (0 < self.lr < math.inf, "a positive number"),
            "momentum": (0 <= self.momentum < 1, "a number in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "warmup_epochs": (0 <= self.warmup_epochs < math.inf, "0 or more"),
            "grad_clip": (
                self.grad_clip is None or self.grad_clip > 0,
                "a positive number",
            ),
        }
        faults += broken_rules(self, rules)
        if faults:
            raise FaultsError(faults)

    def lr_at(self, progress: float, *, step: float) -> float:
        """The learning rate of the step that begins at `progress` and spans `step`, in epochs."""
        if progress < self.warmup_epochs:
            return self.lr * min(1.0, (progress + step) / self.warmup_epochs)
        span = max(self.epochs - self.warmup_epochs, step)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup_epochs) / span))


class StepHook(Protocol):
    """What is done to the weights after every step of an optimizer, and after every epoch."""

    def after_step(self, lr: float, span: float) -> None:
        """Change the weights in place, inside the step's guard, after a step at rate `lr`.

        `span` is the part of an epoch that the step was; of a split without a length the first
        step of an epoch stands for all of it.
        """
        ...

    def after_epoch(self) -> None:
        """Change the weights in place, inside a guard, once an epoch's last step is done."""
        ...

    def state(self) -> Mapping[str, Any]:
        """What a resume needs after an epoch: tensors, numbers and containers."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, on the weights of that moment."""
        ...


@dataclass(frozen=True)
class FitState:
    """What a run needs beside the network's own weights to go on after `epoch` epochs.

    `hook` is the state of what is done after every step.
    """

    epoch: int
    seed: int
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    hook: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Tensors, numbers and containers: what `torch.load(weights_only=True)` reads back."""
        return {
            "epoch": self.epoch,
            "seed": self.seed,
            "optimizer": dict(self.optimizer),
            "scaler": dict(self.scaler),
            "hook": dict(self.hook),
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from `to_plain`; raises AutopruneError where a part is missing."""
        try:
            return cls(
                int(data["epoch"]),
                int(data["seed"]),
                data["optimizer"],
                data["scaler"],
                data.get("hook", {}),  # there was none at first
            )
        except (KeyError, TypeError, ValueError) as error:
            raise AutopruneError(f"the training state is damaged ({error}); start again") from error


@dataclass(frozen=True)
class Epoch:
    """One epoch done: its number from 1, the mean training loss, and the last learning rate.

    `state` resumes after it, together with the network's state dict at this moment; None where
    the task trains by itself. `lr` is NaN there, for nobody else knows it.
    """

    number: int
    loss: float
    lr: float
    state: FitState | None


def fit(
    model: nn.Module,
    task: Task,
    plan: FitPlan,
    *,
    seed: int,
    resume: FitState | None = None,
    step_guard: StepGuard = nullcontext,
    hook: StepHook | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place, an epoch at a time.

    Each step runs inside `step_guard()`, with `hook` behind it; between epochs the network's modes
    and the global random numbers are as the caller left them. To resume, give the network the
    weights of the epoch that `resume` belongs to. A task with a `fit` of its own (`CustomFit`)
    trains by it: then a whole epoch is one step, there is no hook, and a run cannot resume.

    Raises TrialError with ``Cause.NAN_LOSS`` where the loss stops being finite, and
    AutopruneError for a network without a trainable parameter, a split without a batch, or a
    state of another run.
    """
    if isinstance(task, CustomFit):
        if resume is not None:
            raise AutopruneError("a task with its own fit cannot resume; train from the start")
        yield from _custom_fit(model, task, plan, seed=seed, step_guard=step_guard)
        return
    trainer = _Trainer(model, task, plan, seed=seed, step_guard=step_guard, hook=hook)
    start = 0 if resume is None else trainer.restore(resume)
    for epoch in range(start, plan.epochs):
        loss, lr = trainer.epoch(epoch)
        yield Epoch(epoch + 1, loss, lr, trainer.state(epoch + 1))


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        task: Task,
        plan: FitPlan,
        *,
        seed: int,
        step_guard: StepGuard,
        hook: StepHook | None,
    ) -> None:
        self.model, self.task, self.plan = model, task, plan
        self.seed, self.step_guard, self.hook = seed, step_guard, hook
        self.device = device_of(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters and plan.epochs:
            raise AutopruneError(
                f"{type(model).__name__} has no trainable parameter; unfreeze some or set epochs=0"
            )
        self.optimizer = _optimizer(self.parameters, plan) if self.parameters else None
        self.dtype = AMP_DTYPES[plan.amp] if self.device.type == "cuda" else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    def epoch(self, epoch: int) -> tuple[float, float]:
        """Train one epoch (from 0); the mean loss and the last learning rate."""
        batches = self.task.batches("train", seed=derive(self.seed, epoch, 0))
        steps = len(batches) if isinstance(batches, Sized) else None
        losses: list[float] = []
        lr = 0.0
        with own_rng(derive(self.seed, epoch, 1), self.device), mode(self.model, training=True):
            for i, batch in enumerate(batches):
                # Without a length the rate changes by whole epochs.
                lr = self.plan.lr_at(epoch + (i / steps if steps else 0), step=1 / (steps or 1))
                with self.step_guard(), torch.enable_grad():
                    losses.append(self._step(batch, lr))
                    if self.hook is not None:
                        self.hook.after_step(lr, 1 / steps if steps else float(i == 0))
                if not math.isfinite(losses[-1]):
                    raise TrialError(
                        Cause.NAN_LOSS,
                        f"the training loss became {losses[-1]} at epoch {epoch + 1}, step "
                        f"{i + 1}; lower the learning rate ({self.plan.lr:g}) or set grad_clip",
                    )
        if not losses:
            raise AutopruneError("the task's train split has no batch; give it data")
        if self.hook is not None:
            with self.step_guard():
                self.hook.after_epoch()
        return sum(losses) / len(losses), lr

    def _step(self, batch: Any, lr: float) -> float:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        with torch.autocast(
            self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None
        ):
            loss = self.task.loss(self.model, batch)
        value = float(loss.detach())
        if math.isfinite(value):
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if self.plan.grad_clip is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.parameters, self.plan.grad_clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return value

    def state(self, epoch: int) -> FitState:
        optimizer = {} if self.optimizer is None else self.optimizer.state_dict()
        hook = {} if self.hook is None else self.hook.state()
        return FitState(epoch, self.seed, copy.deepcopy(optimizer), self.scaler.state_dict(), hook)

    def restore(self, state: FitState) -> int:
        """Take over a state; the number of epochs that are done."""
        if state.seed != self.seed:
            raise AutopruneError(
                f"the training state was made with seed {state.seed}, this run has {self.seed}; "
                "resume with the same seed"
            )
        if self.optimizer is not None:
            try:
                self.optimizer.load_state_dict(copy.deepcopy(dict(state.optimizer)))
            except (ValueError, KeyError) as error:
                raise AutopruneError(
                    f"the training state is of another network or optimizer ({error}); start again"
                ) from error
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))
        if self.hook is not None:
            self.hook.restore(state.hook)
        return state.epoch


def _optimizer(parameters: list[nn.Parameter], plan: FitPlan) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=plan.lr)
    return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum)


def _custom_fit(
    model: nn.Module, task: CustomFit, plan: FitPlan, *, seed: int, step_guard: StepGuard
) -> Iterator[Epoch]:
    epochs = iter(task.fit(model, epochs=plan.epochs, seed=seed))
    device = device_of(model)
    for number in range(1, plan.epochs + 1):
        with (
            own_rng(derive(seed, number), device),
            mode(model, training=True),
            step_guard(),
            torch.enable_grad(),
        ):
            loss = next(epochs, None)
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrialError(
                Cause.NAN_LOSS,
                f"the task's own fit returned a loss of {loss} at epoch {number}; "
                "lower its learning rate",
            )
        yield Epoch(number, float(loss), math.nan, None)
