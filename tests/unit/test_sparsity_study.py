"""The sparsity study: what it measures on which runtime, what it leaves out, what it reports."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.domain.bounds import Bounds
from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Speedup
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.runtimes import TorchRuntime
from autoprune.measurement.runtimes.protocol import Inference
from autoprune.orchestration.baseline import Baseline, BaselineCache
from autoprune.orchestration.reports.sparsity import (
    cells,
    header,
    label,
    notes,
    sparsity_json,
    sparsity_table,
)
from autoprune.orchestration.reports.sparsity_page import sparsity_html
from autoprune.orchestration.request import BaselineRequest, SpaceRequest
from autoprune.orchestration.studies.records import (
    KINDS,
    Kernels,
    Kind,
    Row,
    SparsityStudy,
    Unmeasured,
)
from autoprune.orchestration.studies.sparsity import SparsityRequest, study_sparsity
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.sparse_layers import CsrMatrix
from autoprune.pruning.sparse_storage import Size
from autoprune.tasks.protocol import Inputs
from tests.tiny import meter, request


@dataclass(frozen=True)
class Elsewhere:
    """A runtime that is not PyTorch's; what it cannot run it says."""

    refuses: bool = False
    name = "elsewhere"
    library = "none"
    device = "cpu"
    threads = 1
    tolerance = 1e-3

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        if self.refuses:
            raise AutopruneError("elsewhere runs nothing; choose another")
        return TorchRuntime().prepare(model, example)


def network() -> nn.Module:
    """Large enough for a tenth of it to be a network, too."""
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(24 * 16, 64), nn.ReLU(), nn.Linear(64, 4)),
    )


def asked(folder: Path, **changes: object) -> SparsityRequest:
    sweep = request(folder, model=network(), space=SpaceRequest(Bounds(min_kept=0.05)))
    facts = {"meters": (meter(0.01),), "kept": (0.5,), "kinds": KINDS, **changes}
    return SparsityRequest(sweep, **facts)  # type: ignore[arg-type]


def elsewhere(refuses: bool = False) -> PairedMeter:
    return replace(meter(0.01), runtime=Elsewhere(refuses))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SparsityStudy:
    """A study on two runtimes of two levels."""
    wanted = asked(
        tmp_path_factory.mktemp("study"), meters=(meter(0.01), elsewhere()), kept=(0.1, 0.5)
    )
    return study_sparsity(wanted)


def row(kind: Kind, **changes: object) -> Row:
    facts = {"asked": 0.5, "params": 50, "macs": 40.0, "size": Size(200, 100), "speeds": {}}
    return Row(kind, **{**facts, **changes})  # type: ignore[arg-type]


def speed(ratio: float, **changes: object) -> Speedup:
    facts = {"samples": 9, "runtime": "eager", "device": "a machine", "noise": 0.0, **changes}
    return Speedup(ratio, ratio, ratio, ratio, 1.0, **facts)  # type: ignore[arg-type]


def test_rows_go_level_by_level_and_hold_equally_many_parameters(study: SparsityStudy) -> None:
    assert [(row.kind, row.asked) for row in study.rows] == [
        (Kind.UNPRUNED, 1.0),
        (Kind.CSR, 1.0),
        *((kind, 0.5) for kind in KINDS),
        *((kind, 0.1) for kind in KINDS[:3]),
    ]
    assert study.spread < 0.02
    for level in (0.5, 0.1):
        own = {row.kind: row for row in study.rows if row.asked == level}
        assert own[Kind.MASKED].params == own[Kind.CSR].params == own[Kind.STRUCTURED].params
        assert own[Kind.MASKED].macs == own[Kind.CSR].macs
        assert own[Kind.MASKED].size.bytes == study.unpruned.size.bytes


def test_sparse_kernels_are_pytorchs_alone(study: SparsityStudy) -> None:
    assert study.runtimes == ("eager", "elsewhere")
    for row in study.rows:
        assert isinstance(row.speeds["eager"], Speedup)
        there = row.speeds["elsewhere"]
        if row.kind is Kind.CSR:
            assert there == Unmeasured("runtime 'elsewhere' has no kernels for it")
        else:
            assert isinstance(there, Speedup)
    pattern = next(row for row in study.rows if row.kind is Kind.TWO_OF_FOUR)
    assert pattern.kernels == Kernels(0, 3, there=False)


def test_rho_is_the_speedup_over_what_macs_promise() -> None:
    unpruned = row(Kind.UNPRUNED, asked=1.0, params=100, macs=100.0, speeds={"eager": speed(1.0)})
    half = row(Kind.MASKED, speeds={"eager": speed(2.0)})
    nothing = row(Kind.CSR, params=51, macs=0.0, speeds={"eager": speed(2.0)})
    failed = row(Kind.CSR, asked=0.2, speeds={"eager": Unmeasured("no")})
    found = SparsityStudy("s", "w", ("eager",), (unpruned, half, nothing, failed))
    assert found.rho(unpruned, "eager") == 1.0
    assert found.rho(half, "eager") == pytest.approx(2.0 / 2.5)
    assert found.rho(nothing, "eager") is None
    assert found.rho(failed, "eager") is None
    assert found.share(half) == 0.5
    assert found.spread == pytest.approx(0.02)


def test_the_report_tells_of_every_row_as_it_comes(tmp_path: Path) -> None:
    heard: list[int] = []
    found = study_sparsity(
        asked(tmp_path, kinds=(Kind.MASKED,)), report=lambda study: heard.append(len(study.rows))
    )
    assert heard == [1, 2]
    assert [row.kind for row in found.rows] == [Kind.UNPRUNED, Kind.MASKED]


def test_weights_are_the_best_at_hand_and_nothing_is_trained(tmp_path: Path) -> None:
    wanted = asked(tmp_path, kinds=(Kind.MASKED,))
    plan = BaselineRequest(plan=FitPlan(epochs=1), identity={"network": "small"})
    wanted = replace(wanted, sweep=replace(wanted.sweep, baseline=plan))
    assert study_sparsity(wanted).weights == "not trained, the first ones of seed 0"
    assert not list(tmp_path.iterdir())
    BaselineCache(tmp_path / "baselines").keep(plan.identity, Baseline(network(), "here"))
    assert "trained before" in study_sparsity(wanted).weights


def test_a_level_that_whole_groups_do_not_reach_says_so(tmp_path: Path) -> None:
    wanted = asked(tmp_path, kept=(0.1,), kinds=(Kind.STRUCTURED, Kind.MASKED))
    wanted = replace(wanted, sweep=replace(wanted.sweep, space=SpaceRequest(Bounds(min_kept=0.9))))
    found = study_sparsity(wanted)
    (absent,) = found.absent
    assert absent.kind is Kind.STRUCTURED
    assert "comes no nearer than" in absent.reason
    assert "lower space.min_kept" in absent.reason
    # the others stand for the level that was asked for
    assert found.share(found.rows[1]) == pytest.approx(0.1, abs=0.001)
    assert any(absent.reason in text for _, text in notes(found))


def test_a_level_below_what_no_mask_thins_out_says_so(tmp_path: Path) -> None:
    found = study_sparsity(asked(tmp_path, kept=(0.001,), kinds=(Kind.MASKED, Kind.CSR)))
    assert [(a.kind, a.asked) for a in found.absent] == [(Kind.MASKED, 0.001), (Kind.CSR, 0.001)]
    assert "biases, norms and whatever else" in found.absent[0].reason


def test_a_pattern_that_few_layers_can_have_says_so(tmp_path: Path) -> None:
    wanted = asked(tmp_path, kinds=(Kind.TWO_OF_FOUR,))
    odd = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 50), nn.Linear(50, 4)
    )
    found = study_sparsity(replace(wanted, sweep=replace(wanted.sweep, model=odd)))
    assert [row.kind for row in found.rows] == [Kind.UNPRUNED]
    assert "do not come in fours" in found.absent[0].reason


class Peeks(nn.Module):
    """Reads the weight of a layer besides calling it, as some language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inputs = images.flatten(1).to(self.first.weight.dtype)
        return self.second(torch.relu(self.first(inputs)))


def test_a_network_that_reads_its_weights_is_told_not_timed(tmp_path: Path) -> None:
    wanted = asked(tmp_path, kinds=(Kind.CSR,))
    found = study_sparsity(replace(wanted, sweep=replace(wanted.sweep, model=Peeks())))
    reason = found.rows[-1].speeds["eager"]
    assert isinstance(reason, Unmeasured)
    assert "does not run on these kernels: AttributeError" in reason.reason
    json.dumps(sparsity_json(found))
    sparsity_html(found)


class Doubles(nn.Module):
    """Goes by the class of a layer: twice as much comes out where it has become another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs = self.second(torch.relu(self.first(images.flatten(1))))
        return outputs if isinstance(self.second, nn.Linear) else 2 * outputs


def test_a_network_that_computes_something_else_is_told_not_timed(tmp_path: Path) -> None:
    wanted = asked(tmp_path, kinds=(Kind.CSR,))
    found = study_sparsity(replace(wanted, sweep=replace(wanted.sweep, model=Doubles())))
    assert isinstance(found.unpruned.speeds["eager"], Speedup)
    reason = "on these kernels its outputs differ by 1 of the largest one"
    assert found.rows[-1].speeds["eager"] == Unmeasured(reason)


def test_a_further_runtime_that_cannot_run_the_network_is_left_out(tmp_path: Path) -> None:
    wanted = asked(tmp_path, kinds=(Kind.MASKED,), meters=(meter(0.01), elsewhere(refuses=True)))
    found = study_sparsity(wanted)
    assert found.runtimes == ("eager",)
    assert found.left_out == ("elsewhere is left out: elsewhere runs nothing; choose another",)
    with pytest.raises(AutopruneError, match="elsewhere runs nothing"):
        study_sparsity(replace(wanted, meters=(elsewhere(refuses=True),)))


@dataclass(frozen=True)
class WithoutCsr(TorchRuntime):
    """PyTorch as it is on a device, or in a type, that it has no CSR kernels for."""

    def prepare(self, model: nn.Module, example: Inputs) -> Inference:
        if any(isinstance(module, CsrMatrix) for module in model.modules()):
            raise RuntimeError("addmm_sparse: not implemented")
        return super().prepare(model, example)


def test_kernels_that_torch_lacks_are_told(tmp_path: Path) -> None:
    lacking = replace(meter(0.01), runtime=WithoutCsr())
    found = study_sparsity(asked(tmp_path, kinds=(Kind.CSR,), meters=(lacking,)))
    assert [row.kind for row in found.rows] == [Kind.UNPRUNED, Kind.CSR, Kind.CSR]
    assert isinstance(found.unpruned.speeds["eager"], Speedup)
    for row in found.rows[1:]:
        assert row.speeds["eager"] == Unmeasured("addmm_sparse: not implemented")


def test_the_table_has_a_row_a_network_and_a_column_pair_a_runtime(study: SparsityStudy) -> None:
    columns = ["kept", "kind", "params", "MB", "zipped", "MACs"]
    assert header(study) == [*columns, "eager", "rho", "elsewhere", "rho"]
    table = sparsity_table(study)
    assert table.row_count == len(study.rows)
    assert [i for i, row in enumerate(table.rows) if row.end_section] == [1, 5, 8]
    for row in study.rows:
        assert len(cells(study, row)) == len(header(study))
    assert cells(study, study.unpruned)[6].endswith(" ms")
    assert cells(study, study.rows[1])[-2:] == ["-", "-"]


def test_a_label_tells_what_does_not_run_on_its_kernels() -> None:
    assert label(row(Kind.MASKED)) == "masked"
    assert label(row(Kind.CSR, kernels=Kernels(9, 9))) == "csr"
    assert label(row(Kind.CSR, kernels=Kernels(7, 9))) == "csr, 7 of 9 layers"
    assert label(row(Kind.TWO_OF_FOUR, kernels=Kernels(0, 9, there=False))) == "2:4, dense kernels"


def test_notes_tell_the_machine_the_terms_and_what_did_not_settle() -> None:
    unpruned = row(Kind.UNPRUNED, asked=1.0, speeds={"eager": speed(1.0, threads=2)})
    pattern = row(
        Kind.TWO_OF_FOUR, kernels=Kernels(4, 9), speeds={"eager": speed(1.2, settled=False)}
    )
    study = SparsityStudy("s", "w", ("eager",), (unpruned, pattern), left_out=("onnx is not here",))
    told = list(notes(study))
    assert ("eager", "a machine; 2 threads, batch 1") in told
    assert ("left out", "onnx is not here") in told
    assert (Kind.TWO_OF_FOUR, "in bfloat16, against the unpruned network in bfloat16") in told
    assert told[-1][0] == "~"


def test_the_json_holds_every_figure(study: SparsityStudy) -> None:
    found = json.loads(json.dumps(sparsity_json(study), allow_nan=False))
    assert found["runtimes"] == ["eager", "elsewhere"]
    assert len(found["rows"]) == len(study.rows)
    masked = next(row for row in found["rows"] if row["kind"] == "masked")
    assert masked["bytes"] > masked["zipped_bytes"] > 0
    eager = masked["speeds"]["eager"]
    assert eager["low"] <= eager["ratio"] <= eager["high"]
    assert eager["rho"] == pytest.approx(eager["ratio"] * masked["macs"] / found["rows"][0]["macs"])
    csr = next(row for row in found["rows"] if row["kind"] == "csr")
    assert csr["speeds"]["elsewhere"] == {"reason": "runtime 'elsewhere' has no kernels for it"}
    assert csr["kernels"] == {"layers": 3, "of": 3, "there": True}


def test_text_from_users_is_escaped_on_the_page(study: SparsityStudy) -> None:
    page = sparsity_html(replace(study, name="<b>mine</b>", weights="</script><i>"))
    assert "<b>mine" not in page
    assert "</script><i>" not in page
