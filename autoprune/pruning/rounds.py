"""A schedule at work: cut some, train, cut further, until the widths of the spec are reached."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from autoprune.domain.space import UNEVEN_KINDS, PruningSpec
from autoprune.pruning.criteria import Criterion, Scoring
from autoprune.pruning.cuts import Cut, Indices
from autoprune.pruning.cutting import apply_cuts
from autoprune.pruning.further import compose, restrict
from autoprune.pruning.graph import Dependencies
from autoprune.pruning.healing import Healing
from autoprune.pruning.isolation import derive
from autoprune.pruning.recover import Epoch, FitState
from autoprune.pruning.surgery import Pruned, choose, prune


@dataclass(frozen=True)
class Choosing:
    """By what the units that go are chosen: `criterion`, with what `scoring` gives it, among the
    groups of the unpruned network in `dependencies`.
    """

    dependencies: Dependencies
    criterion: Criterion
    scoring: Scoring

    def uneven(self, unpruned: nn.Module, widths: Mapping[str, int]) -> dict[str, Indices]:
        """The units of `UNEVEN_KINDS` that go: chosen on the unpruned network, always.

        Which of them goes decides how fast the network is, and that is measured before it is
        trained.
        """
        couplings = [
            c
            for c in self.dependencies.couplings
            if c.group.kind in UNEVEN_KINDS
            and widths.get(c.group.name, c.group.size) < c.group.size
        ]
        return choose(unpruned, couplings, widths, criterion=self.criterion, scoring=self.scoring)


@dataclass(frozen=True)
class Rounds:
    """The training of a recovery, in the rounds of its schedule.

    `healing` is of the network that was cut at once, `early` the unpruned network early in its
    training, where the schedule rewinds. Every round chooses units on the weights as they are
    then; the graph is traced once, before.
    """

    healing: Healing
    choosing: Choosing
    early: nn.Module | None = None

    def train(
        self, pruned: Pruned, *, epoch: int = 0, state: FitState | None = None
    ) -> Iterator[tuple[Pruned, Epoch]]:
        """Train epoch by epoch: every one, numbered through all rounds, with its network.

        `pruned` was cut at once to the widths of its spec, and mended; the last round leads to
        the same widths, though perhaps of other units. To resume, give the network of the moment
        after `epoch` epochs, with the `state` of its round. One round that does not rewind trains
        `pruned` itself. Raises what `prune` and `Healing` raise.
        """
        recovery = self.healing.recovery
        shares = recovery.schedule.epochs(recovery.fit.epochs)
        first = recovery.schedule.round_of(epoch, recovery.fit.epochs)
        for number in range(first, recovery.schedule.rounds):
            resumed = state if number == first else None
            if resumed is None:
                pruned = self._begun(number, pruned)
            healing = self._healing(number, self.healing.unpruned, pruned.recipe.history)
            for done in healing.train(pruned.model, resume=resumed):
                yield pruned, replace(done, number=sum(shares[:number]) + done.number)

    def _begun(self, number: int, pruned: Pruned) -> Pruned:
        """The network that a round trains, from that of the round before."""
        schedule = self.healing.recovery.schedule
        if not schedule.again:
            return pruned
        before = pruned.model if number else self.healing.unpruned
        cuts: Sequence[Cut] = pruned.recipe.history
        if schedule.rounds > 1:
            pruned, cuts = self._cut(number, pruned, before)
        if schedule.rewind:
            assert self.early is not None, "plans refuse to rewind a baseline that kept nothing"
            rewind(pruned.model, self.early, pruned.recipe.history)
        self._healing(number, before, cuts).at_once(pruned.model)
        return pruned

    def _cut(self, number: int, pruned: Pruned, before: nn.Module) -> tuple[Pruned, Sequence[Cut]]:
        """`before` cut to the widths of a round, and the cuts in its own indices."""
        spec, choosing = pruned.recipe.spec, self.choosing
        history = pruned.recipe.history if number else ()
        schedule = self.healing.recovery.schedule
        widths = {
            group.name: schedule.widths(group, spec.widths.get(group.name, group.size))[number]
            for group in choosing.dependencies.groups
        }
        found = prune(
            before,
            self.healing.task.example(),
            PruningSpec.of(widths, criterion=spec.criterion),
            criterion=choosing.criterion,
            scoring=replace(choosing.scoring, seed=self._seed(number)),
            dependencies=Dependencies(restrict(choosing.dependencies.couplings, history)),
            removed=choosing.uneven(self.healing.unpruned, widths),
        )
        further = found.recipe.history
        recipe = replace(pruned.recipe, history=compose(history, further))
        return Pruned(found.model.to(choosing.scoring.device), recipe), further

    def _healing(self, number: int, unpruned: nn.Module, cuts: Sequence[Cut]) -> Healing:
        recovery, seed = self.healing.recovery.in_round(number), self._seed(number)
        return replace(self.healing, recovery=recovery, unpruned=unpruned, cuts=cuts, seed=seed)

    def _seed(self, number: int) -> int:
        return derive(self.healing.seed, number) if number else self.healing.seed


def rewind(model: nn.Module, early: nn.Module, history: Sequence[Cut]) -> None:
    """Give a network that `history` led to, in place, the weights that it would have if `early`
    had been cut: its own unpruned network, early in training. `early` stays as it is.
    """
    twin = copy.deepcopy(early)
    apply_cuts(twin, history)
    model.load_state_dict(twin.state_dict())
