"""PyTorch as a runtime on a CUDA device: what it refuses, and in which words."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.runtimes import TorchRuntime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    count = torch.cuda.device_count()
    message = f"has {count} CUDA devices, counted from 0; choose one of them$"
    with pytest.raises(AutopruneError, match=message):
        TorchRuntime(device=f"cuda:{count}").prepare(nn.Linear(3, 2), torch.ones(1, 3))


class Waits(nn.Module):
    """Asks the device for a number in the middle of its work, which no capture allows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum().item() > 0 else -x


def capture() -> None:
    TorchRuntime("graph", device="cuda").prepare(Waits(), torch.ones(1, 3))


def test_a_network_that_cannot_be_captured_fails_the_trial() -> None:
    # in a process of its own: torch does not promise that a device works on after such a failure
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        done = pool.submit(capture)
        message = r"^the network cannot be captured as a CUDA graph: .*; choose eager$"
        with pytest.raises(TrialError, match=message) as caught:
            done.result()
    assert caught.value.cause is Cause.RUNTIME
