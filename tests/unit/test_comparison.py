"""Comparisons: rows that fail alone, memory in a process of its own, and what is shown."""

import io
import json
import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.export import Dim

import autoprune
from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Speedup
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import OnnxRuntime, Runtime, TorchRuntime
from autoprune.measurement.runtimes.protocol import Inference
from autoprune.orchestration.comparison.compare import ComparisonRequest, compare
from autoprune.orchestration.comparison.memory import peak_mb
from autoprune.orchestration.comparison.networks import Network, of_program
from autoprune.orchestration.comparison.pair import pair_of
from autoprune.orchestration.comparison.records import Both, Comparison, Facts, Timed, Untimed
from autoprune.orchestration.reports.comparison import ComparisonDrawing

X = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))


def meter(runtime: Runtime | None = None) -> PairedMeter:
    return PairedMeter(runtime or TorchRuntime(), NoGate(), MeterSettings(max_s=0.05))


def net(width: int = 256, *more: nn.Module) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4), *more).eval()


def request(
    baseline: nn.Module, candidate: nn.Module, meters: dict[str, PairedMeter], **changes: Any
) -> ComparisonRequest:
    pair = pair_of(Network(baseline, "big"), Network(candidate, "small"), X)
    return ComparisonRequest(pair, meters, **changes)


class Special(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i1e(x)


class OneByOne(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 4)


def test_a_row_for_every_runtime_and_batch_size_as_they_come() -> None:
    meters = {"eager": meter(), "last": meter(TorchRuntime(memory_format="channels_last"))}
    heard: list[Comparison] = []
    asked = request(net(), net(8), meters, batch_sizes=(1, 4))
    found = compare(asked, report=heard.append)
    where = [(row.runtime, row.batch_size) for row in found.rows]
    assert where == [("eager", 1), ("eager", 4), ("last", 1), ("last", 4)]
    assert [len(comparison.rows) for comparison in heard] == [0, 1, 2, 3, 4]
    assert [row.speedup.batch_size for row in found.timed] == [1, 4, 1, 4]
    for row in found.timed:
        assert row.off_eager == Both(0.0, 0.0)
        assert row.throughput.candidate == pytest.approx(row.speedup.throughput)
        assert row.peak_mb is None
    assert found.difference > 0
    assert len(found.devices) == 1
    assert found.devices[0].endswith(f"torch {torch.__version__}, 1 thread")


def test_what_fails_costs_its_own_row() -> None:
    meters = {"onnx": meter(OnnxRuntime()), "eager": meter()}
    asked = request(net(), net(8, Special(), OneByOne()), meters, batch_sizes=(1, 2))
    found = compare(asked)
    assert [(row.runtime, row.batch_size) for row in found.timed] == [("eager", 1)]
    reasons = [str(row) for row in found.untimed]
    assert reasons[0].startswith("onnx at 1: candidate: the network cannot be exported to ONNX")
    assert "operator 'prims.bessel_i1e' has no ONNX form; choose the runtime eager" in reasons[0]
    assert "look at what they do with a batch of 2" in reasons[2]
    assert "RuntimeError: shape '[1, 4]' is invalid" in reasons[2]


@dataclass(frozen=True)
class Exhausted:
    """A runtime on a device that is full."""

    name: str = "full"
    library: str = "torch"
    device: str = "cpu"
    tolerance: float = 1.0
    threads: int = 1

    def prepare(self, model: nn.Module, example: Any) -> Inference:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def test_batches_that_do_not_fit_in_memory() -> None:
    asked = request(net(), net(8), {"full": meter(Exhausted())}, batch_sizes=(64,))
    (row,) = compare(asked).rows
    assert isinstance(row, Untimed)
    assert row.reason == (
        "baseline: a batch of 64 does not fit in memory (CUDA out of memory. Tried to allocate "
        "20 GiB); choose smaller batch_sizes"
    )
    most = psutil.virtual_memory().available // 100
    (row,) = compare(request(net(), net(8), {"eager": meter()}, batch_sizes=(most,))).rows
    assert isinstance(row, Untimed)
    assert "GB of memory, and" in row.reason
    assert "are free; choose a smaller one" in row.reason


def test_programs_for_one_batch_size() -> None:
    small = torch.export.export(net(8), (X.repeat(4, 1),))
    pair = pair_of(Network(net(), "big"), of_program(small, "small"), X)
    found = compare(ComparisonRequest(pair, {"eager": meter()}))
    assert [row.batch_size for row in found.timed] == [4]
    assert found.notes == (
        "the candidate is an exported program, so the baseline was exported, too: both call the "
        "same operators in the same way",
    )
    (row,) = compare(ComparisonRequest(pair, {"eager": meter()}, batch_sizes=(1,))).rows
    assert isinstance(row, Untimed)
    assert row.reason == (
        "the candidate was exported for batches of 4 only; export it with the batch free, or set "
        "'batch_sizes=[4]'"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells peak memory")
def test_the_memory_of_serving_is_that_of_weights_and_activations() -> None:
    model, inputs = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.LayerNorm(2**21)), torch.randn(4, 2**21)
    weights = sum(p.numel() for p in model.parameters())
    # the input of a layer lives while its output is written
    expected_mb = 4 * (weights + 2 * inputs.numel()) / 1e6
    assert peak_mb(TorchRuntime(), model, inputs) == pytest.approx(expected_mb, rel=0.1)


def test_memory_that_cannot_be_measured_costs_the_memory_only() -> None:
    strange = net(8, Special())  # of a class that another process does not find
    (row,) = (found := compare(request(strange, strange, {"eager": meter()}, memory=True))).timed
    assert row.peak_mb is None
    (note,) = found.notes
    assert note.startswith("memory on eager at batch size 1: its process ended early (ModuleNotFo")


class Unpicklable:
    """Can be copied, and cannot be sent."""

    def __deepcopy__(self, memo: Any) -> "Unpicklable":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a handle stays in its process")


def test_memory_of_a_network_that_cannot_be_sent() -> None:
    strange = net()
    strange.handle = Unpicklable()
    (row,) = (found := compare(request(strange, strange, {"eager": meter()}, memory=True))).timed
    assert row.peak_mb is None
    assert "cannot be sent to a process (a handle stays in its process); choose" in found.notes[0]


def test_memory_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "autoprune.orchestration.comparison.memory.in_fresh_process"
    monkeypatch.setattr(told, lambda *_, **__: None)
    with pytest.raises(AutopruneError, match=r"does not tell what memory .* choose memory=false"):
        peak_mb(TorchRuntime(), net(), X)


def timed(**changes: Any) -> Timed:
    facts = {"baseline_p95_ms": 2.5, "candidate_p95_ms": 1.25, "others": 0.1, "steal": 0.02}
    speed = Speedup(2.0, 1.9, 2.1, 2.0, 1.0, 30, "eager", "cpu X, torch 2", 0.05, **facts)
    return Timed("eager", 1, replace(speed, **changes), Both(0.0, 2e-7), Both(12.0, 4.0))


def comparison(*rows: Timed | Untimed) -> Comparison:
    big, small = Facts("w.pt", 2e6, 3e6, 8.0), Facts("trials/7", 1e6, 1e6, 4.0)
    return Comparison(big, small, 0.25, rows, notes=("both were exported",))


def shown(found: Comparison, *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=terminal)
    drawing = ComparisonDrawing(console)
    for count in range(len(found.rows) + 1):
        drawing.update(replace(found, rows=found.rows[:count]))
    drawing.stop()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_comparison_as_it_is_shown() -> None:
    other = replace(timed(settled=False, frequency_mhz=2600.0), batch_size=32)
    out = shown(comparison(timed(), other, Untimed("onnx", 1, "no such operator; choose eager")))
    assert "baseline   w.pt: 3M MACs, 2M parameters, 8 MB" in out
    assert "outputs    differ by up to 0.25 times the baseline's largest" in out
    assert "machine    cpu X, torch 2, 1 thread" in out
    assert out.count("machine") == 1
    assert "others kept up to 0.10 cores busy, 2.0% of the time was stolen, the clock ran" in out
    assert "pairs spread by 5.0%\n" in out
    row = next(line for line in out.splitlines() if "eager   │     1" in line)
    cells = [cell.strip() for cell in row.split("│")[3:-1]]
    assert cells == [
        *("2.000 (2.500)", "1.000 (1.250)", "2.00x", "1.90 to 2.10", "500 -> 1k", "2e-07"),
        "12.0 -> 4.0",
    ]
    assert "~2.00x" in out
    assert "~ eager at 32 did not settle" in out
    assert "- onnx at 1: no such operator; choose eager" in out
    assert "note       both were exported" in out
    assert "\x1b" not in out


def test_outputs_that_are_equal_or_that_nothing_can_be_said_of() -> None:
    assert "outputs    are equal on one" in shown(replace(comparison(timed()), difference=0.0))
    assert "cannot be compared, for one network gives NaN" in shown(
        replace(comparison(timed()), difference=math.inf)
    )


def test_on_a_terminal_rows_appear_as_they_come() -> None:
    out = shown(comparison(timed()), terminal=True)
    assert out.count("eager") > 1
    assert "\x1b[?25h" in out  # the cursor is back


def test_nothing_is_shown_where_nothing_was_measured() -> None:
    assert shown(comparison(Untimed("onnx", 1, "no such operator"))) == ""


def test_a_comparison_as_json() -> None:
    found = comparison(timed(), Untimed("onnx", 1, "no such operator"))
    facts = json.loads(json.dumps(found.to_json()))
    assert Speedup.from_json(facts["rows"][0]["speedup"]) == timed().speedup
    assert facts["rows"][0]["throughput"] == {"baseline": 500.0, "candidate": 1000.0}
    assert facts["rows"][1]["reason"] == "no such operator"
    assert facts["devices"] == ["cpu X, torch 2, 1 thread"]
    assert replace(found, difference=math.inf).to_json()["difference"] is None


def test_from_python() -> None:
    free = torch.export.export(net(8), (X.repeat(2, 1),), dynamic_shapes=({0: Dim.AUTO},))
    runtimes = [TorchRuntime(), TorchRuntime(memory_format="channels_last")]
    found = autoprune.measure(free, net(), runtimes=runtimes, batch_sizes=(2,))
    assert [row.runtime for row in found.timed] == ["eager", "eager channels_last"]
    assert found.baseline.source == "Sequential"


class WithHistory(nn.Linear):
    """Holds a tensor that was computed from its weights."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.doubled = 2 * self.weight


def test_eight_bits_want_inputs_to_be_calibrated_on() -> None:
    options = {"runtimes": ["eager", "onnxruntime_int8"]}
    found = autoprune.measure(net(8), net(), X, **options)
    assert [row.runtime for row in found.timed] == ["eager"]
    assert "give some as calibration=[...]" in found.untimed[0].reason

    found = autoprune.measure(net(8), net(), X, **options, calibration=[X.repeat(4, 1)])
    assert [row.runtime for row in found.timed] == options["runtimes"]


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Chance(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def test_outputs_that_nobody_would_serve_are_noted() -> None:
    found = autoprune.measure(Scaled(0.0), Scaled(math.nan), X)
    assert found.notes == (
        "the baseline gives NaN or infinity on the example input",
        "the candidate gives nothing but zeros on the example input",
    )


class Casting(nn.Module):
    """Computes in a type of its own, whatever it is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 32).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.to(self.inner.weight.dtype)).float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_are_timed_in_the_types_that_they_have(dtype: torch.dtype) -> None:
    seen = []
    model = net(8).to(dtype)
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    assert autoprune.measure(model, net().to(dtype), X.to(dtype)).timed
    assert set(seen) == {dtype}
    assert autoprune.measure(Casting(dtype), Casting(torch.float32), torch.ones(1, 64)).timed


class Rewriting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(1.5).tanh()


def test_a_network_that_writes_into_its_input_is_not_random() -> None:
    example = X.clone()
    assert autoprune.measure(Rewriting(), Rewriting(), example).timed
    assert torch.equal(example, X)


def test_a_network_that_is_random_is_told_so() -> None:
    (row,) = autoprune.measure(Chance(), Chance(), X).untimed
    assert "baseline: the network is random: on one input its outputs differ by" in row.reason


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (3, {}, r"3 is no network; give an nn.Module, an exported program, or a path"),
        ("gone.pt2", {}, r"gone.pt2: there is no such file or folder"),
        (net(8), {}, r"measure needs an example: give an input of batch size 1"),
        (net(8), {"example": X, "runtimes": ["onnx_runtime"]}, r"did you mean 'onnxruntime'"),
        (net(8), {"example": X, "runtimes": []}, r"runtimes is \[\]; give a list of names"),
        (net(8), {"example": X, "runtimes": "eager"}, r"runtimes is 'eager'; give a list of names"),
        (net(8), {"example": X, "runtimes": [3]}, r"runtimes is \[3\]; give a list of names"),
        (net(8), {"example": X, "batch_sizes": 32}, r"batch_sizes is 32; give a list of whole"),
        (net(8), {"example": X, "batch_sizes": [True]}, r"batch_sizes is \[True\]; give a list"),
        (net(8), {"example": X.repeat(2, 1)}, r"the example is a batch of 2; give one sample"),
        (net(8), {"example": X, "runtimes": ["eager"] * 2}, r"two of the runtimes are called 'ea"),
        (net(8), {"example": X.numpy()}, r"the example is a ndarray; give an input of batch size"),
        (net(8), {"example": torch.tensor(1.0)}, r"the example is a single number; give an input"),
        (
            net(8).to("meta"),
            {"example": X},
            r"Sequential cannot be copied \(Cannot copy out of",
        ),
        (WithHistory(), {"example": X}, r"WithHistory cannot be copied"),
        (net(8), {"example": X, "batch_sizes": [1, 1]}, r"batch_sizes is \[1, 1\]; name each"),
    ],
)
def test_what_cannot_be_measured_from_python(given: Any, options: Any, message: str) -> None:
    with pytest.raises(AutopruneError, match=message):
        autoprune.measure(given, net(), **options)


def test_a_checkpoint_needs_its_network(tmp_path: Any) -> None:
    torch.save(net().state_dict(), tmp_path / "w.pt")
    with pytest.raises(AutopruneError, match=r"a checkpoint holds no network; load it into yours"):
        autoprune.measure(str(tmp_path / "w.pt"), net(), X)
