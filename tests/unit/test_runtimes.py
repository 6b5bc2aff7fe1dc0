import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.device import Device
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.onnx_runtime import OnnxRuntime
from autoprune.measurement.runtimes import EagerRuntime, frozen_copy, torch_threads


@torch.library.custom_op("autoprune_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


class Doubled(nn.Module):
    def forward(self, x):
        return doubled(x)


class Drifting(nn.Module):
    """Computes something else at every call; the exporter freezes one."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + float(self.calls)


class TwoPaths(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_threads_are_held_and_given_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), torch_threads(before + 2):
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_frozen_copy_shares_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    copied = frozen_copy(model)
    assert model.training
    assert not copied.training
    assert not any(p.requires_grad for p in copied.parameters())
    assert copied[0].weight.data_ptr() != model[0].weight.data_ptr()


@pytest.mark.parametrize("runtime", [EagerRuntime(), OnnxRuntime()])
def test_no_threads_are_refused(runtime):
    with pytest.raises(AutopruneError, match=f"'{runtime.name}' has 0 threads; choose 1 or more"):
        replace(runtime, threads=0)


def test_a_device_that_is_none_is_refused():
    with pytest.raises(AutopruneError, match="device 'gpuu': no such device; choose cpu"):
        EagerRuntime(device="gpuu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_cuda_on_a_machine_without_it_is_refused_when_it_is_used():
    with pytest.raises(AutopruneError, match="shows no CUDA device; choose device cpu"):
        EagerRuntime(device="cuda").prepare(nn.Linear(1, 1), torch.zeros(1, 1))


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch):
    runtime = OnnxRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = r"'onnxruntime', which is not installed; pip install 'autoprune\[onnx\]'"
    with pytest.raises(AutopruneError, match=message):
        OnnxRuntime()
    with pytest.raises(AutopruneError, match=message):
        runtime.prepare(nn.Linear(1, 1), torch.zeros(1, 1))


def test_no_provider_is_refused():
    with pytest.raises(AutopruneError, match="has no provider; choose for example"):
        OnnxRuntime(providers=())


def test_a_provider_that_is_not_there_is_refused_with_those_that_are():
    runtime = OnnxRuntime(providers=("NoSuchProvider",))
    with pytest.raises(AutopruneError, match=r"NoSuchProvider.*'CPUExecutionProvider'.*choose"):
        runtime.prepare(nn.Linear(1, 1), torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("provider", "device"),
    [
        ("CPUExecutionProvider", "cpu"),
        ("CUDAExecutionProvider", "cuda:0"),
        ("TensorrtExecutionProvider", "cuda:0"),
        ("OpenVINOExecutionProvider", "cpu"),
        ("CoreMLExecutionProvider", "cpu"),
    ],
)
def test_only_nvidias_providers_run_on_cuda(provider, device):
    assert OnnxRuntime(providers=(provider, "CPUExecutionProvider")).device == device


def failure(model: nn.Module) -> TrialError:
    with pytest.raises(TrialError) as caught:
        OnnxRuntime().prepare(model, torch.ones(1, 3))
    assert caught.value.cause is Cause.RUNTIME
    return caught.value


def test_an_operator_without_onnx_form_is_named():
    assert "operator 'autoprune_tests.doubled' has no ONNX form" in str(failure(Doubled()))


def test_a_network_that_cannot_be_traced_says_why_and_only_there(capfd):
    assert "cannot be exported to ONNX: Could not guard" in str(failure(TwoPaths()))
    assert capfd.readouterr() == ("", "")


def test_a_program_that_computes_something_else_is_not_timed():
    assert "differ from those of eager PyTorch by 0." in str(failure(Drifting()))


def test_a_program_that_onnx_runtime_cannot_load_fails_the_trial():
    class HalfWay(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 2, 1).bfloat16()

        def forward(self, x):
            return self.conv(x.bfloat16().unsqueeze(1)).float()

    assert "ONNX Runtime cannot load the exported network: " in str(failure(HalfWay()))


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.0),
        ([[1.0, 2.5]], [[1.0, 2.0]], 0.25),
        ([[0.0]], [[0.0]], 0.0),
        ([[0.1]], [[0.0]], np.inf),
        ([[np.nan]], [[np.nan]], 0.0),
        ([[np.nan]], [[1.0]], np.inf),
        ([[np.inf, 1.0]], [[np.inf, 1.0]], 0.0),
        ([[1.0], [1.0]], [[1.0]], np.inf),
        ([[1.0]], [[1.0, 1.0]], np.inf),
        ([[True]], [[False]], np.inf),
        ([[2]], [[4]], 0.5),
        ([[]], [[]], 0.0),
        ([], [], 0.0),
        ([[100.0], [2.0]], [[100.0], [1.0]], 1.0),
    ],
)
def test_the_difference_of_outputs(found, expected, difference):
    got = relative_difference([np.array(a) for a in found], [np.array(b) for b in expected])
    assert got == pytest.approx(difference)


def test_the_device_names_processor_cores_and_library():
    device = Device.of("cpu", "somelib 1.2")
    assert device.cores >= 1
    assert device.name
    assert device.governor
    assert str(device).endswith(f"{device.cores} cores, governor {device.governor}, somelib 1.2")
    assert device == Device.of("cpu", "somelib 1.2")
