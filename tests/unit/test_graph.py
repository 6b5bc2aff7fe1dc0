import gc
import pickle
import threading
import time
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

from autoprune import models
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Cause, TrialError
from autoprune.pruning.graph import GraphError, trace
from autoprune.pruning.limit import TimeLimitError, run_limited
from autoprune.pruning.surgery import prune

IMAGE = torch.zeros(1, 3, 8, 8)


class Call(nn.Module):
    """A network from a forward function over named layers."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self._function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self._function(self, x)


def chain(*, norm: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )


def refusals(found) -> dict[str, str]:
    return {refused.name: refused.reason for refused in found.refused}


def test_groups_have_kind_size_layers_and_forward_order():
    found = trace(chain(), IMAGE)
    assert [(g.name, g.kind, g.size, g.step) for g in found.groups] == [
        ("0", "channels", 8, 1),
        ("4", "neurons", 6, 1),
    ]
    assert found.groups[0].layers == ("0", "1", "4")
    assert refusals(found) == {"6": "its units are part of the network's output"}


def test_frozen_layers_are_prunable_and_stay_frozen():
    net = chain().requires_grad_(False)
    pruned = prune(net, IMAGE, PruningSpec.of({"0": 3, "4": 2})).model
    assert pruned[0].out_channels == 3
    assert not any(p.requires_grad for p in [*net.parameters(), *pruned.parameters()])


def test_gradients_under_no_grad_and_training_mode_survive():
    net = chain()
    net(IMAGE.expand(2, -1, -1, -1)).sum().backward()
    grads = [p.grad for p in net.parameters()]
    with torch.no_grad():
        assert len(trace(net, IMAGE).groups) == 2
    assert all(p.grad is g for p, g in zip(net.parameters(), grads, strict=True))
    assert net.training


def test_an_output_hidden_behind_a_residual_is_refused():
    net = Call(
        lambda m, x: m.b(F.relu(m.a(x))) + m.a(x), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)
    )
    with pytest.raises(GraphError, match=r"no prunable group .*a: its units are part of the net"):
        trace(net, IMAGE)


def test_outputs_in_a_dict_are_all_outputs():
    net = Call(
        lambda m, x: {"mask": m.b(h := F.relu(m.a(x))), "scores": [m.c(h)]},
        a=nn.Conv2d(3, 6, 1),
        b=nn.Conv2d(6, 2, 1),
        c=nn.Conv2d(6, 3, 1),
    )
    found = trace(net, IMAGE)
    assert [g.name for g in found.groups] == ["a"]
    assert set(refusals(found)) == {"b", "c"}


def test_an_encoder_layer_of_pytorch_gives_its_embedding_its_heads_and_its_neurons():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = nn.Sequential(nn.Linear(5, 16), layer, nn.Linear(16, 3))
    found = trace(net, torch.zeros(1, 4, 5))
    assert [(g.name, g.kind, g.size) for g in found.groups] == [
        ("0", "neurons", 16),
        ("1.self_attn", "heads", 2),
        ("1.linear1", "neurons", 32),
    ]


def test_layers_that_cannot_be_cut_are_named():
    net = Call(
        lambda m, x: m.out(m.rnn(m.a(x))[0]),
        a=nn.Linear(5, 8),
        rnn=nn.LSTM(8, 6, batch_first=True),
        out=nn.Linear(6, 2),
    )
    with pytest.raises(GraphError, match="coupled to LSTM 'rnn', which cannot be cut"):
        trace(net, torch.zeros(1, 4, 5))


def test_a_parametrized_weight_is_refused_with_the_remedy():
    net = chain()
    parametrizations.weight_norm(net[4])
    with pytest.raises(GraphError, match=r"0: the weight of '4' is computed .* parametrization fi"):
        trace(net, IMAGE)


def test_a_hard_coded_reshape_is_refused():
    net = Call(
        lambda m, x: m.b(F.relu(m.a(x)).view(-1, 8 * 64)),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Linear(8 * 64, 6),
    )
    net = nn.Sequential(net, nn.ReLU(), nn.Linear(6, 2))
    found = trace(net, IMAGE)
    assert [g.name for g in found.groups] == ["0.b"]
    assert "does not run without some of its units" in refusals(found)["0.a"]


@pytest.mark.parametrize("elsewhere", ["in training", "on several samples"])
def test_what_a_layer_reads_that_the_example_never_reaches_is_refused(elsewhere):
    def forward(m, x):
        first = F.relu(m.a(x))
        reached = m.aux.training if elsewhere == "in training" else len(x) > 1
        second = m.b(first) + m.aux(first) if reached else m.b(first)
        return m.head(F.relu(m.c(F.relu(second))).mean((2, 3)))

    net = Call(
        forward,
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 6, 3, padding=1),
        aux=nn.Conv2d(8, 6, 1),
        c=nn.Conv2d(6, 5, 1),
        head=nn.Linear(5, 4),
    )
    found = trace(net, IMAGE)
    assert [group.name for group in found.groups] == ["c"]
    for name in ("a", "b"):
        assert "runs in training or on several samples alone" in refusals(found)[name]
    pruned = prune(net, IMAGE, PruningSpec.of({"c": 2})).model.train()
    assert pruned(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_names_with_a_colon_are_names_like_others():
    net = nn.Sequential()
    net.add_module("a:b", nn.Conv2d(3, 8, 8))
    net.add_module("flat", nn.Flatten())
    net.add_module(":", nn.Linear(8, 4))
    found = trace(net, IMAGE)
    assert [group.name for group in found.groups] == ["a:b"]
    assert list(refusals(found)) == [":"]


def test_groups_that_cannot_go_together_are_each_refused_once():
    def narrow(m, x):
        a, b = F.relu(m.a(x)), F.relu(m.b(x))
        if a.shape[1] + b.shape[1] < 6:
            raise ValueError("too narrow")
        return m.c(a) + m.d(b)

    layers = {name: nn.Conv2d(3, 4, 1) for name in "ab"}
    net = Call(narrow, **layers, c=nn.Conv2d(4, 2, 1), d=nn.Conv2d(4, 2, 1))
    with pytest.raises(GraphError) as refused:
        trace(net, IMAGE)
    for name in "ab":
        assert str(refused.value).count(f"{name}: together with others: the network does not") == 1


def test_units_that_are_normalised_in_the_networks_own_code_are_refused():
    net = Call(
        lambda m, x: m.c(F.relu(m.b(F.normalize(m.a(x), dim=1)))),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 6, 1),
        c=nn.Conv2d(6, 2, 1),
    )
    found = trace(net, IMAGE)
    assert [g.name for g in found.groups] == ["b"]
    assert "a normalisation over channels in the network's own code" in refusals(found)["a"]


def test_a_wrong_group_does_not_hide_behind_zero_weights():
    net = Call(
        lambda m, x: m.c(m.b(x) + m.a(x).flip(1)),
        a=nn.Conv2d(3, 6, 1),
        b=nn.Conv2d(3, 6, 1),
        c=nn.Conv2d(6, 2, 1),
    )
    nn.init.zeros_(net.a.weight)
    nn.init.zeros_(net.a.bias)
    with pytest.raises(GraphError, match="cannot be told apart"):
        trace(net, IMAGE)


def test_tied_weights_must_be_cut_alike():
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            x = self.embed(tokens)
            return self.head(x + self.down(F.gelu(self.up(x))))

    net, tokens = Language(), torch.zeros(1, 5, dtype=torch.long)
    assert [(g.name, g.size) for g in trace(net, tokens).groups] == [("up", 16), ("down", 8)]
    pruned = prune(net, tokens, PruningSpec.of({"up": 5, "down": 4})).model
    assert pruned.head.weight is pruned.embed.weight
    assert pruned.embed.weight.shape == (11, 4)

    mlp = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    mlp[2].weight = mlp[0].weight
    with pytest.raises(GraphError, match="share a parameter that this group would cut in one"):
        trace(mlp, torch.zeros(1, 6))


@pytest.mark.parametrize(("groups", "step"), [(1, 1), (2, 2), (4, 4)])
def test_grouped_convolutions_keep_equally_many_in_each_group(groups, step):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 1, groups=groups),
        nn.GroupNorm(2, 8) if groups > 1 else nn.Identity(),
        nn.ConvTranspose2d(8, 4, 2, groups=groups if groups < 4 else 1),
        nn.Conv2d(4, 2, 1),
    )
    found = trace(net, IMAGE)
    assert [(g.name, g.step) for g in found.groups][:2] == [("0", step), ("1", step)]
    pruned = prune(net, IMAGE, PruningSpec.of({"0": 4, "1": 4}), dependencies=found).model
    assert pruned[1].weight.shape[:2] == (4, 4 // groups)


def test_a_depthwise_convolution_with_a_multiplier_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    assert "allows no even removal" in refusals(trace(net, IMAGE))["0"]


def test_a_free_parameter_over_channels_goes_with_them():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))

        def forward(self, x):
            return self.b(F.relu(self.a(x)) * self.scale)

    net = Scaled()
    pruned = prune(net, IMAGE, PruningSpec.of({"a": 3})).model
    assert pruned.scale.shape == (1, 3, 1, 1)


def test_a_failing_example_names_layer_error_and_shape():
    with pytest.raises(GraphError, match=r"shape \(1, 1, 8, 8\) in layer '0': RuntimeError: "):
        trace(chain(), torch.zeros(1, 1, 8, 8))


def test_other_networks_that_cannot_be_traced_say_why():
    with pytest.raises(GraphError, match=r"no prunable group .it has no layer to prune"):
        trace(nn.Sequential(nn.ReLU()), IMAGE.requires_grad_(True))
    IMAGE.requires_grad_(False)
    with pytest.raises(GraphError, match=r"layers \['1'\] have no shape yet; run the network once"):
        trace(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), IMAGE)
    broken = chain()
    nn.init.constant_(broken[4].weight, 1e30)
    infinite = Call(lambda m, x: m.net(x) / 0 * 0, net=broken)
    with pytest.raises(GraphError, match="no output of the network is finite"):
        trace(infinite, IMAGE)
    uncopyable = chain()
    uncopyable.lock = threading.Lock()
    with pytest.raises(GraphError, match="cannot be copied: cannot pickle"):
        trace(uncopyable, IMAGE)


def test_a_graph_that_takes_too_long_is_given_up():
    def slow(_m, _x):
        while True:
            time.sleep(0.01)

    with pytest.raises(GraphError, match=r"was not built within 0\.2 s; raise the time limit"):
        trace(Call(slow, a=nn.Linear(2, 2)), torch.zeros(1, 2), time_limit_s=0.2)
    with pytest.raises(GraphError, match=r"over whose steps layers \['rnn'\] are unrolled"):
        trace(Call(slow, rnn=nn.GRU(2, 2)), torch.zeros(1, 2), time_limit_s=0.2)
    assert len(trace(chain(), IMAGE).groups) == 2


def test_the_time_limit_ends_its_thread_and_nothing_else():
    seen: list[BaseException] = []

    def stubborn() -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception as error:  # does not catch what ends the thread
                seen.append(error)

    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            run_limited(stubborn, seconds=0.05)
        except TimeLimitError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert not seen
    assert not [t for t in threading.enumerate() if t.name == "autoprune-limited"]
    assert run_limited(lambda: 7, seconds=5) == 7
    with pytest.raises(KeyError, match="x"):
        run_limited(lambda: {}["x"], seconds=5)


def test_networks_of_earlier_trials_are_not_kept_alive():
    others = batch_norms()  # other tests' own; held, so that no new one has the identity of theirs
    alive = []
    for width in range(2, 22):
        net = nn.Sequential(
            nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 64, 2)
        )
        pruned = prune(net, IMAGE, PruningSpec.of({"0": 1}))
        alive += [weakref.ref(net), weakref.ref(pruned.model)]
        del net, pruned
    gc.collect()
    assert not [ref for ref in alive if ref() is not None]
    known = set(map(id, others))
    assert not [norm for norm in batch_norms() if id(norm) not in known]


def batch_norms() -> list[nn.BatchNorm2d]:
    return [thing for thing in gc.get_objects() if type(thing) is nn.BatchNorm2d]


@pytest.mark.parametrize(
    ("build", "groups"),
    [
        (lambda: models.vgg(width=8, depth=11), 5),
        (lambda: models.resnet(depth=8), 6),
        (lambda: models.mobilenet(width=0.25, depth=0.5), 8),
        (lambda: models.vit(width=32, depth=2), 2),
        (lambda: models.mlp(width=16), 2),
    ],
    ids=["vgg", "resnet", "mobilenet", "vit", "mlp"],
)
def test_the_built_in_networks_can_be_pruned(build, groups):
    net = build()
    example = torch.zeros(1, 3, 32, 32)
    found = trace(net, example)
    assert len(found.groups) >= groups
    halves = {g.name: max(g.step, g.size // 2 // g.step * g.step) for g in found.groups}
    prune(net, example, PruningSpec.of(halves), dependencies=found)


@pytest.mark.parametrize("error", [GraphError("why"), TrialError(Cause.NAN_LOSS, "why")])
def test_a_trials_error_travels_between_processes(error):
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived), arrived.cause) == (type(error), "why", error.cause)


class Pixels(nn.Module):
    """Attention among the pixels of an image, with a residual around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        asked = self.norm(tokens)
        tokens = tokens + self.attention(asked, asked, asked, need_weights=False)[0]
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def test_pixels_that_are_tokens_for_a_while_come_to_an_end():
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), Pixels(6), *pool, nn.Linear(6, 3))
    found = trace(net, torch.zeros(1, 3, 5, 5), time_limit_s=20)
    assert ("1.attention", "heads", 2) in [(g.name, g.kind, g.size) for g in found.groups]
