"""`autoprune estimate` as a user types it, on a tiny network."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from autoprune.cli import main
from autoprune.domain.expectation import Expectation
from autoprune.domain.objective import Direction
from autoprune.domain.space import PruningSpec
from autoprune.measurement.cost import costs
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import OnnxRuntime
from autoprune.orchestration.folders import PROFILE_FILE
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.reports.estimate import estimate_lines, estimate_table
from autoprune.orchestration.understanding.estimate import (
    EstimateRequest,
    after_recovery,
    estimate,
    neighbours,
)
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.surgery import prune
from autoprune.settings.compose import compose_config, plain
from autoprune.settings.schema import EstimateConfig, SweepConfig
from tests.sweeps import make_space
from tests.tiny import WORDS, meter, request

WORDS = (*WORDS, "executor=inline", "tracking=none", "name=own", "meter.max_s=0.05", "checks=3")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["estimate", *WORDS, *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_table_what_it_rests_on_and_warnings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, "ratio=0.5")
    assert "What pruning own would give" in out
    assert "predicted  speedup on eager, from the profile; the interval is of one more" in out
    assert "from how far predictions of 3 other networks were off, each unseen in turn" in out
    assert "accuracy before recovery: on val, after the cut was mended, not trained" in out
    assert "nothing was fine-tuned yet, so what recovery gives is not known" in out
    assert "not known" in out.partition("exact ")[0]
    assert "warning    tiny model: 3.47k parameters, fewer than 100k: " in out
    (kept,) = (folder / "outputs" / "profiles").glob(f"*/{PROFILE_FILE}")
    checks = json.loads(kept.read_text())["checks"]
    assert len(checks) == 3
    assert all(set(check["widths"]) == {"hidden.0", "hidden.2"} for check in checks)
    assert all(check["widths"] != {"hidden.0": 16, "hidden.2": 16} for check in checks)


def test_json_alone_on_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "ratio=[0.3,0.75]", "--json"))
    assert [row["ratio"] for row in found["rows"]] == [0.3, 0.75]
    assert [row["kept"]["hidden.0"] for row in found["rows"]] == [22, 8]
    few, many = found["rows"]
    for row in found["rows"]:
        assert row["after_recovery"] is None
        assert row["speedup"]["low"] < row["speedup"]["ratio"] < row["speedup"]["high"]
        assert row["speedup"]["unseen"] == 6
        assert {"accuracy", "accuracy_low", "accuracy_high"} <= row["before_recovery"].keys()
    assert many["params"] == 65 * 8 + 9 * 8 + 9 * 10
    assert many["macs"] < few["macs"] < found["baseline"]["macs"]


def test_sweeps_of_the_same_network_tell_of_recovery(tmp_path: Path) -> None:
    asked = request(tmp_path)
    alone = estimate(EstimateRequest(asked, (0.3, 0.75), checks=2))
    assert [row.after for row in alone.rows] == [None, None]
    launch(asked, Tracking())
    found = estimate(EstimateRequest(asked, (0.3, 0.75), checks=2))
    for before, row in zip(alone.rows, found.rows, strict=True):
        assert row.before == before.before
        assert row.speedup.unseen == before.speedup.unseen + 4, "the trials judge the model, too"
        assert row.after is not None
        assert row.after.count == 4
        assert 0.0 < row.after.value <= 1.0
        assert 0.0 < row.after.level < 0.95
    console = Console(width=200, record=True)
    console.print(estimate_table(found))
    ends = r"(at least |at most )?[01]\.\d{4}( to [01]\.\d{4})? \(\d+%\)"
    shown = rf"[01]\.\d{{4}}, ({ends}|how far off is not known)"
    assert len(re.findall(shown, console.export_text())) == 2
    assert any(
        line.startswith("recovery   expected from 4 trials of sweeps of this network; the interval")
        for line in estimate_lines(found)
    )
    # trials that recovered in another way tell nothing of this one
    other = replace(asked, recoveries={"finetune": Recovery(FitPlan(epochs=3))})
    assert estimate(EstimateRequest(other, (0.3,), checks=2)).rows[0].after is None


def test_trials_in_int8_tell_nothing_of_a_network_in_fp32(tmp_path: Path) -> None:
    runtime = PairedMeter(OnnxRuntime(), NoGate(), meter().settings)
    asked = request(tmp_path, meter=runtime, precisions=("int8", "fp32"), calibration_batches=2)
    observations = launch(asked, Tracking()).result.view.observations
    alike = [o for o in observations if o.trial.spec.precision == "fp32"]
    assert len(alike) < len(observations)
    (row,) = estimate(EstimateRequest(asked, (0.5,), checks=0)).rows
    assert row.spec.precision == "fp32"
    assert (0 if row.after is None else row.after.count) == len(alike)


def test_costs_are_those_of_the_network_that_is_cut(tmp_path: Path) -> None:
    asked = request(tmp_path)
    found = estimate(EstimateRequest(asked, (0.5,), checks=2))
    prepared = prepare(asked)
    spec = PruningSpec.of(prepared.plan.space.uniform(0.5).widths)
    network = prune(prepared.baseline.model, asked.task.example(), spec).model
    assert found.rows[0].costs == costs(network, asked.task.example())
    assert found.rows[0].spec.widths == spec.widths
    again = estimate(EstimateRequest(asked, (0.5,), checks=2))
    assert again.profiled.profile == found.profiled.profile, "nothing is measured twice"
    assert again.rows[0].before == found.rows[0].before


def test_neighbours_lie_around_a_ratio_are_legal_and_the_same_every_time() -> None:
    space = make_space()
    found = neighbours(space, 0.5, 40)
    assert found == neighbours(space, 0.5, 40)
    assert found != neighbours(space, 0.4, 40)
    assert len(found) == 40
    for widths in found:
        for axis in space.axes:
            assert widths[axis.group.name] in axis.widths
            assert 0.29 <= widths[axis.group.name] / axis.group.size <= 0.71
    shares = [widths[a.group.name] / a.group.size for widths in found for a in space.axes]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    own = space.uniform(0.5).widths
    two = make_space({"only": 2})
    assert own not in found
    assert all(widths == {"only": 2} for widths in neighbours(two, 0.5, 20))


def test_less_is_better_for_some_metrics() -> None:
    recovered = [(9.0, 3.0), (8.0, 2.5), (5.0, 2.0), (4.0, 1.0)]
    worse = after_recovery(recovered, 8.5, Direction.MIN)
    assert worse is not None
    assert (worse.low, worse.high) == (1.0, 3.0)
    assert 2.5 <= worse.value <= 3.0
    assert after_recovery([], 8.5, Direction.MIN) is None
    best = after_recovery(recovered, 3.0, Direction.MIN)
    assert best is not None
    assert (best.low, best.high) == (None, 3.0)


def test_an_interval_that_tells_nothing_is_not_shown(tmp_path: Path) -> None:
    found = estimate(EstimateRequest(request(tmp_path), (0.5,), checks=0))

    def told(level: float) -> tuple[str, str]:
        after = Expectation(0.1506, 0.0972, 0.1528, level=level, count=4)
        known = replace(found, rows=(replace(found.rows[0], after=after),))
        console = Console(width=200, record=True)
        console.print(estimate_table(known))
        return console.export_text(), "\n".join(estimate_lines(known))

    table, lines = told(0.5)
    assert "0.1506, 0.0972 to 0.1528 (50%)" in table
    assert "more trials" not in lines
    table, lines = told(0.49)
    assert "0.1506, how far off is not known" in table
    assert "0.0972" not in table
    assert "a level below 50%, how far off the value may be is not known: more trials of a" in lines


def test_too_few_checks_give_no_interval_and_say_so(tmp_path: Path) -> None:
    found = estimate(EstimateRequest(request(tmp_path), (0.5,), checks=0))
    lines = list(estimate_lines(found))
    assert lines[1].endswith("without an interval: too few of the checks could be measured")
    assert estimate_table(found).row_count == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ratio=0"], "ratio is 0; choose shares of every group to prune, between 0 and 1, each"),
        (["ratio=[0.3,1.5]"], "ratio is [0.3, 1.5]; choose shares"),
        (["ratio=[]"], "ratio is []; choose shares"),
        (["ratio=[0.3,0.3]"], "each once, such as 0.3 or [0.3,0.5]"),
        (["ratio=half"], "ratio is half; choose shares"),
        (["ratio=true"], "ratio is True; choose shares"),
        (["checks=1"], "checks is 1; choose 2 or more: the interval comes from them"),
        (
            ["precisions=[int8]", "meter=onnxruntime"],
            "precisions [int8]: estimates are of networks in fp32; leave precisions out, or let",
        ),
        (["output=/proc/here"], "cannot write to the output folder /proc/here"),
        (["model.image_side=9"], "fails on the example input"),
    ],
)
def test_faults(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *WORDS, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_a_ratio_that_is_no_number_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *WORDS, "ratio=nan"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "autoprune: ratio is nan; choose shares of every group to prune, between 0 and 1, each "
        "once, such as 0.3 or [0.3,0.5]"
    ]


def test_faults_are_told_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *WORDS, "ratio=2", "checks=0", "meter.max_s=0"]) == 2
    err = capsys.readouterr().err
    for message in ("ratio is 2", "checks is 0", "meter.max_s is 0"):
        assert message in err
    assert not list(folder.iterdir())


def test_it_takes_what_a_sweep_takes() -> None:
    def composed(command: str) -> dict[str, Any]:
        return plain(compose_config(command, ["experiment=digits_vit", "meter=onnxruntime"]))

    found, sweep = composed("estimate"), composed("sweep")
    own = set(EstimateConfig.__dataclass_fields__) - set(SweepConfig.__dataclass_fields__)
    assert set(found) - set(sweep) == own == {"ratio", "checks"}
    assert {key: found[key] for key in sweep} == sweep
