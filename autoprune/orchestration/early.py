"""The baseline early in its training, for recoveries that rewind to it: kept, or trained again."""

import copy
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.evaluation import portable, settled_steps
from autoprune.orchestration.artifacts import write_weights
from autoprune.orchestration.baseline import BaselineCache, EpochReport, load_weights
from autoprune.orchestration.request import SweepRequest, rewinding
from autoprune.pruning.recover import fit


@dataclass
class Keeper:
    """Hears of the epochs in which `model` is trained, and takes a copy after `epoch` of them.

    What it hears it tells `report`. Epoch 0 is before the first, None none at all. `kept` has the
    copy by the name of its file.
    """

    model: nn.Module
    epoch: int | None
    report: EpochReport | None = None
    kept: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._look(0)

    def __call__(self, number: int, value: float) -> None:
        """An epoch is over, with that main metric on val."""
        self._look(number)
        if self.report is not None:
            self.report(number, value)

    def _look(self, number: int) -> None:
        if number == self.epoch:
            self.kept[_file(number)] = portable(self.model)


def _file(epoch: int) -> str:
    return f"epoch-{epoch:04d}.safetensors"


def load_early(request: SweepRequest) -> nn.Module | None:
    """The unpruned network early in its training, on the CPU; None where nothing rewinds to it.

    Where the baseline was trained before without keeping them, its training is begun again and
    ends at that epoch, with the same weights where threads and device are the same; they are then
    kept beside it. Raises AutopruneError where what is given is of another network, and where a
    sweep that goes on has lost them.
    """
    wanted = request.baseline
    if not rewinding(request.recoveries):
        return None
    model = copy.deepcopy(request.model)
    if isinstance(wanted.early, nn.Module):
        return _of_the_same(model, wanted.early)
    if wanted.early is not None:
        if not Path(wanted.early).is_file():
            raise AutopruneError(
                f"{wanted.early}, the early weights of the baseline that a recovery rewinds to, is "
                "gone; restore it from a copy, or start a new sweep"
            )
        load_weights(model, Path(wanted.early))
        return portable(model)
    assert wanted.keep_epoch is not None, "without it a request that rewinds is refused"
    folder = BaselineCache.below(request.output).folder(wanted.identity)
    file = folder / _file(wanted.keep_epoch)
    if file.is_file():
        load_weights(model, file)
        return portable(model)
    early = _trained_again(model, request, epochs=wanted.keep_epoch)
    draft = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
    write_weights(draft, early.state_dict())
    draft.replace(file)
    return early


def _of_the_same(model: nn.Module, early: nn.Module) -> nn.Module:
    """`model` with the weights of `early`."""
    own, given = model.state_dict(), early.state_dict()
    wrong = sorted(own.keys() ^ given.keys()) + sorted(
        name for name in own.keys() & given.keys() if own[name].shape != given[name].shape
    )
    if wrong:
        raise AutopruneError(
            f"early is not of the network that is searched: {wrong[:3]} are missing, left over or "
            "of another shape; give that network as it was early in its training"
        )
    model.load_state_dict(given)
    return portable(model)


def _trained_again(model: nn.Module, request: SweepRequest, *, epochs: int) -> nn.Module:
    """The first epochs of the baseline's training."""
    plan = request.baseline.plan
    assert plan is not None
    guard = settled_steps(request.gate.step, request.device)
    training = fit(
        model.to(request.device), request.task, plan, seed=request.seed, step_guard=guard
    )
    for _, _ in zip(range(epochs), training, strict=False):
        pass
    return portable(model)
