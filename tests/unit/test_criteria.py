from dataclasses import dataclass

import pytest
import torch
import torch_pruning as tp
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.pruning.criteria import CRITERIA, Scoring, criterion_of, score
from autoprune.pruning.graph import Dependencies, trace
from tests.pruning_tasks import Blobs, small_net

TASK = Blobs()


def found_in(net: nn.Module) -> Dependencies:
    return trace(net, TASK.example())


def scores_of(net: nn.Module, name: str, **scoring) -> dict[str, torch.Tensor]:
    found = found_in(net)
    return score(net, found.couplings, criterion_of(name), Scoring(task=TASK, **scoring))


def torch_prunings(net: nn.Module, importance) -> dict[str, torch.Tensor]:
    graph = tp.DependencyGraph().build_dependency(net.eval(), TASK.example())
    names = dict(net.named_modules())
    found = {}
    for name in ("0", "5"):
        pruner = graph.get_pruner_of_module(names[name])
        count = pruner.get_out_channels(names[name])
        group = graph.get_pruning_group(names[name], pruner.prune_out_channels, list(range(count)))
        found[name] = importance(group)
    return found


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_magnitudes_agree_with_torch_pruning(name, power):
    net = small_net()
    theirs = torch_prunings(net, tp.importance.GroupMagnitudeImportance(p=power))
    for group, ours in scores_of(net, name).items():
        torch.testing.assert_close((ours / ours.mean()).float(), theirs[group])


def test_first_order_scores_agree_with_torch_pruning():
    net = small_net().eval()
    TASK.loss(net, next(iter(TASK.batches("train", seed=5)))).backward()
    theirs = torch_prunings(net, tp.importance.GroupTaylorImportance())
    # Torch-Pruning 1.6.1 leaves the scale of batch norm out, so compare where there is none.
    ours = scores_of(net, "taylor", seed=5, batches=1)["5"]
    torch.testing.assert_close((ours / ours.mean()).float(), theirs["5"])


def test_first_order_scores_average_over_bounded_batches_inside_the_guard():
    entered = []

    @dataclass
    class Guard:
        def __enter__(self):
            entered.append(1)

        def __exit__(self, *_):
            return None

    scores_of(small_net(), "taylor", batches=2, step_guard=Guard)
    assert len(entered) == 2


def test_grouped_convolutions_count_every_channel_once():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 1, bias=False),
        nn.Conv2d(4, 4, 1, groups=2, bias=False),
        nn.Conv2d(4, 2, 1, bias=False),
    )
    nn.init.zeros_(net[0].weight)
    net[1].weight.data = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]])[..., None, None]
    first = scores_of(net, "l1")["0"]
    assert first.tolist() == [4, 6, 12, 14]


def test_random_scores_follow_the_seed_and_not_the_order():
    net = small_net()
    one, two = scores_of(net, "random", seed=1), scores_of(net, "random", seed=2)
    assert not torch.equal(one["0"], two["0"])
    found = found_in(net)
    back = score(net, found.couplings[::-1], criterion_of("random"), Scoring(seed=1))
    assert torch.equal(one["0"], back["0"])


def test_batch_norm_scale_falls_back_to_l1_for_a_group_without():
    net = small_net()
    nn.init.uniform_(net[1].weight, -1, 1)
    scores = scores_of(net, "bn_scale")
    torch.testing.assert_close(scores["0"], net[1].weight.detach().abs().double())
    assert torch.equal(scores["5"], scores_of(net, "l1")["5"])


def test_batch_norm_scale_refuses_a_network_without():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 4))
    with pytest.raises(AutopruneError, match="Sequential has none; choose l1, l2 or taylor"):
        scores_of(net, "bn_scale")


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_scoring_leaves_the_network_alone(name):
    net = small_net().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.get_rng_state()
    scores = scores_of(net, name)
    assert {k: v.dtype for k, v in scores.items()} == {"0": torch.float64, "5": torch.float64}
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert net.training
    assert torch.equal(rng, torch.get_rng_state())


@dataclass
class Own:
    found: dict
    name: str = "own"

    def scores(self, model, couplings, scoring):
        del model, couplings, scoring
        return self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "'own' gave no scores for group '0'; return one score for each of its 8 units"),
        ({"0": torch.zeros(3)}, r"gave scores of shape \(3,\) for group '0'"),
        ({"0": torch.full((8,), torch.nan)}, "scores for group '0' that are not finite"),
    ],
)
def test_scores_of_a_users_criterion_are_checked(found, message):
    net = small_net()
    with pytest.raises(AutopruneError, match=message):
        score(net, found_in(net).couplings, Own(found), Scoring())


def test_bad_requests():
    with pytest.raises(AutopruneError, match="criterion 'tailor' is not known; did you mean 'tay"):
        criterion_of("tailor")
    with pytest.raises(AutopruneError, match="'taylor' needs a task for its loss"):
        score(small_net(), found_in(small_net()).couplings, criterion_of("taylor"), Scoring())
    with pytest.raises(AutopruneError, match="reads 0 batches; choose 1 or more"):
        Scoring(batches=0)
    empty = Scoring(task=Blobs(samples=0))
    with pytest.raises(AutopruneError, match="train split has no batch"):
        score(small_net(), found_in(small_net()).couplings, criterion_of("taylor"), empty)
