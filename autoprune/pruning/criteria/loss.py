"""Criteria that estimate what the loss on data does without a unit.

Axis legend: B = batch, n = a sample, u = units of a group.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.criteria.masks import masked
from autoprune.pruning.criteria.protocol import Scores, Scoring, over_batches
from autoprune.pruning.criteria.weights import or_l1, unit_sums
from autoprune.pruning.isolation import derive
from autoprune.tasks.protocol import Task

PROBES = 16
"""Vectors a batch by which a Hessian is probed, two backward passes each."""


@dataclass(frozen=True)
class Taylor:
    """First-order estimate of how much the loss changes without a unit: sum of abs(w dL/dw).

    Averaged over `scoring.batches` batches of the training split, in evaluation mode: Molchanov
    et al., Importance Estimation for Neural Network Pruning, CVPR 2019, summed over coupled
    layers as DepGraph does.
    """

    name: str = "taylor"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task or without data."""
        totals = {c.group.name: torch.zeros(c.group.size, dtype=torch.float64) for c in couplings}

        def step(task: Task, batch: Any) -> None:
            model.zero_grad()
            task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
            for coupling in couplings:
                totals[coupling.group.name] += unit_sums(model, coupling, _first_order)

        seen = over_batches(self.name, model, scoring, step, needs="loss")
        return {name: total / seen for name, total in totals.items()}


@dataclass(frozen=True)
class Fisher:
    """The unit's entry on the diagonal of the empirical Fisher information, halved.

    With m a factor on the unit in all layers that read it, and N samples in up to
    `scoring.batches` batches of train: sum over n of (dl_n/dm)^2 / 2N. Theis et al., Faster Gaze
    Prediction with Dense Networks and Fisher Pruning, 2018 (arXiv:1801.05787); one factor for all
    coupled layers is Liu et al., Group Fisher Pruning, ICML 2021. The loss is taken for a mean over
    samples; evaluation mode. A group that no convolution or linear layer reads falls back to L1.
    """

    name: str = "fisher"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task or data, and where samples cannot
        be told apart.
        """
        total: dict[str, torch.Tensor] = {}
        samples: Counter[str] = Counter()

        def step(task: Task, batch: Any) -> None:
            slopes = _slopes(task.loss(model, batch), None, masks.take())
            for name, found in slopes.items():
                for slope in found:  # of the mean over B samples: B times that of one
                    squares = (slope * len(slope)).double().square().sum(0).cpu()
                    total[name] = total.get(name, 0.0) + squares
                    samples[name] += len(slope)

        with masked(model, couplings, criterion=self.name) as masks:
            over_batches(self.name, model, scoring, step, needs="loss")
        found = {name: squares / (2 * samples[name]) for name, squares in total.items()}
        return or_l1(found, model, couplings)


@dataclass(frozen=True)
class Hessian:
    """Second-order estimate of how much the loss changes without a unit: h / 2.

    h is the second derivative of the loss by m, a factor on the unit in all layers that read it:
    LeCun et al., Optimal Brain Damage, NIPS 1990, whose parameters may be shared by connections as
    m is by the unit's. As there, the gradient is left out, because the network is trained, and the
    network is taken for linear in m near 1 while the loss is not (Gauss-Newton); with ReLUs and no
    two ways of a unit that meet it is. From exact products: with z the outputs of a sample, J
    their slope by m and H the Hessian of the loss by z, h is the sum of (r J) (H r J) over all unit
    vectors r where a sample has at most `probes` outputs, and else its mean over `probes` draws of
    random signs for each sample. Up to `scoring.batches` batches of train, in evaluation mode. A
    group that no convolution or linear layer reads falls back to L1.
    """

    name: str = "hessian"
    probes: int = PROBES

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise AutopruneError(
                f"criterion {self.name!r} draws {self.probes} probes a batch; choose 1 or more"
            )

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task or data, where samples cannot be
        told apart, and where the loss is not bent by the outputs that the network returns.
        """
        total: dict[str, torch.Tensor] = {}
        draws = torch.Generator().manual_seed(derive(scoring.seed, 1))
        bent = False

        def step(task: Task, batch: Any) -> None:
            nonlocal bent
            loss = task.loss(model, batch)
            outputs, taken = masks.outputs(), masks.take()
            for probe, curved in _curvatures(
                self.name, loss, outputs, self._probes(outputs, draws)
            ):
                bent = bent or any(bool((c != 0).any()) for c in curved)
                along = _slopes(outputs, probe, taken)
                across = _slopes(outputs, curved, taken)
                for name, pairs in along.items():
                    for one, other in zip(pairs, across[name], strict=True):
                        h = (one * other).double().sum(0).cpu()
                        total[name] = total.get(name, 0.0) + h

        with masked(model, couplings, criterion=self.name) as masks:
            seen = over_batches(self.name, model, scoring, step, needs="loss")
        if not bent:
            raise AutopruneError(
                f"criterion {self.name!r} needs a loss that is bent by the outputs of "
                f"{type(model).__name__}, and this one is linear in them or is computed inside "
                "the network; choose fisher or taylor"
            )
        return or_l1({name: h.abs() / (2 * seen) for name, h in total.items()}, model, couplings)

    def _probes(
        self, outputs: Sequence[torch.Tensor], draws: torch.Generator
    ) -> Iterator[list[torch.Tensor]]:
        """Vectors r for the outputs of every sample, whose sum of r r' is the identity's mean."""
        each = [output[0].numel() for output in outputs if output.dim()]
        if len(each) == len(outputs) and sum(each) <= self.probes:
            for number, output in enumerate(outputs):
                for entry in range(each[number]):
                    probe = [torch.zeros_like(other) for other in outputs]
                    probe[number].reshape(len(output), -1)[:, entry] = 1
                    yield probe
            return
        for _ in range(self.probes):
            yield [_signs(output, draws) / self.probes**0.5 for output in outputs]


Taken = Mapping[str, Sequence[torch.Tensor]]


def _slopes(
    outputs: torch.Tensor | Sequence[torch.Tensor],
    along: Sequence[torch.Tensor] | None,
    taken: Taken,
) -> dict[str, list[torch.Tensor]]:
    """The slope of the outputs, along a vector, by the masks [B, u] of each group; groups that
    they do not depend on are left out.
    """
    flat = [mask for masks in taken.values() for mask in masks]
    if not flat:
        return {}
    found = iter(
        torch.autograd.grad(outputs, flat, grad_outputs=along, retain_graph=True, allow_unused=True)
    )
    slopes = {name: [next(found) for _ in masks] for name, masks in taken.items()}
    return {
        name: [slope for slope in own if slope is not None]
        for name, own in slopes.items()
        if any(slope is not None for slope in own)
    }


def _curvatures(
    criterion: str,
    loss: torch.Tensor,
    outputs: Sequence[torch.Tensor],
    probes: Iterable[list[torch.Tensor]],
) -> Iterator[tuple[list[torch.Tensor], Sequence[torch.Tensor]]]:
    """Each probe with the Hessian of the loss by the outputs times the probe."""
    if not outputs:
        return
    try:
        slopes = torch.autograd.grad(
            loss, outputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        for probe in probes:
            along = [(g * r).sum() for g, r in zip(slopes, probe, strict=True) if g.requires_grad]
            if not along:
                return  # linear in every output
            yield (
                probe,
                torch.autograd.grad(
                    torch.stack(along).sum(),
                    outputs,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                ),
            )
    except RuntimeError as error:
        if "derivative" not in str(error):
            raise
        raise AutopruneError(
            f"criterion {criterion!r} needs a loss with second derivatives ({first_line(error)}); "
            "choose fisher or taylor"
        ) from error


def _signs(like: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, like.shape, generator=draws).to(like) * 2 - 1


def _first_order(weight: nn.Parameter) -> torch.Tensor:
    if weight.grad is None:
        return torch.zeros_like(weight)
    return (weight.detach() * weight.grad).abs()
