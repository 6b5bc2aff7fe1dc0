"""The built-in networks: shapes, refusals, and whether every tool of the path can follow them."""

import re
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch
import torch_pruning
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.models import mlp, mobilenet, resnet, vgg, vit

Build = Callable[..., nn.Module]

SMALL: dict[str, tuple[Build, dict[str, Any]]] = {
    "vgg": (vgg, {"width": 4, "depth": 8, "image_side": 16}),
    "resnet": (resnet, {"width": 4, "depth": 8}),
    "mobilenet": (mobilenet, {"width": 0.25, "depth": 0.3, "image_side": 16}),
    "vit": (vit, {"width": 32, "depth": 2, "image_side": 16}),
    "mlp": (mlp, {"width": 16, "depth": 2, "image_side": 16}),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> nn.Module:
    build, arguments = SMALL[request.param]
    torch.manual_seed(0)
    return build(in_channels=1, num_classes=7, **arguments).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_scores_have_one_column_a_class(small: nn.Module, images: torch.Tensor) -> None:
    assert small(images).shape == (3, 7)


def test_gradients_reach_every_parameter(small: nn.Module, images: torch.Tensor) -> None:
    small.train()(images).square().sum().backward()
    missing = [name for name, p in small.named_parameters() if p.grad is None]
    assert missing == []


def test_samples_do_not_see_each_other(small: nn.Module, images: torch.Tensor) -> None:
    torch.testing.assert_close(small(images)[:1], small(images[:1]), rtol=1e-4, atol=1e-5)


def prunable(model: nn.Module) -> list[nn.Module]:
    """Every layer whose outputs may go: not the head, and not what shares a ViT's embedding."""
    if hasattr(model, "positions"):
        return [m for name, m in model.named_modules() if name.endswith("expand")]
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return [m for m in layers if m is not model.head]


def test_every_group_can_be_pruned(small: nn.Module, images: torch.Tensor) -> None:
    graph = torch_pruning.DependencyGraph().build_dependency(small, images)
    before = sum(p.numel() for p in small.parameters())
    for layer in prunable(small):
        prune = (
            torch_pruning.prune_conv_out_channels
            if isinstance(layer, nn.Conv2d)
            else torch_pruning.prune_linear_out_channels
        )
        group = graph.get_pruning_group(layer, prune, idxs=[0])
        assert graph.check_pruning_group(group)
        group.prune()
    assert prunable(small)
    assert sum(p.numel() for p in small.parameters()) < before
    assert small(images).shape == (3, 7)


def test_exports_with_a_free_batch_axis(small: nn.Module, images: torch.Tensor) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(small, (images,), dynamic_shapes=({0: batch},))
    for size in (1, 5):
        inputs = torch.randn(size, 1, 16, 16)
        torch.testing.assert_close(exported.module()(inputs), small(inputs), rtol=1e-4, atol=1e-5)


def test_exports_to_onnx(small: nn.Module, images: torch.Tensor) -> None:
    program = torch.onnx.export(
        small, (images,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False
    )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    inputs = torch.randn(5, 1, 16, 16)
    (scores,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), small(inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("side", [1, 8, 16, 28, 32])
@pytest.mark.parametrize("depth", [8, 11, 16])
def test_vgg_takes_images_of_any_side(side: int, depth: int) -> None:
    model = vgg(width=2, depth=depth, in_channels=1, image_side=side).eval()
    maps = model.features(torch.zeros(1, 1, side, side))
    assert maps.shape[1] == 16
    assert maps.shape[-1] == {1: 1, 8: 2, 16: 2, 28: 3, 32: 2}[side]


@pytest.mark.parametrize(("side", "last"), [(1, 1), (8, 4), (16, 4), (32, 4), (64, 4), (224, 7)])
def test_mobilenet_halves_only_while_the_map_is_large_enough(side: int, last: int) -> None:
    model = mobilenet(width=0.25, depth=0.3, image_side=side).eval()
    assert model.features(torch.zeros(1, 3, side, side)).shape[-1] == last


def test_mobilenet_has_the_papers_size() -> None:
    model = mobilenet(num_classes=1000, image_side=224)
    assert sum(p.numel() for p in model.parameters()) == 3_504_872


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.86)])
def test_resnet_has_the_papers_size(depth: int, millions: float) -> None:
    model = resnet(depth=depth)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    shortcuts = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(layers) - len(shortcuts) == depth
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_has_the_papers_convolutions(depth: int) -> None:
    convolutions = [m for m in vgg(width=2, depth=depth).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth - 3


REFUSALS: list[tuple[Build, dict[str, Any], str]] = [
    (vgg, {"depth": 12}, "model 'vgg': depth is 12; choose one of [8, 11, 13, 16, 19]"),
    (vgg, {"width": 0}, "model 'vgg': width is 0; choose an integer of 1 or more"),
    (vgg, {"num_classes": 1}, "num_classes is 1; choose an integer of 2 or more"),
    (vgg, {"in_channels": 1.5}, "in_channels is 1.5; choose an integer of 1 or more"),
    (vgg, {"image_side": True}, "image_side is True; choose an integer of 1 or more"),
    (resnet, {"depth": 21}, "model 'resnet': depth is 21; choose 6n + 2, such as 20 or 56"),
    (resnet, {"depth": 2}, "model 'resnet': depth is 2; choose an integer of 8 or more"),
    (mobilenet, {"width": 0}, "model 'mobilenet': width is 0; choose a number above 0"),
    (mobilenet, {"depth": "1"}, "model 'mobilenet': depth is '1'; choose a number above 0"),
    (mobilenet, {"image_side": 0}, "image_side is 0; choose an integer of 1 or more"),
    (vit, {"width": 24}, "model 'vit': width is 24; choose a multiple of 16"),
    (vit, {"image_side": 30}, "image_side 30 is no multiple of patch 4"),
    (vit, {"image_side": 2}, "image_side is 2; choose an integer of 4 or more"),
    (mlp, {"depth": 0}, "model 'mlp': depth is 0; choose an integer of 1 or more"),
]


@pytest.mark.parametrize(("build", "arguments", "message"), REFUSALS)
def test_wrong_arguments_are_refused(build: Build, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AutopruneError, match=re.escape(message)):
        build(**arguments)
