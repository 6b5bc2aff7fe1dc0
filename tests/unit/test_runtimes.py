import logging
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import onnxruntime
import onnxruntime.quantization
import pytest
import torch
from torch import nn
from torch._inductor import config

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.device import Device
from autoprune.measurement.difference import arrays_of, relative_difference
from autoprune.measurement.meter import PairedMeter, calibrated
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import OnnxRuntime, OpenVinoRuntime, TorchRuntime
from autoprune.measurement.runtimes.protocol import frozen_copy, torch_threads
from autoprune.tasks.protocol import network_inputs
from tests.pruning_tasks import Blobs, small_net


@torch.library.custom_op("autoprune_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


class Doubled(nn.Module):
    def forward(self, x):
        return doubled(x)


class TwoFaced(nn.Module):
    """Another network where it is exported."""

    def forward(self, x):
        return x + 1.0 if torch.compiler.is_exporting() else x


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


@pytest.mark.parametrize("runtime", [TorchRuntime(), OnnxRuntime()])
def test_no_threads_are_refused(runtime):
    with pytest.raises(AutopruneError, match=f"'{runtime.name}' has 0 threads; choose 1 or more"):
        replace(runtime, threads=0)


def test_a_device_that_is_none_is_refused():
    with pytest.raises(AutopruneError, match="device 'gpuu': no such device; choose cpu"):
        TorchRuntime(device="gpuu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_cuda_on_a_machine_without_it_is_refused_when_it_is_used():
    with pytest.raises(AutopruneError, match="shows no CUDA device; choose device cpu"):
        TorchRuntime(device="cuda").prepare(nn.Linear(1, 1), torch.zeros(1, 1))


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
    meter = PairedMeter(OnnxRuntime(), NoGate())
    with pytest.raises(TrialError, match=r"runtime 'onnx' differ from those of eager .* by 1 of"):
        meter.check(TwoFaced(), torch.ones(1, 3))


def test_a_provider_that_does_not_start_is_said(monkeypatch):
    """As CUDA's, where its libraries are of another version."""
    instead = ["OtherExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: instead)
    message = "could not start 'CPUExecutionProvider' and would use 'OtherExecutionProvider'; mend"
    with pytest.raises(AutopruneError, match=message):
        OnnxRuntime().prepare(nn.Linear(3, 2), torch.ones(1, 3))


def test_a_network_that_cannot_be_quantised_fails_the_trial(monkeypatch):
    def refuse(*_arguments, **_options):
        raise ValueError("no ranges for Where\nand more")

    monkeypatch.setattr(onnxruntime.quantization, "quantize_static", refuse)
    runtime = OnnxRuntime(precision="int8", calibration=(torch.ones(4, 3),))
    message = r"cannot quantise the network: no ranges for Where; choose precision fp32$"
    with pytest.raises(TrialError, match=message) as caught:
        runtime.prepare(nn.Linear(3, 2), torch.ones(1, 3))
    assert caught.value.cause is Cause.RUNTIME


def test_int8_is_calibrated_on_what_the_network_is_given():
    task, model = Blobs(), small_net(dropout=0.0)
    plain = PairedMeter(OnnxRuntime(precision="int8"), NoGate())
    with pytest.raises(
        AutopruneError, match=r"int8 needs data to calibrate with, .*\(1, 1, 4, 4\)"
    ):
        plain.check(model, task.example())
    meter = calibrated(plain, model, task)
    assert isinstance(meter.runtime, OnnxRuntime)
    heard = torch.cat([inputs for inputs in meter.runtime.calibration if torch.is_tensor(inputs)])
    assert torch.equal(heard, task.x)
    infer = meter.runtime.prepare(model, task.example())
    with torch.no_grad():
        expected = arrays_of(model.eval()(task.example()))
    difference = relative_difference(arrays_of(infer()), expected)
    assert 0 < difference < meter.runtime.tolerance
    assert calibrated(meter, model, task) is meter
    assert meter == plain
    fp32 = PairedMeter(OnnxRuntime(), NoGate())
    assert calibrated(fp32, model, task) is fp32


def test_inputs_of_every_shape_are_heard():
    class Both(Blobs):
        def loss(self, model, batch):
            return model(left=batch[0], right=batch[0]).sum()

    class Sum(nn.Module):
        def forward(self, left, right):
            return left + right

    heard = network_inputs(Sum(), Both(), "train", most=20)
    assert [sorted(inputs) for inputs in heard] == [["left", "right"]] * 2
    assert torch.equal(heard[0]["left"], Both().x[:16])


def test_a_network_that_openvino_cannot_run_says_which_operator():
    root = logging.getLogger()
    before = root.level, root.handlers[:], root.filters[:]
    with pytest.raises(TrialError, match=r"autoprune_tests\.doubled") as caught:
        OpenVinoRuntime().prepare(Doubled(), torch.ones(1, 3))
    assert caught.value.cause is Cause.RUNTIME
    assert (root.level, root.handlers, root.filters) == before, "its converter changes them"


@pytest.mark.parametrize("end", ["in another order", "in another thread"])
def test_a_signal_after_openvinos_programs_have_ended(end):
    """A crash would take the process of the tests with it."""
    code = f"""
        import signal, threading, torch
        from torch import nn
        from autoprune.measurement.runtimes import OpenVinoRuntime

        heard, programs = [], []
        signal.signal(signal.SIGINT, lambda *_: heard.append("heard"))
        for _ in range(2):
            programs.append(OpenVinoRuntime().prepare(nn.Linear(3, 7), torch.ones(1, 3)))
        if {end!r} == "in another thread":
            ends = threading.Thread(target=programs.clear)
            ends.start()
            ends.join()
        else:
            programs.pop(0)
            programs.pop(0)
        signal.raise_signal(signal.SIGINT)
        print(*heard)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-500:]}"
    assert done.stdout.split()[-1] == "heard"


@pytest.mark.parametrize("engine", ["compile", "aot"])
def test_a_network_that_cannot_be_exported_is_not_compiled(engine):
    with pytest.raises(TrialError, match=r"cannot be exported by torch\.export: Could not guard"):
        TorchRuntime(engine).prepare(TwoPaths(), torch.ones(1, 3))


def test_a_network_that_cannot_be_compiled_fails_the_trial(monkeypatch):
    def compiled(_inputs):
        raise RuntimeError("no code for aten.special\nand more")

    monkeypatch.setattr(torch, "compile", lambda _program, **_options: compiled)
    message = r"^the network cannot be compiled: no code for aten\.special; choose the engine eag"
    with pytest.raises(TrialError, match=message) as caught:
        TorchRuntime("compile").prepare(nn.Linear(3, 7), torch.ones(1, 3))
    assert caught.value.cause is Cause.RUNTIME


@pytest.mark.parametrize("engine", ["compile", "aot"])
def test_a_missing_compiler_is_said(engine, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    none = config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    with (
        none,
        pytest.raises(AutopruneError, match=r"need a C\+\+ compiler, and none works here; instal"),
    ):
        TorchRuntime(engine).prepare(nn.Linear(3, 7), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "eagr"}, "engine 'eagr' is not known; did you mean 'eager'"),
        ({"precision": "fp64"}, "precision 'fp64' is not known"),
        ({"memory_format": "channels"}, "format 'channels' is not known; did you mean 'channels_l"),
        ({"engine": "graph"}, "replays CUDA graphs and has device 'cpu'; set device"),
    ],
)
def test_torch_runtimes_that_there_are_not(arguments, message):
    with pytest.raises(AutopruneError, match=message):
        TorchRuntime(**arguments)


def test_openvino_without_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(AutopruneError, match=r"pip install 'autoprune\[openvino\]'"):
        OpenVinoRuntime()


def test_the_name_says_what_is_not_usual():
    assert TorchRuntime().name == "eager"
    runtime = TorchRuntime("compile", precision="bf16", memory_format="channels_last")
    assert runtime.name == "compile bf16 channels_last"
    assert OpenVinoRuntime(precision="bf16").name == "openvino bf16"


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
