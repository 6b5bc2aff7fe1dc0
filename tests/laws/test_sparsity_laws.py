"""Laws of masks, sparse layers and what they take on disk."""

from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.errors import AutopruneError
from autoprune.measurement.cost import costs
from autoprune.orchestration.studies.candidates import Candidate, Workbench
from autoprune.orchestration.studies.records import KINDS, Kind
from autoprune.pruning.graph import trace
from autoprune.pruning.masks import (
    kept_params,
    magnitude_masks,
    masked,
    two_of_four_masks,
    weights_of,
    zero_macs,
)
from autoprune.pruning.sparse_layers import CsrConv2d, CsrLinear
from autoprune.pruning.sparse_networks import with_csr
from autoprune.pruning.sparse_storage import values_and_metadata
from autoprune.pruning.surgery import prune
from autoprune.pruning.uniform_cut import cut_to
from tests.random_networks import BATCH, EXAMPLE, nets

law = settings(max_examples=12, suppress_health_check=list(HealthCheck))
shares = st.floats(0.0, 1.0)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def fixed(model: nn.Module) -> int:
    return size(model) - sum(weight.numel() for weight in weights_of(model).values())


def some_masks(model: nn.Module, share: float) -> dict[str, torch.Tensor]:
    least = fixed(model)
    return magnitude_masks(model, kept=least + round(share * (size(model) - least)))


def unpacked(values: torch.Tensor, metadata: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `values_and_metadata`, with zeros where nothing was kept."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    places = ((metadata[:, None] >> shifts) & 3).flatten()[: len(values)].long()
    fours = torch.zeros(len(values) // 2, 4, dtype=values.dtype)
    fours.scatter_(1, places.view(-1, 2), values.view(-1, 2))
    moved = (shape[0], *shape[2:], shape[1])
    return fours.view(moved).movedim(-1, 1).contiguous()


@law
@given(nets, shares)
def test_a_magnitude_mask_keeps_exactly_the_largest(net: nn.Module, share: float) -> None:
    least = fixed(net)
    kept = least + round(share * (size(net) - least))
    masks = magnitude_masks(net, kept=kept)
    assert kept_params(net, masks) == kept
    thinned = masked(net, masks)
    assert size(thinned) == size(net)
    stays, goes = [], []
    for name, weight in weights_of(net).items():
        stays.append(weight.detach()[masks[name]].abs())
        goes.append(weight.detach()[~masks[name]].abs())
        assert torch.equal(weights_of(thinned)[name], weight * masks[name])
    if kept > least and kept < size(net):
        assert torch.cat(stays).min() >= torch.cat(goes).max()


@law
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 25))
def test_of_equal_weights_the_first_stay(outputs: int, inputs: int, kept: int) -> None:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.ones_(layer.weight)
    kept = min(kept, layer.weight.numel())
    (mask,) = magnitude_masks(layer, kept=kept).values()
    assert mask.flatten().tolist() == [i < kept for i in range(layer.weight.numel())]


@law
@given(nets)
def test_no_mask_goes_below_what_it_may_not_thin_out(net: nn.Module) -> None:
    least = fixed(net)
    assert sum(m.sum() for m in magnitude_masks(net, kept=least).values()) == 0
    for kept in (least - 1, size(net) + 1):
        with pytest.raises(AutopruneError, match=f"choose between {least} .* and {size(net)}"):
            magnitude_masks(net, kept=kept)


@law
@given(nets)
def test_every_four_keeps_its_two_largest(net: nn.Module) -> None:
    weights, masks = weights_of(net), two_of_four_masks(net)
    assert masks
    assert {name for name, w in weights.items() if w.shape[1] % 4 == 0} == set(masks)
    for name, mask in masks.items():
        fours = weights[name].detach().abs().movedim(1, -1).reshape(-1, 4)
        stays = mask.movedim(1, -1).reshape(-1, 4)
        assert bool((stays.sum(1) == 2).all())
        least = torch.where(stays, fours, torch.inf).min(1).values
        most = torch.where(stays, 0.0, fours).max(1).values
        assert bool((least >= most).all())


@law
@given(nets)
def test_values_and_metadata_hold_the_whole_weight(net: nn.Module) -> None:
    masks = two_of_four_masks(net)
    thinned = weights_of(masked(net, masks))
    for name, mask in masks.items():
        values, metadata = values_and_metadata(thinned[name], mask)
        assert values.numel() == mask.numel() // 2
        assert metadata.numel() == -(-mask.numel() // 8)  # two bits for each of the half
        assert metadata.dtype is torch.uint8
        assert torch.equal(unpacked(values, metadata, tuple(mask.shape)), thinned[name])


@law
@given(nets, shares)
def test_a_network_on_csr_kernels_computes_what_the_masked_one_does(
    net: nn.Module, share: float
) -> None:
    thinned = masked(net, some_masks(net, share))
    converted = with_csr(thinned, EXAMPLE)
    for inputs in (EXAMPLE, BATCH):
        with torch.no_grad():
            torch.testing.assert_close(
                converted.model(inputs), thinned(inputs), rtol=1e-3, atol=1e-4
            )
    assert converted.of == len(weights_of(net))
    usual = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    assert converted.layers == len(usual) + 2


@law
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
    st.integers(1, 3),
)
def test_a_convolution_by_unfold_is_the_convolution(
    kernel: tuple[int, int], stride: int, padding: int, dilation: int, bias: bool, batch: int
) -> None:
    layer = nn.Conv2d(
        3, 5, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias
    ).requires_grad_(False)
    assert CsrConv2d.takes(layer)
    layer.weight[layer.weight.abs() < 0.1] = 0
    maps = torch.randn(batch, 3, 7, 9)
    torch.testing.assert_close(CsrConv2d(layer)(maps), layer(maps), rtol=1e-4, atol=1e-5)


@law
@given(st.lists(st.integers(1, 4), max_size=3), st.booleans())
def test_a_linear_layer_takes_any_axes_before_the_last(axes: list[int], bias: bool) -> None:
    layer = nn.Linear(6, 4, bias=bias).requires_grad_(False)
    inputs = torch.randn(*axes, 6)
    torch.testing.assert_close(CsrLinear(layer)(inputs), layer(inputs), rtol=1e-4, atol=1e-5)


@law
@given(nets, shares)
def test_macs_of_zeros_are_some_of_all_macs(net: nn.Module, share: float) -> None:
    whole = costs(net, EXAMPLE)["macs"]
    assert zero_macs(net, EXAMPLE) == 0
    nothing = masked(net, {name: torch.zeros_like(w) for name, w in weights_of(net).items()})
    assert zero_macs(nothing, EXAMPLE) == whole
    thinned = masked(net, some_masks(net, share))
    assert 0 <= zero_macs(thinned, EXAMPLE) <= whole
    assert costs(thinned, EXAMPLE)["macs"] == whole


@law
@given(nets, st.floats(0.02, 1.0))
def test_no_equal_ratio_comes_nearer_than_the_cut(net: nn.Module, share: float) -> None:
    dependencies = trace(net, EXAMPLE)
    space = build_space(dependencies.groups, Bounds(min_kept=0.01))
    target = round(share * size(net))
    found = cut_to(net, EXAMPLE, target, space=space, dependencies=dependencies)
    finest = max(group.size for group in space.groups)
    for step in range(finest + 1):
        spec = space.uniform(float(Fraction(step, finest)))
        other = prune(net, EXAMPLE, spec, dependencies=dependencies).model
        assert abs(size(found) - target) <= abs(size(other) - target)


@law
@given(nets, st.sampled_from([0.5, 0.3, 0.1]))
def test_the_kinds_of_a_level_are_equally_large(net: nn.Module, share: float) -> None:
    dependencies = trace(net, EXAMPLE)
    space = build_space(dependencies.groups, Bounds(min_kept=0.01))
    bench = Workbench(net, EXAMPLE, space, dependencies, device="cpu")
    found = {c.row.kind: c for c in bench.level(share, KINDS) if isinstance(c, Candidate)}
    anchor = found.get(Kind.STRUCTURED)
    for kind in (Kind.MASKED, Kind.CSR):
        if anchor is not None and kind in found:
            assert found[kind].row.params == anchor.row.params
    for candidate in found.values():
        assert candidate.fault is None
        zeros = sum(int((w == 0).sum()) for w in weights_of(candidate.dense).values())
        assert candidate.row.params == size(candidate.dense) - zeros
        assert candidate.row.macs + zero_macs(candidate.dense, EXAMPLE) == pytest.approx(
            costs(candidate.dense, EXAMPLE)["macs"]
        )
