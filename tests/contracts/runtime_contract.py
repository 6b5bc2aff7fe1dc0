"""What every runtime promises. Subclass `RuntimeContract` to put a runtime of your own to it."""

import copy
import gc
import logging
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.measurement.difference import arrays_of, relative_difference
from autoprune.measurement.runtimes import Reloads, Runtime
from autoprune.measurement.runtimes.protocol import torch_threads
from autoprune.tasks.protocol import Inputs, forward


class ByKeyword(nn.Module):
    """A network called with keywords, in another order than its arguments; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        mixed = self.left(left) - self.right(right)
        return {"mixed": mixed, "norm": mixed.square().sum(-1)}


class Positional(ByKeyword):
    """The same, called with a tuple."""


def network() -> nn.Module:
    """Convolution, batch norm with statistics of its own, and dropout: modes matter."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 5),
    )
    model(torch.randn(16, 3, 8, 8))  # moves the running statistics
    return model


def cases() -> dict[str, tuple[nn.Module, Inputs]]:
    torch.manual_seed(1)
    left, right = torch.randn(2, 3), torch.randn(2, 5)
    return {
        "tensor": (network(), torch.randn(2, 3, 8, 8)),
        "tuple": (Positional(), (left, right)),
        "keywords": (ByKeyword(), {"right": right, "left": left}),
    }


class RuntimeContract:
    """The suite. `runtime` is a fixture that the subclass gives."""

    @pytest.fixture
    def runtime(self) -> Runtime:
        raise NotImplementedError("give the runtime under test")

    @pytest.mark.parametrize("case", ["tensor", "tuple", "keywords"])
    def test_it_computes_what_the_model_computes_in_evaluation_mode(self, runtime, case):
        model, example = cases()[case]
        found = arrays_of(runtime.prepare(model, example)())
        with torch.no_grad():
            expected = arrays_of(forward(model.eval(), example))
        assert relative_difference(found, expected) <= runtime.tolerance

    def test_a_call_can_be_repeated(self, runtime):
        infer = runtime.prepare(network(), torch.randn(1, 3, 8, 8))
        first = arrays_of(infer())
        for _ in range(3):
            for a, b in zip(arrays_of(infer()), first, strict=True):
                np.testing.assert_array_equal(a, b)

    def test_what_is_loaded_again_computes_the_same(self, runtime):
        infer = runtime.prepare(network(), torch.randn(1, 3, 8, 8))
        first = [array.copy() for array in arrays_of(infer())]
        for _ in range(3):
            if isinstance(infer, Reloads):
                infer.reload()
            for a, b in zip(arrays_of(infer()), first, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_the_model_and_its_modes_are_left_as_they_were(self, runtime):
        model = network()
        model[1].eval()
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        runtime.prepare(model, torch.randn(2, 3, 8, 8))()
        assert [m.training for m in model.modules()] == modes
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        for name, tensor in model.state_dict().items():
            assert tensor.device == before[name].device
            torch.testing.assert_close(tensor, before[name], rtol=0.0, atol=0.0)

    def test_the_example_is_left_as_it_was(self, runtime):
        example = torch.randn(1, 3, 8, 8)
        before = example.clone()
        runtime.prepare(network(), example)()
        assert torch.equal(example, before)

    def test_what_is_prepared_does_not_follow_or_keep_the_model(self, runtime):
        model, example = network(), torch.randn(1, 3, 8, 8)
        infer = runtime.prepare(model, example)
        first = arrays_of(infer())
        with torch.no_grad():
            model[-1].weight.zero_()
        np.testing.assert_array_equal(arrays_of(infer())[0], first[0])
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None, "the prepared function keeps the model alive: copy it in prepare"
        np.testing.assert_array_equal(arrays_of(infer())[0], first[0])

    def test_threads_and_gradients_are_given_back(self, runtime):
        with torch_threads(2):
            runtime.prepare(network(), torch.randn(1, 3, 8, 8))()
            assert torch.get_num_threads() == 2
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()

    def test_it_says_nothing(self, runtime, capfd, caplog, recwarn):
        runtime.prepare(network(), torch.randn(1, 3, 8, 8))()
        assert capfd.readouterr() == ("", "")
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert not recwarn.list

    def test_it_travels_by_pickle_and_compares_by_value(self, runtime):
        copied = pickle.loads(pickle.dumps(runtime))
        assert copied == runtime
        example = torch.randn(1, 3, 8, 8)
        model = network()
        found, same = runtime.prepare(model, example)(), copied.prepare(model, example)()
        np.testing.assert_allclose(arrays_of(found)[0], arrays_of(same)[0], rtol=1e-5, atol=1e-6)

    def test_it_says_what_it_is(self, runtime):
        assert runtime.name
        assert runtime.library
        assert runtime.threads >= 1
        assert 0 < runtime.tolerance < 1
        assert torch.device(runtime.device).type in {"cpu", "cuda"}
