import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.domain.errors import AutopruneError
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.criteria import CRITERIA, Hessian, Scoring, criterion_of, score
from autoprune.pruning.criteria.readers import readers_of
from autoprune.pruning.graph import Dependencies, trace
from tests.criteria_tasks import Excited, Noise, network
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


def test_lamp_is_the_share_of_all_that_are_no_lighter():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False), nn.Linear(4, 2, bias=False))
    nn.init.zeros_(net[2].weight)
    net[1].weight.data = torch.tensor([1.0, 0.0, 2.0, 2.0])[:, None] * torch.eye(16)[:4]
    # of the squares 1, 0, 4, 4 each over the sum of those that are at least as large
    torch.testing.assert_close(
        scores_of(net, "lamp")["1"], torch.tensor([1 / 9, 0, 1 / 2, 1 / 2]).double()
    )


def test_lamp_is_the_papers_score_where_no_two_are_equal():
    net = small_net()
    lamp, squares = scores_of(net, "lamp"), scores_of(net, "l2")
    for group, mass in squares.items():
        ascending = sorted(mass.tolist())
        theirs = {m: m / sum(ascending[i:]) for i, m in enumerate(ascending)}
        expected = torch.tensor([theirs[m] for m in mass.tolist()], dtype=torch.float64)
        torch.testing.assert_close(lamp[group], expected)


def test_the_geometric_median_of_filters_is_the_lowest():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False), nn.Linear(4, 2))
    corners = torch.tensor([[0.0, 0], [4, 0], [0, 3], [2, 1.5]])
    net[1].weight.data = F.pad(corners, (0, 14))
    # a rectangle's three corners and its centre, which is 2.5 away from each of them
    assert scores_of(net, "geometric_median")["1"].tolist() == [9.5, 11.5, 10.5, 7.5]


def test_the_geometric_median_is_of_what_makes_a_unit_in_all_coupled_layers():
    net, data = network("batch norm")
    found = trace(net, data.example())
    stem = next(c for c in found.couplings if c.group.name == "stem")
    both = [net.stem.weight, net.blocks[1].conv2.weight]
    if not {"stem", "blocks.1.conv2"} <= {m.layer for m in stem.members if m.side == "out"}:
        both = both[:1]
    long = torch.cat([weight.detach().double().flatten(1) for weight in both], 1)
    expected = torch.stack([(long - filter_).norm(dim=1).sum() for filter_ in long])
    ours = score(net, [stem], criterion_of("geometric_median"), Scoring())["stem"]
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_make_their_units_too(groups):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 1),
        nn.ConvTranspose2d(4, 4, 2, groups=groups, bias=False),
        nn.Conv2d(4, 2, 1),
    )
    made = net[1].weight.detach().double()
    rows = [made[:, u] if groups == 1 else made[2 * (u // 2) :, u % 2][:2] for u in range(4)]
    flat = torch.stack([row.flatten() for row in rows])
    torch.testing.assert_close(
        scores_of(net, "geometric_median")["1"], torch.cdist(flat, flat).sum(1)
    )


def bent(net: nn.Module, coupling: Coupling, unit: int, by: float) -> nn.Module:
    """The network with the weights that read a unit multiplied, as by a factor on its signal."""
    changed = copy.deepcopy(net)
    for member, layer in readers_of(changed, coupling):
        indices = member.index[member.unit == unit]
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            rows = layer.out_channels // layer.groups
            for index in indices:
                block, column = divmod(int(index), layer.weight.shape[1])
                layer.weight.data[block * rows : (block + 1) * rows, column] *= by
        else:
            layer.weight.data[:, indices] *= by
    return changed


def in_double(name: str) -> tuple[nn.Module, Noise, Dependencies]:
    net, data = network(name)
    net, data.x = net.double(), data.x.double()
    return net, data, trace(net, data.example())


def losses(net: nn.Module, data: Noise, size: int) -> list[torch.Tensor]:
    """The loss of every batch cut into pieces of `size` samples."""
    pairs = zip(data.x.split(size), data.y.split(size), strict=True)
    with torch.no_grad():
        return [data.loss(net, pair) for pair in pairs]


def test_taylor_is_the_first_order_of_every_weight():
    """Against differences of the loss, one weight of a unit at a time."""
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double(), Noise((5,))
    data.x = data.x.double()
    found, step = trace(net, data.example()), 1e-6
    ours = score(net, found.couplings, criterion_of("taylor"), Scoring(data))["0"]
    expected = torch.zeros(4, dtype=torch.float64)
    for unit in range(4):
        # its row in the layer that makes it, its column in the one that reads it
        places = [(0, unit, i) for i in range(5)] + [(2, i, unit) for i in range(3)]
        for layer, row, column in places:
            weight = net[layer].weight.data
            kept = float(weight[row, column])
            weight[row, column] = kept * (1 + step)
            up = torch.stack(losses(net, data, 4))
            weight[row, column] = kept * (1 - step)
            down = torch.stack(losses(net, data, 4))
            weight[row, column] = kept
            expected[unit] += ((up - down) / (2 * step)).abs().mean()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["fisher", "hessian", "activation", "apoz"])
def test_a_group_that_no_layer_reads_falls_back_to_l1(name):
    net, data = network("gated")
    unread = [
        replace(c, members=tuple(m for m in c.members if m.side == "out"))
        for c in trace(net, data.example()).couplings
    ]
    ours, l1 = (score(net, unread, criterion_of(n), Scoring(data)) for n in (name, "l1"))
    assert all(torch.equal(ours[group], l1[group]) for group in l1)


def test_fisher_is_the_mean_square_of_every_samples_slope():
    """Against differences of the loss of single samples, one unit at a time."""
    net, data, found = in_double("smooth")
    ours, step = score(net, found.couplings, criterion_of("fisher"), Scoring(data)), 1e-5
    for coupling in found.couplings:
        for unit in range(coupling.group.size):
            up = torch.stack(losses(bent(net, coupling, unit, 1 + step), data, 1))
            down = torch.stack(losses(bent(net, coupling, unit, 1 - step), data, 1))
            expected = ((up - down) / (2 * step)).square().mean() / 2
            torch.testing.assert_close(
                ours[coupling.group.name][unit], expected, rtol=1e-5, atol=1e-12
            )


def second_differences(net: nn.Module, data: Noise, coupling: Coupling) -> torch.Tensor:
    """Half the second derivative of the mean loss by a factor on each unit."""
    whole, step = torch.stack(losses(net, data, 4)).mean(), 1e-4
    found = []
    for unit in range(coupling.group.size):
        up = torch.stack(losses(bent(net, coupling, unit, 1 + step), data, 4)).mean()
        down = torch.stack(losses(bent(net, coupling, unit, 1 - step), data, 4)).mean()
        found.append((up - 2 * whole + down) / (2 * step**2))
    return torch.stack(found)


def test_the_hessian_is_that_of_the_loss_by_a_factor_on_each_unit():
    """Exactly with ReLUs and max pooling, and with as many probes as outputs."""
    net, data, found = in_double("vgg")
    ours = score(net, found.couplings, Hessian(probes=3), Scoring(data))
    for coupling in found.couplings:
        expected = second_differences(net, data, coupling)
        torch.testing.assert_close(
            ours[coupling.group.name], expected, rtol=1e-3, atol=1e-3 * float(expected.max())
        )


def test_fewer_probes_than_outputs_come_near_it():
    net, data, found = in_double("mlp")
    exact = score(net, found.couplings, Hessian(probes=3), Scoring(data))
    fewer = score(net, found.couplings, Hessian(probes=2), Scoring(data))
    assert any(not torch.equal(exact[name], fewer[name]) for name in exact)
    many = [
        score(net, found.couplings, Hessian(probes=2), Scoring(data, seed=s)) for s in range(60)
    ]
    for name, expected in exact.items():
        mean = torch.stack([scores[name] for scores in many]).mean(0)
        assert (mean - expected).abs().max() < 0.15 * expected.max()


class Quadratic(Noise):
    """Half the sum of squares of a network's outputs, each with a weight of its own."""

    def loss(self, model, batch):
        outputs = model(batch[0])
        return (torch.arange(1.0, outputs.shape[1] + 1) * outputs**2).sum(1).mean() / 2


def test_the_hessian_of_a_quadratic_is_exact():
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3, bias=False)), Quadratic((5,))
    found = trace(net, data.example())
    ours = score(net, found.couplings, Hessian(), Scoring(data))["0"]
    # of each unit by the weights that read it: h^2 sum_k c_k w_k^2
    curvature = (torch.tensor([1.0, 2, 3])[:, None] * net[1].weight ** 2).sum(0)
    expected = (curvature * net[0](data.x) ** 2).mean(0).detach() / 2
    torch.testing.assert_close(ours.float(), expected)


class Flat(Noise):
    """A loss that is linear in a network's outputs."""

    def loss(self, model, batch):
        return model(batch[0]).sum()


class Rough(Noise):
    """A loss whose gradient PyTorch cannot differentiate."""

    def loss(self, model, batch):
        steps = model(batch[0]).log_softmax(1)[:, None]  # a sequence of four, [4, 1, 3]
        return F.ctc_loss(steps, torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Flat((5,)), "'hessian' needs a loss that is bent by the outputs of Sequential, and this"),
        (Rough((5,)), "'hessian' needs a loss with second derivatives .*; choose fisher or tayl"),
    ],
)
def test_a_loss_without_curvature_is_refused_by_the_hessian(data, message):
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    found = trace(net, data.example())
    with pytest.raises(AutopruneError, match=message):
        score(net, found.couplings, criterion_of("hessian"), Scoring(data))
    assert score(net, found.couplings, criterion_of("fisher"), Scoring(data))


def test_the_hessian_of_a_network_that_returns_its_loss_too():
    class Both(nn.Sequential):
        def forward(self, x):
            out = super().forward(x)
            return {"loss": (out**2).sum(1).mean() / 2, "logits": out}

    class Returned(Noise):
        def loss(self, model, batch):
            return model(batch[0])["loss"]

    net, data = Both(nn.Linear(5, 4), nn.Linear(4, 3, bias=False)), Returned((5,))
    found = trace(net, data.example())
    many = [score(net, found.couplings, Hessian(), Scoring(data, seed=s))["0"] for s in range(40)]
    expected = (net[1].weight.square().sum(0) * net[0](data.x) ** 2).mean(0).detach().double() / 2
    assert (torch.stack(many).mean(0) - expected).abs().max() < 0.15 * expected.max()


def test_activations_by_hand():
    """Two samples, a unit that is never on, one that is on for one of them, one that always is."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    net[0].weight.data = torch.tensor([[-1.0, -1], [1, 0], [1, 2]])
    data = Noise((2,), classes=2, count=1)
    data.x, data.y = torch.tensor([[1.0, 1], [0, 3]]), torch.tensor([0, 1])
    found = trace(net, data.example())
    loud = score(net, found.couplings, criterion_of("activation"), Scoring(data))["0"]
    assert loud.tolist() == [0, 0.5, 4.5]
    often = score(net, found.couplings, criterion_of("apoz"), Scoring(data))["0"]
    assert often.tolist() == [0, 0.5, 1]


def test_activations_of_a_flattened_channel_are_those_of_all_its_positions():
    net = small_net(dropout=0.0).eval()
    heard = torch.cat([net[:4](x).detach() for x, _ in TASK.batches("train", seed=0)])
    expected = heard.unflatten(1, (8, 16)).abs().mean((0, 2))
    torch.testing.assert_close(scores_of(net, "activation")["0"].float(), expected)
    shares = (heard.unflatten(1, (8, 16)) != 0).double().mean((0, 2))
    torch.testing.assert_close(scores_of(net, "apoz")["0"], shares)


def test_a_group_without_a_zero_falls_back_to_l1_for_apoz():
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)
    )
    scores = scores_of(net, "apoz")
    assert scores["1"].max() <= 1
    assert torch.equal(scores["3"], scores_of(net, "l1")["3"])


@pytest.mark.parametrize("style", ["module", "hard", "conv", "in place"])
def test_gates_are_averaged_over_data_however_they_are_written(style):
    net, data = Excited(style).eval(), Noise((3, 5, 5))
    found = trace(net, data.example())
    scores = score(net, found.couplings, criterion_of("se_gate"), Scoring(data))
    with torch.no_grad():
        maps = F.relu(net.norm(net.conv(data.x)))
        inner = F.relu(net.squeeze(maps.mean((2, 3))))
        out = net.excite(inner[:, :, None, None]).flatten(1) if style == "conv" else None
        out = net.excite(inner) if out is None else out
        gate = F.hardsigmoid(out) if style == "hard" else out.sigmoid()
    torch.testing.assert_close(scores["conv"].float(), gate.mean(0))
    assert torch.equal(
        scores["read"], score(net, found.couplings, criterion_of("l1"), Scoring())["read"]
    )


def test_a_sigmoid_that_gates_nothing_is_no_gate():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Sigmoid(), nn.Linear(6, 4))
    assert torch.equal(scores_of(net, "se_gate")["1"], scores_of(net, "l1")["1"])


def test_samples_that_cannot_be_told_apart_are_refused():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(7, 6), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = torch.relu(self.fc1(x.transpose(0, 1)))  # positions first, samples second
            return self.fc3(torch.relu(self.fc2(x)).mean(0))

    net, data = Turned(), Noise((5, 7))
    found = trace(net, data.example())
    for name in ("fisher", "hessian"):
        with pytest.raises(
            AutopruneError,
            match=rf"{name}' tells samples apart.*'fc1' takes \[5, 4, 6\] for 4 samples; choose ta",
        ):
            score(net, found.couplings, criterion_of(name), Scoring(data))
    assert score(net, found.couplings, criterion_of("taylor"), Scoring(data))


def test_layers_may_be_called_by_keyword():
    class Named(nn.Sequential):
        def forward(self, x):
            for layer in self:
                x = layer(input=x)
            return x

    net, data = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), Noise((5,))
    found = trace(net, data.example())
    for name in ("activation", "apoz", "fisher", "hessian"):
        one, two = (
            score(model, found.couplings, criterion_of(name), Scoring(data))["0"]
            for model in (net, Named(*net))
        )
        assert torch.equal(one, two)


def test_samples_that_a_network_cuts_into_pieces_keep_together():
    """As windowed attention does: the pieces of a sample stand one after the other."""

    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 6), nn.Linear(6, 3)

        def forward(self, x):
            y = self.fc2(torch.tanh(self.fc1(x.reshape(-1, 3))))
            return y.reshape(len(x), -1, 3).mean(1)

    class Whole(Pieces):
        def forward(self, x):
            return self.fc2(torch.tanh(self.fc1(x.reshape(len(x), -1, 3)))).mean(1)

    data, one, two = Noise((6,)), Pieces(), Whole()
    two.load_state_dict(one.state_dict())
    found = trace(two, data.example())
    for name in ("fisher", "hessian"):
        scores = [
            score(net, found.couplings, criterion_of(name), Scoring(data))["fc1"]
            for net in (one, two)
        ]
        torch.testing.assert_close(*scores)


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


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"se_gate"}))
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
    with pytest.raises(AutopruneError, match="'hessian' draws 0 probes a batch; choose 1 or more"):
        Hessian(probes=0)
    with pytest.raises(AutopruneError, match="criterion 'tailor' is not known; did you mean 'tay"):
        criterion_of("tailor")
    with pytest.raises(AutopruneError, match="'taylor' needs a task for its loss"):
        score(small_net(), found_in(small_net()).couplings, criterion_of("taylor"), Scoring())
    with pytest.raises(AutopruneError, match="reads 0 batches; choose 1 or more"):
        Scoring(batches=0)
    empty = Scoring(task=Blobs(samples=0))
    with pytest.raises(AutopruneError, match="train split has no batch"):
        score(small_net(), found_in(small_net()).couplings, criterion_of("taylor"), empty)
