"""Networks whose indices Torch-Pruning maps wrongly, or not at all."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.domain.bounds import Bounds, build_space
from autoprune.pruning.graph import trace
from autoprune.pruning.surgery import prune
from tests.unit.test_graph import Call, refusals

SECONDS = 20.0


def traced(model: nn.Module, example: torch.Tensor):
    """What can be pruned, and the network with half of that gone runs on a larger batch."""
    found = trace(model, example, time_limit_s=SECONDS)
    spec = build_space(found.groups, Bounds()).uniform(0.5)
    cut = prune(model, example, spec, dependencies=found).model
    with torch.no_grad():
        cut(torch.cat([example] * 3))
    return found


def sizes(found) -> dict[str, int]:
    return {group.name: group.size for group in found.groups}


@pytest.mark.parametrize(
    ("convolution", "side"), [(nn.Conv1d, (16,)), (nn.Conv2d, (4, 5)), (nn.Conv3d, (2, 3, 4))]
)
def test_whatever_is_flattened_is_followed_into_its_features(convolution, side):
    features = 6 * torch.Size(side).numel()
    net = nn.Sequential(
        convolution(3, 8, 3, padding=1),
        nn.ReLU(),
        convolution(8, 6, 3, padding=1),
        nn.Flatten(),
        nn.Linear(features, 5),
    )
    assert sizes(traced(net, torch.rand(1, 3, *side))) == {"0": 8, "2": 6}


def test_features_in_another_order_are_refused():
    net = Call(
        lambda net, x: net.head(net.b(net.a(x)).permute(0, 2, 3, 1).flatten(1)),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 6, 1),
        head=nn.Linear(6 * 16, 5),
    )
    found = traced(net, torch.rand(1, 3, 4, 4))
    assert sizes(found) == {"a": 8}
    assert "b" in refusals(found)


@pytest.mark.parametrize(
    "recurrent", [nn.GRU(12, 10, batch_first=True), nn.LSTM(12, 10, proj_size=4, batch_first=True)]
)
def test_a_recurrent_layer_costs_what_it_reads_and_no_more(recurrent):
    net = Call(
        lambda net, x: net.head(F.relu(net.f(net.rnn(net.embed(x))[0][:, -1]))),
        embed=nn.Linear(8, 12),
        rnn=recurrent,
        f=nn.Linear(4 if recurrent.proj_size else 10, 20),
        head=nn.Linear(20, 5),
    )
    found = traced(net, torch.rand(1, 6, 8))
    assert sizes(found) == {"f": 20}
    assert "embed" in refusals(found)


def turned(x: torch.Tensor) -> torch.Tensor:
    """Half of rotary positions: every pair of features by a right angle."""
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def attention(net: nn.Module, x: torch.Tensor, *, keys: int) -> torch.Tensor:
    batch, tokens, _ = x.shape

    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.view(batch, tokens, -1, 6).transpose(1, 2)

    query, key, value = heads(net.q(x)), heads(net.k(x)), heads(net.v(x))
    key, value = (y.repeat_interleave(4 // keys, 1) for y in (turned(key), value))
    said = F.scaled_dot_product_attention(turned(query), key, value)
    return net.out(said.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("keys", [4, 2])
def test_rotary_positions_and_shared_keys_come_to_an_end(keys):
    net = Call(
        lambda net, x: net.head(net.down(F.relu(net.up(x + attention(net, x, keys=keys)))).mean(1)),
        q=nn.Linear(8, 24),
        k=nn.Linear(8, 6 * keys),
        v=nn.Linear(8, 6 * keys),
        out=nn.Linear(24, 8),
        up=nn.Linear(8, 20),
        down=nn.Linear(20, 8),
        head=nn.Linear(8, 5),
    )
    assert sizes(traced(net, torch.rand(1, 7, 8)))["up"] == 20


def test_a_width_divided_by_another_is_no_group():
    """Heads and embedding halve together, by chance, where one is divided by the other's count."""

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.embed(x)
        batch, tokens, width = x.shape
        parts = (
            y.view(batch, tokens, 4, width // 4).transpose(1, 2) for y in net.qkv(x).chunk(3, -1)
        )
        said = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(batch, tokens, width)
        return net.head(F.relu(net.f((x + net.out(said)).mean(1))))

    net = Call(
        forward,
        embed=nn.Linear(8, 24),
        qkv=nn.Linear(24, 72),
        out=nn.Linear(24, 24),
        f=nn.Linear(24, 20),
        head=nn.Linear(20, 5),
    )
    net.num_heads = 4
    assert sizes(traced(net, torch.rand(1, 7, 8))) == {"f": 20}


def test_a_network_that_keeps_keys_for_the_next_token():
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=24, n_layer=2, n_head=4, n_positions=16, num_labels=5, pad_token_id=0
    )
    net = Call(
        lambda net, x: net.gpt(x).logits, gpt=transformers.GPT2ForSequenceClassification(config)
    )
    assert config.use_cache
    found = traced(net.eval(), torch.randint(1, 20, (1, 8)))
    assert sizes(found)["gpt.transformer.h.0.attn"] == 4
