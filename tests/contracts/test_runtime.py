import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from autoprune.measurement.runtimes import OnnxRuntime, OpenVinoRuntime, Runtime, TorchRuntime
from autoprune.tasks.protocol import Inputs, forward, map_inputs
from tests.contracts.runtime_contract import RuntimeContract
from tests.programs import needs_compiler


@dataclass(frozen=True)
class DoublePrecision:
    """A runtime as a user would write one, with nothing of ours in it."""

    name: str = "double"
    library: str = "torch in double precision"
    device: str = "cpu"
    tolerance: float = 1e-6
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
        return TorchRuntime()


class TestChannelsLast(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return TorchRuntime(memory_format="channels_last")


class TestHalfPrecision(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return TorchRuntime(precision="bf16")


@needs_compiler
class TestCompiled(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return TorchRuntime("compile")


@pytest.mark.slow  # every network is compiled to a library of its own
@needs_compiler
class TestAheadOfTime(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return TorchRuntime("aot")


class TestOpenVino(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return OpenVinoRuntime()


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
        return TorchRuntime(device="cuda:0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestCudaGraph(RuntimeContract):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return TorchRuntime("graph", device="cuda:0")
