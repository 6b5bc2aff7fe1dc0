"""`autoprune measure` as a user types it, on a small sweep and a real MLflow store."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file
from torch.export import Dim

from autoprune.cli import main
from autoprune.domain.trial import Speedup
from autoprune.models import mlp
from autoprune.orchestration.folders import BASELINE_FILE, JOURNAL_FILE
from autoprune.orchestration.promotion.registry import register
from autoprune.orchestration.tracking.serving import log_model
from autoprune.settings.compose import spelled_out
from tests.integration.test_registry import make_run
from tests.unit.test_registry_rules import CHAMPION as EVIDENCE

MLP = ["model=mlp", "model.width=16", "model.image_side=8", "data.side=8"]
SMALL = [
    *(*MLP, "name=tiny", "baseline.fit.epochs=1", "baseline.fit.warmup_epochs=0"),
    *("recovery=none", "meter.max_s=0.1", "meter.gate=false", "budget.trials=3"),
    *("executor=inline", "tracking=none"),
]
QUICK = ["meter.max_s=0.05", "meter.gate=false"]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small sweep that is over, in ``outputs``."""
    folder = tmp_path_factory.mktemp("swept")
    assert main(["sweep", *SMALL, f"output={folder / 'outputs'}"]) == 0
    return folder


@pytest.fixture
def run(swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `autoprune measure` in the folder of the sweep; returns what it printed."""
    monkeypatch.chdir(swept)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        found = main(["measure", *words])
        out, err = capsys.readouterr()
        assert found == code, out + err
        assert "Traceback" not in out + err
        assert "\x1b" not in out
        assert (out == "") == (code == 2)
        return str(err if code == 2 else out)

    return call


@pytest.fixture
def sweep(swept: Path) -> Path:
    (journal,) = swept.glob(f"outputs/*/{JOURNAL_FILE}")
    return journal.parent.relative_to(swept)


def network(**changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"width": 16, "depth": 2, "in_channels": 1, "num_classes": 10, "image_side": 8}
    return mlp(**{**shape, **changes}).eval()


def exported(path: Path, batch: int, *, free: bool = False, **changes: Any) -> Path:
    shapes = ({0: Dim.AUTO},) if free else None
    example = (torch.zeros(batch, 1, 8, 8),)
    program = torch.export.export(network(**changes), example, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def test_a_network_of_a_sweep_against_its_baseline(run: Run, sweep: Path) -> None:
    runtimes = ["runtimes=[eager,onnxruntime]", "batch_sizes=[1,32]"]
    out = run("sweep=latest", *runtimes, *QUICK)
    assert out.splitlines()[0].startswith(f"baseline   {sweep / BASELINE_FILE}: ")
    assert f"candidate  {sweep / 'trials'}" in out
    rows = [line for line in out.splitlines() if line.startswith("│ ")]
    cells = [[cell.strip() for cell in row.split("│")[1:3]] for row in rows]
    assert cells == [["eager", "1"], ["eager", "32"], ["onnxruntime", "1"], ["onnxruntime", "32"]]
    assert "onnxruntime 1." in out
    assert "torch 2." in out
    assert "pairs spread by" in out


def test_the_same_facts_as_json_and_nothing_else(run: Run, sweep: Path) -> None:
    (trial, *_) = sorted(path for path in sweep.glob("trials/*") if path.is_dir())
    facts = json.loads(run(f"candidate={trial}", "--json", *QUICK))
    assert facts["candidate"]["source"] == str(trial)
    assert facts["baseline"]["params"] > facts["candidate"]["params"]
    (row,) = facts["rows"]
    assert (row["runtime"], row["batch_size"]) == ("eager", 1)
    speedup = Speedup.from_json(row["speedup"])
    assert speedup.low <= speedup.ratio <= speedup.high
    assert facts["devices"] == [f"{speedup.device}, 1 thread"]
    assert facts["difference"] > 0


def test_the_members_of_a_front_by_the_rules_of_promote(run: Run, sweep: Path) -> None:
    facts = json.loads(run("sweep=latest", "select.min_speedup=0", "--json", *QUICK))
    assert f"{sweep}/trials/" in facts["candidate"]["source"]
    message = run("sweep=latest", "select.trial=99", code=2)
    assert "has no trial 99; the front's are" in message


def test_checkpoints_of_a_named_model(run: Run, tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "a.safetensors")
    torch.save(network().state_dict(), tmp_path / "b.pt")
    words = [f"candidate={tmp_path}/a.safetensors", f"baseline={tmp_path}/b.pt"]
    facts = json.loads(run(*words, *MLP, "--json", *QUICK))
    assert facts["difference"] == 0
    message = run(*words, code=2)
    assert "is not of this network" in message
    assert "no model was named, so it was tried on the default one" in message
    assert len(message.splitlines()) == 2


def test_the_baseline_that_an_experiment_has_trained(run: Run, tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "a.safetensors")
    words = [f"candidate={tmp_path}/a.safetensors", *MLP, *QUICK]
    trained = ["baseline.fit.epochs=1", "baseline.fit.warmup_epochs=0"]
    assert "trained before (" in run(*words, *trained)
    message = run(*words, code=2)
    assert "no baseline is named, and the experiment has trained none; set baseline=" in message


def test_programs_need_no_configuration(run: Run, tmp_path: Path) -> None:
    small = exported(tmp_path / "small.pt2", 2, free=True, width=8)
    fixed = exported(tmp_path / "fixed.pt2", 4)
    facts = json.loads(run(f"candidate={small}", f"baseline={fixed}", "--json", *QUICK))
    assert [row["batch_size"] for row in facts["rows"]] == [4]
    words = [f"candidate={small}", f"baseline={fixed}", "batch_sizes=[1,4]", *QUICK]
    out = run(*words)
    assert "- eager at 1: the baseline was exported for batches of 4 only; export it with" in out
    message = run(*words[:2], "batch_sizes=[1]", code=2)
    assert message.startswith("autoprune: eager at 1: the baseline was exported for batches of 4")
    seven = exported(tmp_path / "seven.pt2", 4, num_classes=7)
    message = run(f"candidate={seven}", f"baseline={fixed}", code=2)
    assert "gives outputs of shape (4, 10) and the candidate of (4, 7)" in message


def test_a_model_in_the_registry(run: Run, sqlite_uri: str) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    run_id, example = make_run(client), torch.zeros(1, 1, 8, 8)
    model_id = log_model(client, run_id, network(width=8), example=example)
    register(client, "served", model_id, evidence=EVIDENCE)
    words = [f"tracking.uri={sqlite_uri}", "baseline=models:/served@champion", "--json", *QUICK]
    facts = json.loads(run("sweep=latest", *words))
    assert facts["baseline"]["source"] == "models:/served@champion"
    assert "so the candidate was exported, too" in facts["notes"][0]
    message = run("sweep=latest", words[0], "baseline=models:/served/9", code=2)
    assert "checkpoint models:/served/9 cannot be fetched" in message
    message = run("sweep=latest", "baseline=models:/served/1", code=2)
    assert "there is no MLflow store" in message


def test_eight_bits_are_calibrated_on_the_data_of_the_sweep(run: Run) -> None:
    (row,) = json.loads(run("sweep=latest", "runtimes=[onnxruntime_int8]", "--json", *QUICK))[
        "rows"
    ]
    assert row["speedup"]["runtime"] == "onnx int8"
    assert row["off_eager"]["candidate"] > 0


def test_faults_all_at_once_with_the_near_miss(run: Run, sweep: Path) -> None:
    message = run("candidate=gone.pt", "runtimes=[eagr]", "batch_sizes=[0]", code=2)
    for fault in (
        "batch_sizes is [0]; name each size once, from 1 up",
        "runtimes: there is no runtime 'eagr'; did you mean 'eager'?",
        "gone.pt: there is no such file or folder; name a checkpoint",
        "no baseline is named; set baseline= to a network",
    ):
        assert fault in message
    assert len(message.splitlines()) == 4
    for words in ([], ["candidate=a.pt", "sweep=latest"]):
        assert "takes its candidate from candidate= or from sweep=, one of" in run(*words, code=2)
    message = run("sweep=latest", "meter=eager", "runtimes=[eager]", code=2)
    assert "meter= and runtimes= both choose runtimes" in message
    message = run("sweep=latest", "meter.where=bench", code=2)
    assert "measures where it runs, and meter.where is bench; run it on the bench" in message
    assert "runtimes names eager more than once" in run(
        "sweep=latest", "runtimes=[eager,eager]", code=2
    )
    assert "networks that" in run(f"candidate={sweep}/models/17", code=2)
    assert "meter.max_s is -1.0; choose more than 0" in run(
        "sweep=latest", "meter.max_s=-1", code=2
    )
    message = run("sweep=latest", "data.side=16", code=2)
    assert "does not take the example input of shape (1, 1, 16, 16)" in message


def test_a_runtime_that_is_not_installed_costs_its_row(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    reason = "'onnxruntime', which is not installed; pip install 'autoprune[onnx]'"
    rows = json.loads(run("sweep=latest", "runtimes=[eager,onnxruntime]", "--json"))["rows"]
    assert rows[0]["speedup"]["ratio"] > 0
    assert reason in rows[1]["reason"]
    assert reason in run("sweep=latest", "runtimes=[onnxruntime]", code=2)


MINE = """
from torch import nn

class Mine(nn.Sequential):
    def __init__(self, width: int = 24):
        super().__init__(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)
        )
"""


def test_a_network_of_the_users_own_code(run: Run, tmp_path: Path) -> None:
    (tmp_path / "measured_mine.py").write_text(MINE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: measured_mine.Mine\nwidth: 24\n")
    words = ["--config-dir", str(tmp_path), *SMALL[4:], "data.side=8", "model=mine"]
    words.append("budget.trials=1")
    output = tmp_path / "outputs"
    assert main(["sweep", *words, f"output={output}"]) == 0
    (trial, *_) = sorted(output.glob("*/trials/*"))
    # a sweep in one's own output folder says how the network is built; elsewhere the user does
    run(f"candidate={trial}", "memory=true", f"output={output}", *QUICK)
    copied = Path(shutil.copytree(trial, tmp_path / "copied"))
    weights = trial.parents[1] / BASELINE_FILE
    message = run(f"candidate={copied}", f"baseline={weights}", code=2)
    assert "'measured_mine.Mine', which is not one of autoprune's networks" in message
    allowed = [f"candidate={copied}", "allow=[measured_mine.Mine]", f"baseline={trial}"]
    run(*allowed, *QUICK)
    named = ["--config-dir", str(tmp_path), "model=mine", "data.side=8", *QUICK]
    run(f"candidate={copied}", f"baseline={weights}", *named)


INTERRUPTED = """
from autoprune.measurement.runtimes import TorchRuntime

class CtrlC(TorchRuntime):
    def prepare(self, model, example):
        raise KeyboardInterrupt
"""


def test_an_interrupt_shows_the_rows_that_are_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "measured_until.py").write_text(INTERRUPTED)
    (tmp_path / "meter").mkdir()
    option = "defaults: [eager, _self_]\nruntime:\n  _target_: measured_until.CtrlC\n"
    (tmp_path / "meter" / "ctrl_c.yaml").write_text(option)
    words = ["--config-dir", str(tmp_path), "sweep=latest", "runtimes=[eager,ctrl_c]", *QUICK]
    (row,) = json.loads(run(*words, "--json", code=130))["rows"]
    assert row["runtime"] == "eager"


def test_the_baseline_is_named_like_the_candidate() -> None:
    assert spelled_out(["baseline=w.pt", "candidate=a"]) == [
        "baseline.checkpoint=w.pt",
        "candidate=a",
    ]
    for word in ("baseline", "baseline=short", "baseline=null", "baseline.fit.epochs=3"):
        assert spelled_out([word]) == [word]
