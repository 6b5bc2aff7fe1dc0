import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.domain.errors import AutopruneError, FaultsError
from autoprune.domain.space import PruningSpec
from autoprune.pruning.graph import trace
from autoprune.pruning.isolation import outputs_of
from autoprune.pruning.reconstruct import Reconstruction, _rows, reconstruct
from autoprune.pruning.surgery import prune
from tests.pruning_tasks import Blobs, small_net
from tests.random_networks import EXAMPLE, Images, nets

TASK = Blobs()
PLAN = Reconstruction(batches=3, positions=4096, ridge=1e-8)


def halved(net: nn.Module, example: torch.Tensor):
    dependencies = trace(net, example)
    widths = {g.name: max(g.step, g.size // 2 // g.step * g.step) for g in dependencies.groups}
    return prune(net, example, PruningSpec.of(widths), dependencies=dependencies)


def twins(*, seed: int = 0) -> nn.Sequential:
    """A network whose hidden units come in pairs that compute the same; L1 tells them apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=2, dilation=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 4),
        )
    first, second = net[0], net[2]
    with torch.no_grad():
        first.weight[3:], first.bias[3:] = first.weight[:3], first.bias[:3]
        second.weight[4:], second.bias[4:] = second.weight[:4], second.bias[:4]
        second.weight[:, 3:] *= 0.1
        net[5].weight.view(4, 8, 4)[:, 4:] *= 0.1
    return net.eval()


@pytest.mark.parametrize("seed", range(3))
def test_units_that_others_can_stand_for_are_not_missed(seed):
    net = twins(seed=seed)
    pruned = halved(net, TASK.example())
    expected, cut = net(TASK.x), pruned.model(TASK.x)
    assert not torch.allclose(cut, expected, atol=2e-3)
    done = reconstruct(pruned.model, net, pruned.recipe.history, TASK, plan=PLAN, seed=0)
    assert done == ("2", "5")
    assert torch.allclose(pruned.model(TASK.x), expected, atol=2e-4)


@settings(max_examples=20)
@given(nets)
def test_what_a_layer_puts_out_comes_nearer_and_all_else_stays(net):
    task, before = Images(), copy.deepcopy(net.state_dict())
    pruned = halved(net, EXAMPLE)
    was = copy.deepcopy(pruned.model)
    random = torch.get_rng_state()
    done = reconstruct(
        pruned.model, net, pruned.recipe.history, task, plan=Reconstruction(batches=3), seed=1
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())
    assert "fc2" in done
    for name, parameter in pruned.model.named_parameters():
        layer = name.rpartition(".")[0]
        assert (layer in done) or torch.equal(parameter, was.get_parameter(name)), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pruned.model.modules())
    assert not any(m.training for m in pruned.model.modules())

    def missed(model: nn.Module) -> float:
        return float((outputs_of(model, task.x) - outputs_of(net, task.x)).square().mean())

    without = copy.deepcopy(pruned.model)
    without.fc2.load_state_dict(was.fc2.state_dict())
    assert missed(pruned.model) <= missed(without) * 1.01 + 1e-6


@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2), st.booleans())
def test_rows_are_what_a_convolution_multiplies(kernel, stride, dilation, padding, flat):
    kind = nn.Conv1d if flat else nn.Conv2d
    layer = kind(3, 4, kernel, stride=stride, dilation=dilation, padding=padding).double()
    given = torch.randn(2, 3, *([7] if flat else [7, 6]), dtype=torch.float64)
    wanted = layer(given)
    generator = torch.Generator().manual_seed(0)
    rows, outputs = _rows(layer, given, wanted, most=11, places=generator)
    assert len(rows) == min(11, wanted[:, 0].numel())
    assert torch.allclose(rows @ layer.weight.flatten(1).T + layer.bias, outputs)


def test_layers_that_are_not_fitted_stay():
    shared = nn.Linear(6, 6)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), shared, nn.ReLU(), shared, nn.Linear(6, 4))
    tied = nn.Linear(6, 6)
    tied.weight = shared.weight
    net.append(nn.Identity())
    pruned = halved(net, TASK.example())
    done = reconstruct(pruned.model, net, pruned.recipe.history, TASK, plan=PLAN, seed=0)
    assert "5" in done
    grouped = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(32, 4)
    )
    pruned = halved(grouped, TASK.example())
    done = reconstruct(pruned.model, grouped, pruned.recipe.history, TASK, plan=PLAN, seed=0)
    assert done == ("3",)


def test_a_network_that_was_not_cut_is_left_alone():
    net = small_net().eval()
    assert reconstruct(copy.deepcopy(net), net, (), TASK, plan=PLAN, seed=0) == ()


def test_what_cannot_be_fitted_stays_as_the_cut_left_it():
    net = twins()
    pruned = halved(net, TASK.example())
    was = copy.deepcopy(pruned.model.state_dict())
    with torch.no_grad():
        net[0].bias.fill_(float("nan"))
    done = reconstruct(pruned.model, net, pruned.recipe.history, TASK, plan=PLAN, seed=0)
    assert done == ()
    assert all(torch.equal(pruned.model.state_dict()[key], value) for key, value in was.items())


def test_no_batch():
    net = twins()
    pruned = halved(net, TASK.example())
    with pytest.raises(AutopruneError, match="no batch to reconstruct"):
        reconstruct(pruned.model, net, pruned.recipe.history, Blobs(samples=0), plan=PLAN, seed=0)


def test_values_out_of_range_are_told_together():
    with pytest.raises(FaultsError) as found:
        Reconstruction(batches=0, positions=0, ridge=0.0)
    assert found.value.faults == (
        "batches is 0; choose 1 or more",
        "positions is 0; choose 1 or more",
        "ridge is 0.0; choose a positive number",
    )
