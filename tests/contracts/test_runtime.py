import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from autoprune.measurement.onnx_runtime import OnnxRuntime
from autoprune.measurement.runtimes import EagerRuntime, Runtime
from autoprune.tasks.protocol import Inputs, forward, map_inputs
from tests.contracts.runtime_contract import RuntimeContract


@dataclass(frozen=True)
class DoublePrecision:
    """A runtime as a user would write one, with nothing of ours in it."""

    name: str = "double"
    library: str = "torch in double precision"
    device: str = "cpu"
    threads: int = 1

    def prepare(self, model: nn.Module, example: Inputs) -> Callable[[], object]:
        ready = copy.deepcopy(model).eval().double()
        inputs = map_inputs(torch.Tensor.double, example)

        def infer() -> object:
            with torch.no_grad():
                return forward(ready, inputs)

        return infer


class TestEager(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return EagerRuntime()


class TestOnnx(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return OnnxRuntime()


class TestAUsersOwn(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return DoublePrecision()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestEagerOnCuda(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return EagerRuntime(device="cuda:0")
