"""`autoprune study sparsity` as a user types it, on a tiny network."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoprune.cli import main
from autoprune.settings.compose import compose_config, plain
from autoprune.settings.schema import SparsityConfig, SweepConfig

TINY = (
    *("model=mlp", "model.width=64", "model.image_side=8", "data.side=8", "name=tiny"),
    *("meter.max_s=0.05", "meter.gate=false", "executor=inline", "space.min_kept=0.05"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_a_table_a_page_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "sparsity", *TINY, "kept=[0.5]"]) == 0
    out = capsys.readouterr().out
    assert "What sparsity buys tiny" in out
    for kind in ("unpruned", "structured", "masked", "csr", "2:4, dense kernels"):
        assert f" {kind} " in out
    assert "2:4         no kernels on this device" in out
    assert "weights     not trained, the first ones of seed 0" in out
    (place,) = (folder / "outputs").iterdir()
    assert f"{place.resolve() / 'sparsity.html'}" in out
    assert sorted(path.name for path in place.iterdir()) == ["sparsity.html", "sparsity.json"]
    assert "Plotly.newPlot" in (place / "sparsity.html").read_text()
    found = json.loads((place / "sparsity.json").read_text())
    assert found["runtimes"] == ["eager", "onnx"]
    kinds = [row["kind"] for row in found["rows"]]
    assert kinds == ["unpruned", "csr", "structured", "masked", "csr", "2:4"]
    counts = [row["params"] for row in found["rows"][2:]]
    assert max(counts) <= 1.02 * min(counts)
    by_kind = {row["kind"]: row for row in found["rows"]}
    assert "ratio" in by_kind["masked"]["speeds"]["onnx"]
    assert "reason" in by_kind["csr"]["speeds"]["onnx"]


def test_json_alone_on_the_standard_output(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["kept=[0.25]", "kinds=[structured]", "onnxruntime=false", "output=here", "--json"]
    assert main(["study", "sparsity", *TINY, *words]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert [row["asked"] for row in found["rows"]] == [1.0, 0.25]
    (place,) = (folder / "here").iterdir()
    assert (place / "sparsity.json").read_text() == out.rstrip("\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kept=[0.5,1.5]"], "kept is [0.5, 1.5]; choose shares of the parameters between 0 and 1"),
        (["kept=[]"], "kept is []; choose shares"),
        (["kept=[0.5,0.5]"], "each once"),
        (["kinds=[structurd]"], "no kind 'structurd'; did you mean 'structured'?"),
        (["kinds=[]"], "kinds is empty; choose from structured, masked, csr, 2:4"),
        (["kept=0.5"], "by default it is [0.5, 0.25, 0.1]"),
        (["meter.where=bench", "executor.address=auto"], "where it runs, and meter.where is bench"),
        (["output=/proc/here"], "cannot write to the output folder /proc/here"),
        (["model.image_side=9"], "fails on the example input"),
    ],
)
def test_faults(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "sparsity", *TINY, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("folder")
def test_where_no_level_can_be_reached_the_reasons_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["kept=[0.001]", "kinds=[structured]", "onnxruntime=false", "meter.max_s=0.1"]
    assert main(["study", "sparsity", *TINY, *words]) == 2
    assert "structured at 0.001: with all groups cut alike it comes no nearer than" in (
        capsys.readouterr().err
    )


def test_faults_are_told_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "sparsity", *TINY, "kept=[2]", "kinds=[x]", "meter.max_s=0"]) == 2
    err = capsys.readouterr().err
    for message in ("kept is [2.0]", "no kind 'x'", "meter.max_s is 0"):
        assert message in err
    assert not list(folder.iterdir())


def test_without_onnx_runtime_the_message_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["study", "sparsity", *TINY]) == 2
    err = capsys.readouterr().err
    assert "pip install 'autoprune[onnx]', or set onnxruntime=false" in err
    assert not list(folder.iterdir())


def test_help_of_the_studies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--help"]) == 0
    assert "study sparsity" in capsys.readouterr().out
    assert main(["study", "sparsity", "--help"]) == 0
    assert "Accuracy is not looked at" in capsys.readouterr().out


@pytest.mark.parametrize("experiment", ["digits_vgg", "digits_vit"])
def test_it_takes_what_a_sweep_takes(experiment: str) -> None:
    def composed(command: str) -> dict[str, Any]:
        return plain(compose_config(command, [f"experiment={experiment}", "meter=onnxruntime"]))

    study, sweep = composed("study_sparsity"), composed("sweep")
    own = set(SparsityConfig.__dataclass_fields__) - set(SweepConfig.__dataclass_fields__)
    assert set(study) - set(sweep) == own == {"kept", "kinds", "onnxruntime"}
    assert {key: study[key] for key in sweep} == sweep
