"""Sparse layers: what they stand for, how they travel, what stays dense, what is on disk."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.measurement.cost import costs
from autoprune.models import mobilenet, vit
from autoprune.orchestration.artifacts import write_weights
from autoprune.pruning.macs import layer_macs
from autoprune.pruning.masks import (
    magnitude_masks,
    masked,
    two_of_four_masks,
    weights_of,
    zero_macs,
)
from autoprune.pruning.sparse_layers import CsrMatrix, TwoOfFourLinear
from autoprune.pruning.sparse_networks import has_two_of_four, with_csr, with_two_of_four
from autoprune.pruning.sparse_storage import Size, two_of_four_state, values_and_metadata

IMAGE = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))


class ByKeyword(nn.Module):
    """A network that calls its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(3, 4, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(input=x)


class Own(nn.Linear):
    """A layer that computes something else than its class."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


def test_a_csr_matrix_travels_after_it_has_been_used() -> None:
    matrix = CsrMatrix(torch.eye(4)[:3])
    inputs = torch.randn(4, 2)
    with torch.inference_mode():
        expected = matrix(inputs)
    for other in (copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix))):
        with torch.no_grad():
            assert torch.equal(other(inputs), expected)
    assert matrix.to(torch.float64)(inputs.double()).dtype is torch.float64


def test_indices_are_of_32_bits_and_a_csr_network_is_its_state_dict() -> None:
    matrix = CsrMatrix(torch.eye(4))
    assert {name: tensor.dtype for name, tensor in matrix.state_dict().items()} == {
        "rows": torch.int32,
        "columns": torch.int32,
        "values": torch.float32,
    }


def test_layers_that_torch_has_no_csr_kernels_for_stay_dense() -> None:
    layers: list[tuple[nn.Module, torch.Tensor, int]] = [
        (nn.Conv2d(4, 4, 3, groups=2), torch.randn(1, 4, 5, 5), 0),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), torch.randn(1, 4, 5, 5), 0),
        (nn.Conv2d(4, 4, 3, padding="same"), torch.randn(1, 4, 5, 5), 0),
        (nn.Conv1d(4, 4, 3), torch.randn(1, 4, 5), 0),
        (Own(4, 4), torch.randn(1, 4), 0),
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), torch.randn(1, 4, 5, 5), 1),
        (nn.Linear(4, 4), torch.randn(1, 4), 1),
    ]
    for layer, inputs, converted in layers:
        found = with_csr(nn.Sequential(layer), inputs)
        assert (found.layers, found.of) == (converted, 1), layer
        with torch.no_grad():
            torch.testing.assert_close(found.model(inputs), layer(inputs), rtol=1e-4, atol=1e-5)


def test_attention_keeps_its_own_projections() -> None:
    """nn.MultiheadAttention reads the weights of a linear layer that it never calls."""
    network = vit(width=32, depth=2, in_channels=1, image_side=16).eval()
    found = with_csr(network, IMAGE)
    assert (found.layers, found.of) == (1 + 2 * 2 + 1, 1 + 2 * 4 + 1)
    with torch.no_grad():
        torch.testing.assert_close(found.model(IMAGE), network(IMAGE), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_calls_its_sparse_layers() -> None:
    """PyTorch's encoders read the weights of their layers, in evaluation mode, where they can."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    network, example = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 5, 16)
    found = with_csr(network, example)
    assert found.layers == 2 * 2
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        for given in ({}, {"src_key_padding_mask": padding}):
            said, expected = found.model(example, **given), network(example, **given)
            torch.testing.assert_close(said[~padding], expected[~padding], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "example"),
    [
        (vit(width=32, depth=2, in_channels=1, image_side=16), IMAGE),
        (mobilenet(in_channels=1), IMAGE),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), torch.randn(1, 3, 5, 5)),
        (ByKeyword(), torch.randn(1, 3, 5, 5)),
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(1, 5, 16)),
        (nn.Conv1d(4, 6, 3, groups=2), torch.randn(1, 4, 9)),
    ],
    ids=["vit", "mobilenet", "transposed", "keyword", "encoder", "conv1d"],
)
def test_all_multiplications_by_weights_are_counted(
    network: nn.Module, example: torch.Tensor
) -> None:
    """With every weight at zero what remains are products of two results, in attention alone."""
    network.eval()
    weights = weights_of(network)
    nothing = masked(network, {name: torch.zeros_like(w) for name, w in weights.items()})
    attention = 0.0
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):
            tokens = 5 if module.embed_dim == 16 else 16
            attention += 2 * tokens * tokens * module.embed_dim
    whole = costs(network, example)["macs"]
    assert zero_macs(nothing, example) == whole - attention
    if not attention:
        assert sum(layer_macs(network, example).values()) == whole


def test_transposed_convolutions_have_no_four_along_their_outputs() -> None:
    layer = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    assert list(two_of_four_masks(layer)) == ["1.weight"]


def test_a_size_is_that_of_the_file(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32))
    write_weights(tmp_path / "weights.safetensors", network.state_dict())
    size = Size.of(network.state_dict())
    assert size.bytes == (tmp_path / "weights.safetensors").stat().st_size
    assert 0.8 * size.bytes < size.zipped_bytes < size.bytes
    nothing = Size.of({"weight": torch.zeros(10_000)})
    assert nothing.zipped_bytes < 1000 < 40_000 < nothing.bytes


def test_what_the_formats_take() -> None:
    """Of float32: CSR 8 bytes a kept weight, 2:4 half of 4 and a bit for every weight."""
    layer = nn.Linear(256, 256, bias=False)
    count = layer.weight.numel()
    halved = masked(layer, magnitude_masks(layer, kept=count // 2))
    csr = Size.of(with_csr(nn.Sequential(halved), torch.randn(1, 256)).model.state_dict()).bytes
    assert csr == pytest.approx(8 * count / 2 + 4 * 257, abs=400)
    masks = two_of_four_masks(layer)
    pattern = Size.of(two_of_four_state(masked(layer, masks), masks)).bytes
    assert pattern == pytest.approx(4 * count / 2 + count / 8, abs=400)


def test_two_bits_tell_the_places() -> None:
    values, metadata = values_and_metadata(
        torch.tensor([[0.0, 5, 0, 7], [1, 2, 0, 0]]),
        torch.tensor([[False, True, False, True], [True, True, False, False]]),
    )
    assert values.tolist() == [5, 7, 1, 2]
    assert metadata.tolist() == [0b01_00_11_01]


def test_two_of_four_on_the_cpu_is_the_masked_network() -> None:
    layer = nn.Linear(8, 8).requires_grad_(False)
    thinned = masked(layer, two_of_four_masks(layer))
    assert isinstance(thinned, nn.Linear)
    inputs = torch.randn(3, 8)
    assert torch.equal(TwoOfFourLinear(thinned)(inputs), thinned(inputs))
    assert not has_two_of_four("cpu")
    # a device without such kernels takes no layer
    assert with_two_of_four(nn.Sequential(thinned), inputs[:1], "cpu").layers == 0
