"""Snapshots as small as they come, each with a number of its own in its weights."""

import torch

from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Speedup
from autoprune.evaluation import Snapshot
from autoprune.pruning.recipe import Recipe
from autoprune.pruning.recover import FitState

SPEEDUP = Speedup(2.0, 1.9, 2.1, 4.0, 2.0, samples=8, runtime="torch", device="cpu", noise=0.01)


def snapshot(
    epoch: int, *, stands: bool = False, done: bool = False, mark: float = 0.0, size: int = 4
) -> Snapshot:
    """The snapshot after `epoch` epochs: one to go on from, or one that a trial stands for."""
    outputs = (torch.full((1, 3), mark),) if stands or done else ()
    return Snapshot(
        Recipe((), PruningSpec.of({"a": 3}), ()),
        {"weight": torch.full((size,), mark)},
        {"accuracy": 0.5 + epoch / 100},
        SPEEDUP,
        seconds={"recover": float(epoch)},
        epoch=epoch,
        done=done,
        fit=None if done else FitState(epoch, 7, {"state": {0: torch.ones(2) * mark}}, {}),
        outputs=outputs,
    )


def facts(snapshot: Snapshot | None) -> object:
    """All that is kept of a snapshot to go on from, comparable."""
    if snapshot is None:
        return None
    fit = snapshot.fit
    return (
        snapshot.recipe,
        {name: tensor.tolist() for name, tensor in snapshot.state_dict.items()},
        dict(snapshot.metrics),
        snapshot.speedup,
        dict(snapshot.seconds),
        (snapshot.epoch, snapshot.done),
        None if fit is None else (fit.epoch, fit.seed, str(fit.optimizer), str(fit.scaler)),
    )
