"""What every criterion promises. Subclass `CriterionContract` and give it a criterion.

    class TestMine(CriterionContract):
        criterion = Mine()
        needs_data = True

It is run on networks with every kind of layer, and on the built-in models. `refuses` names those of
`tests.criteria_tasks.NETWORKS` that it cannot be used on.
"""

import copy
import gc
import random
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec
from autoprune.pruning.criteria import Criterion, Scoring, score
from autoprune.pruning.graph import Dependencies, trace
from autoprune.pruning.surgery import prune
from tests.criteria_tasks import NETWORKS, Noise, network


class Watched(Noise):
    """Data that notes which networks it was shown, without keeping them."""

    def __init__(self, noise: Noise) -> None:
        self.__dict__.update(noise.__dict__)
        self.seen: list[weakref.ref[nn.Module]] = []

    def loss(self, model, batch):
        self.seen.append(weakref.ref(model))
        return super().loss(model, batch)


_TRACED: dict[str, Dependencies] = {}


def given(name: str) -> tuple[nn.Module, Noise, Dependencies]:
    net, data = network(name)
    if name not in _TRACED:
        _TRACED[name] = trace(net, data.example())
    return net, data, _TRACED[name]


class CriterionContract:
    """The promises of `autoprune.pruning.criteria.Criterion`.

    `usual` is a network that it suits.
    """

    criterion: Criterion
    needs_data: bool = False
    refuses: tuple[str, ...] = ()
    usual: str = "gated"

    def scores(self, name: str, *, backwards: bool = False, **scoring) -> dict[str, torch.Tensor]:
        net, data, found = given(name)
        couplings = found.couplings[::-1] if backwards else found.couplings
        return score(net, couplings, self.criterion, Scoring(data, **scoring))

    @pytest.mark.parametrize("name", NETWORKS)
    def test_every_unit_has_a_score_or_the_network_is_refused(self, name: str) -> None:
        if name in self.refuses:
            with pytest.raises(AutopruneError, match=f"criterion '{self.criterion.name}'.*choose"):
                self.scores(name)
            return
        scores = self.scores(name)
        assert set(scores) == {group.name for group in given(name)[2].groups}
        assert any(len(found.unique()) > 1 for found in scores.values())

    @pytest.mark.parametrize("name", NETWORKS)
    def test_whether_a_network_suits_does_not_depend_on_what_is_cut(self, name: str) -> None:
        net, data, found = given(name)
        for coupling in found.couplings[-1:]:
            if name in self.refuses:
                with pytest.raises(AutopruneError, match=self.criterion.name):
                    score(net, [coupling], self.criterion, Scoring(data, batches=1))
            else:
                score(net, [coupling], self.criterion, Scoring(data, batches=1))

    @pytest.mark.parametrize("name", ["gated", "depthwise", "resnet"])
    def test_the_same_seed_gives_the_same_scores_in_any_order(self, name: str) -> None:
        if name in self.refuses:
            return
        one = self.scores(name, seed=4)
        for other in (self.scores(name, seed=4), self.scores(name, seed=4, backwards=True)):
            for group, found in one.items():
                torch.testing.assert_close(other[group], found)

    @pytest.mark.parametrize("name", ["gated", "grouped", "mobilenet"])
    def test_a_network_is_cut_by_it(self, name: str) -> None:
        if name in self.refuses:
            return
        net, data, found = given(name)
        half = {g.name: max(1, g.size // g.step // 2) * g.step for g in found.groups}
        cut = prune(
            net,
            data.example(),
            PruningSpec.of(half),
            criterion=self.criterion,
            scoring=Scoring(data),
            dependencies=found,
        )
        assert len(cut.recipe.history) > 0

    def test_it_leaves_no_trace(self) -> None:
        """The network, its modes and gradients, and random numbers are as they were."""
        net, data, found = given(self.usual)
        net.train()
        before, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
        drawn = random.getstate()
        scores = score(net, found.couplings, self.criterion, Scoring(data))
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in net.parameters())
        assert all(module.training for module in net.modules())
        assert torch.equal(rng, torch.get_rng_state())
        assert drawn == random.getstate()
        assert not any(found.requires_grad for found in scores.values())

    def test_it_takes_its_hooks_away(self) -> None:
        net, data, found = given(self.usual)
        self.criterion.scores(net, found.couplings, Scoring(data))
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        assert not any(getattr(module, kind) for module in net.modules() for kind in hooks)

    def test_it_does_not_keep_the_network(self) -> None:
        net, data, found = given(self.usual)
        watched = Watched(data)
        gc.collect()
        gc.disable()
        try:
            scores = score(net, found.couplings, self.criterion, Scoring(watched))
            assert all(seen() is None for seen in watched.seen)
        finally:
            gc.enable()
        assert scores
        assert bool(watched.seen) == self.needs_data

    def test_batches_are_bounded_and_read_inside_the_guard(self) -> None:
        net, data, found = given(self.usual)
        watched, entered = Watched(data), []

        @contextmanager
        def guard():
            entered.append(len(watched.seen))
            yield

        score(net, found.couplings, self.criterion, Scoring(watched, batches=2, step_guard=guard))
        assert len(watched.seen) == len(entered) == (2 if self.needs_data else 0)

    def test_a_failing_step_leaves_no_hook(self) -> None:
        """What the user's task raises goes through as it is."""
        net, data, found = given(self.usual)

        class Broken(Noise):
            def loss(self, model, batch):
                super().loss(model, batch)
                raise KeyError("label")

        broken = Broken(data.x.shape[1:])
        if not self.needs_data:
            return
        with pytest.raises(KeyError, match="label"):
            self.criterion.scores(net, found.couplings, Scoring(broken))
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        assert not any(getattr(module, kind) for module in net.modules() for kind in hooks)

    def test_data_that_are_needed_and_missing(self) -> None:
        net, data, found = given(self.usual)
        empty = Noise(data.x.shape[1:], count=0)
        for scoring, rule in ((Scoring(), "needs a task for"), (Scoring(empty), "has no batch")):
            if not self.needs_data:
                score(net, found.couplings, self.criterion, scoring)
                continue
            with pytest.raises(AutopruneError, match=f"'{self.criterion.name}'.*{rule}.*choose"):
                score(net, found.couplings, self.criterion, scoring)
