import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.measurement.cost import costs


def test_a_linear_layer_by_hand():
    found = costs(nn.Linear(4, 3), torch.zeros(1, 4))
    assert found == {
        "macs": 12.0,
        "params": 15.0,
        "size_mb": 60 / 1e6,
        "peak_memory_mb": (60 + 16 + 12) / 1e6,
    }


def test_a_convolutional_network_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 8*6*6 outputs of 27 products
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8),  # depthwise: 8*4*4 outputs of 9 products
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    found = costs(model, torch.zeros(1, 3, 6, 6))
    params = 216 + 16 + (72 + 8) + (1280 + 10)
    assert found["macs"] == 8 * 36 * 27 + 8 * 16 * 9 + 1280
    assert found["params"] == params
    assert found["size_mb"] == (4 * (params + 16) + 8) / 1e6  # statistics and the batch counter
    # The caller holds the input; the largest moment is batch norm's input beside its output,
    # as the rectifier works in place.
    assert found["peak_memory_mb"] == pytest.approx(
        found["size_mb"] + 4 * (3 * 36 + 2 * 8 * 36) / 1e6
    )


def test_results_are_freed_as_the_forward_pass_goes_on():
    layers = [nn.Linear(10, 10, bias=False) for _ in range(6)]
    found = costs(nn.Sequential(*layers), torch.zeros(1, 10))
    assert found["peak_memory_mb"] == (6 * 400 + 3 * 40) / 1e6


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


def test_attention_counts_scores_and_mixture():
    assert costs(Attention(), torch.zeros(1, 2, 5, 8))["macs"] == 2 * (2 * 5 * 5 * 8)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_layer_is_counted_in_spite_of_its_fast_path(batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    shape = (1, 5, 8) if batch_first else (5, 1, 8)
    projections, attention, feed_forward = 5 * 8 * 32, 2 * 5 * 5 * 8, 5 * 8 * 32
    enabled = torch.backends.mha.get_fastpath_enabled()
    assert costs(layer, torch.zeros(shape))["macs"] == projections + attention + feed_forward
    assert torch.backends.mha.get_fastpath_enabled() == enabled


class Lstm(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True, **arguments)

    def forward(self, x):
        return self.lstm(x)[0]


@pytest.mark.parametrize("directions", [1, 2])
def test_a_recurrent_layer_counts_every_step(directions):
    model = Lstm(bidirectional=directions == 2)
    found = costs(model, torch.zeros(1, 7, 4))
    assert found["macs"] == directions * 7 * (4 * 3 * 4 + 4 * 3 * 3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


def test_tied_weights_count_once():
    found = costs(Tied(), torch.zeros(1, 3, dtype=torch.long))
    assert found["params"] == 40
    assert found["size_mb"] == 160 / 1e6
    assert found["macs"] == 3 * 40


class TwoInputs(nn.Module):
    def forward(self, a, b):
        return a @ b


@pytest.mark.parametrize(
    "example",
    [
        (torch.zeros(1, 2, 3), torch.zeros(1, 3, 4)),
        {"b": torch.zeros(1, 3, 4), "a": torch.zeros(1, 2, 3)},
    ],
)
def test_examples_of_any_shape(example):
    found = costs(TwoInputs(), example)
    assert found == {
        "macs": 24.0,
        "params": 0.0,
        "size_mb": 0.0,
        "peak_memory_mb": 4 * (6 + 12 + 8) / 1e6,
    }


def test_half_precision_counts_half_the_bytes():
    assert costs(nn.Linear(4, 3).half(), torch.zeros(1, 4).half())["size_mb"] == 30 / 1e6


def test_the_same_model_costs_the_same_and_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU())
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    example = torch.randn(1, 3, 8, 8)
    first = costs(model, example)
    assert all(costs(model, example) == first for _ in range(3))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
