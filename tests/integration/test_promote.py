"""`autoprune promote` and `rollback` through the command, on one real sweep of a user's model."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file, save_file

from autoprune.cli import main
from autoprune.orchestration.folders import JOURNAL_FILE, trial_folder
from autoprune.orchestration.promotion.registry import EVIDENCE, VERDICT
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.tracking.finding import find_run
from autoprune.orchestration.tracking.serving import ready_model
from autoprune.orchestration.view import SweepView, view_of
from tests.tiny import REPOSITORY

MODULE = """
from torch import nn

def network(width):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )
"""
OPTION = "_target_: shop_network.network\nwidth: 1536\n"
PREDICT = """
import sys
sys.path.append(sys.argv[1])
try:
    import autoprune.domain
except ImportError:  # an editable install leaves a folder autoprune/conf, which holds no code
    pass
else:
    sys.exit("autoprune can be imported")
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[2])
model = mlflow.pyfunc.load_model(sys.argv[3])
for size in (1, 7):
    x = np.linspace(-1, 1, size * 64, dtype=np.float32).reshape(size, 1, 8, 8)
    np.save(f"{sys.argv[4]}/{size}.npy", model.predict(x))
"""


@dataclass
class Shop:
    """A sweep of equal ratios without recovery: the smaller, the faster and the worse."""

    project: Path
    output: Path
    folder: Path = field(init=False)
    view: SweepView = field(init=False)

    def sweep(self) -> None:
        words = ["data.side=8", "baseline.fit.epochs=4", "recovery=none", "meter.max_s=0.2"]
        words += ["searcher=uniform", "budget.trials=4", "executor=inline", "meter.gate=false"]
        # a batch so large that computing, not the cost of a call, is what the ratios differ in
        words += ["meter.batch_sizes=[64]"]
        words += ["name=shop", "model=shop", "space.min_kept=0.02", f"output={self.output}"]
        words += ["+searcher.ratios=[0.5,0.3,0.15,0.08]"]
        assert main(["sweep", "--config-dir", "conf", *words]) == 0
        (journal,) = self.output.glob(f"*/{JOURNAL_FILE}")
        self.folder, self.view = journal.parent, view_of(read_journal(journal))

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.output}/mlflow.db"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri, self.uri)

    def promote(self, *words: str) -> int:
        return main(["promote", f"output={self.output}", *words])

    def model(self, name: str) -> RegisteredModel:
        return self.client.get_registered_model(name)

    def trial(self, alias: str, name: str) -> int:
        """The trial whose network holds an alias."""
        version = self.client.get_model_version_by_alias(name, alias)
        return int(version.tags["autoprune.trial"])

    def network(self, number: int) -> Path:
        return trial_folder(self.folder, number) / "model"

    @property
    def members(self) -> list[int]:
        """The front's trials, the best first and so the fastest last."""
        return [member.trial.number for member in self.view.front.members]

    @property
    def fastest(self) -> int:
        """By what it is sure to give: two narrow networks may be told apart the other way."""
        speeds = {m.trial.number: m.outcome.speedup for m in self.view.front.members}
        return max(speeds, key=lambda number: speeds[number].low)

    def evidence(self) -> dict[str, object]:
        """What the last promotion left in the sweep's folder."""
        files = sorted((self.folder / "promotions").iterdir(), key=lambda p: p.name[-25:])
        found = json.loads(files[-1].read_text())
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Shop]:
    project, away = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("away")
    (project / "conf" / "model").mkdir(parents=True)
    (project / "shop_network.py").write_text(MODULE)
    (project / "conf" / "model" / "shop.yaml").write_text(OPTION)
    output = tmp_path_factory.mktemp("outputs")
    shutil.copy(mlflow_template, output / "mlflow.db")
    made = Shop(project, output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(project)
        made.sweep()
        # promotions are asked for elsewhere: the user's module is found by the journal's paths
        patch.chdir(away)
        yield made


def test_the_sweep_has_a_front_to_choose_from(shop: Shop) -> None:
    assert len(shop.members) >= 3


def test_the_fastest_within_a_drop_is_registered_with_its_evidence_and_served(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shop.promote("name=served", "select.max_accuracy_drop=1") == 0
    number = shop.fastest
    out = capsys.readouterr().out
    assert f"chosen    trial {number:>3} *" in out
    assert "registered served version 1: champion (there is no champion)" in out

    version = shop.client.get_model_version_by_alias("served", "champion")
    evidence = json.loads(version.tags[EVIDENCE])
    assert evidence["metric"] == "accuracy"
    assert 1 < evidence["speedup_low"] <= evidence["speedup"] <= evidence["speedup_high"]
    assert version.tags["autoprune.sweep"] == shop.view.sweep_id
    assert version.tags["autoprune.trial"] == str(number)
    assert version.tags[VERDICT] == "there is no champion"
    run_id = find_run(shop.client, shop.view, number)
    assert version.run_id == run_id
    assert shop.client.get_run(run_id).data.tags["promotion"] == "passed"
    kept = shop.evidence()
    assert (kept["passed"], kept["trial"], kept["sweep"]) == (True, number, shop.view.sweep_id)

    predict(shop, "models:/served@champion", tmp_path)
    found = [np.load(tmp_path / f"{size}.npy").shape for size in (1, 7)]
    assert found == [(1, 10), (7, 10)]


def predict(shop: Shop, model: str, folder: Path) -> None:
    """Predict in a process where autoprune cannot be imported."""
    # -I and -S leave out what makes autoprune importable here (the editable install's .pth file)
    site = sysconfig.get_path("purelib")
    command = [sys.executable, "-I", "-S", "-c", PREDICT, site, shop.uri, model, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_champion_is_served_where_only_mlflow_and_torch_are_installed(
    shop: Shop, tmp_path: Path
) -> None:
    assert shop.promote("name=elsewhere", "select.max_accuracy_drop=1") == 0
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", REPOSITORY / "constraints.txt"]
    subprocess.run([*install, "mlflow", "torch"], check=True)
    place = str(tmp_path)
    command = [python, "-I", "-c", PREDICT, place, shop.uri, "models:/elsewhere@champion", place]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [np.load(tmp_path / f"{size}.npy").shape for size in (1, 7)] == [(1, 10), (7, 10)]


@pytest.mark.slow  # four promotions
def test_challenger_champion_previous_and_back(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, middle, fast = shop.members[0], shop.members[1], shop.members[-1]
    for number in (middle, slow, fast):
        assert shop.promote("name=m", f"select.trial={number}", "gate.max_test_drop=1") == 0
        if number == slow:
            assert (shop.trial("champion", "m"), shop.trial("challenger", "m")) == (middle, slow)
    assert (shop.trial("champion", "m"), shop.trial("previous", "m")) == (fast, middle)
    assert "challenger" not in shop.model("m").aliases
    out = capsys.readouterr().out
    assert "version 2: challenger (neither clearly faster nor clearly better" in out
    assert "version 3: champion (faster" in out

    assert main(["rollback", f"output={shop.output}", "name=m"]) == 0
    assert (shop.trial("champion", "m"), shop.trial("previous", "m")) == (middle, fast)
    assert "m: version 1 is champion again, 3 is previous" in capsys.readouterr().out


@pytest.mark.slow  # three promotions
def test_a_champion_that_wins_is_replaced_where_that_is_asked(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, fast = shop.members[0], shop.members[-1]
    for number in (fast, slow):
        words = (f"select.trial={number}", "gate.max_test_drop=1")
        assert shop.promote("name=r", *words) == 0
    assert shop.trial("champion", "r") == fast
    assert shop.promote("name=r", *words, "replace=true") == 0
    assert (shop.trial("champion", "r"), shop.trial("previous", "r")) == (slow, fast)
    assert "champion (as was asked; neither clearly faster" in capsys.readouterr().out


@pytest.mark.slow  # three promotions
def test_a_model_in_the_store_that_is_not_the_proved_one_is_not_registered(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    number, other = shop.members[0], shop.members[-1]
    for trial in (number, other):
        assert shop.promote("name=swapped", f"select.trial={trial}", "gate.max_test_drop=1") == 0
    kept, strange = (served_file(shop, trial) for trial in (number, other))
    sound = kept.read_bytes()
    kept.write_bytes(strange.read_bytes())
    try:
        assert shop.promote("name=swap", f"select.trial={number}", "gate.max_test_drop=1") == 2
    finally:
        kept.write_bytes(sound)
    assert "differs from the network by" in capsys.readouterr().err
    with pytest.raises(MlflowException, match="not found"):
        shop.client.get_model_version_by_alias("swap", "champion")


def served_file(shop: Shop, number: int) -> Path:
    """The exported program of a trial in the store."""
    model_id = ready_model(shop.client, find_run(shop.client, shop.view, number))
    assert model_id is not None
    place = shop.client.get_logged_model(model_id).artifact_location
    (file,) = Path(place.removeprefix("file://")).rglob("*.pt2")
    return file


def test_a_member_below_the_gate_moves_nothing_and_leaves_its_evidence(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    number = shop.members[0]
    words = ("select.min_speedup=0.1", "gate.min_speedup=1000", "gate.max_test_drop=0")
    assert shop.promote("name=refused", *words) == 3
    out = capsys.readouterr().out
    assert f"chosen    trial {number:>3} *" in out
    assert "its lower bound is not above 1000" in out
    assert "Nothing was moved" in out
    with pytest.raises(MlflowException, match="not found"):
        shop.model("refused")

    kept = shop.evidence()
    assert (kept["passed"], kept["trial"]) == (False, number)
    assert kept["faults"]
    run_id = find_run(shop.client, shop.view, number)
    tags = shop.client.get_run(run_id).data.tags
    assert tags["promotion"] == "refused"
    assert "not above 1000" in tags["promotion.faults"]
    files = [file.path for file in shop.client.list_artifacts(run_id, "promotions")]
    assert len(files) == len(list((shop.folder / "promotions").glob(f"trial-{number:04d}-*")))


def test_a_tampered_network_fails_with_its_difference(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    number = shop.members[1]
    weights = shop.network(number) / "model.safetensors"
    sound = weights.read_bytes()
    state = load_file(weights)
    name = min(state)
    state[name] = state[name] * 1.5
    try:
        save_file(state, weights)
        assert shop.promote("name=tampered", f"select.trial={number}", "gate.max_test_drop=1") == 3
        out = capsys.readouterr().out
        assert "the rebuilt network's outputs differ by 0." in out
        assert "at most 1e-05 is allowed" in out

        weights.write_bytes(sound[:100])
        assert shop.promote("name=tampered", f"select.trial={number}") == 2
        assert "could not be made" in capsys.readouterr().err
    finally:
        weights.write_bytes(sound)
    with pytest.raises(MlflowException, match="not found"):
        shop.model("tampered")


def test_a_network_that_is_gone_is_said(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    number = shop.members[-1]
    place = shop.network(number)
    place.rename(place.with_name("elsewhere"))
    try:
        assert shop.promote(f"select.trial={number}") == 2
    finally:
        place.with_name("elsewhere").rename(place)
    err = capsys.readouterr().err
    assert f"the network of trial {number} is not in " in err
    assert "tracking.keep_models=all" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("select.trial=1", "select.min_speedup=2"), "select.trial names one trial; leave"),
        (("select.max_accuracy_drop=-1",), "select.max_accuracy_drop is -1.0; choose 0 or more"),
        (("select.min_speedup=1e6",), "no member of the front of shop-"),
        (("select.trial=99",), "has no trial 99; the front's are ["),
        (("sweep=shop-1",), "no sweep 'shop-1'"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_anything_starts(
    shop: Shop, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shop.promote(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_sweep_that_mlflow_does_not_know_is_refused_before_the_proof(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], mlflow_template: Path
) -> None:
    shutil.copytree(shop.folder, tmp_path / shop.folder.name)
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    assert main(["promote", f"output={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert "has no run in MLflow; autoprune resume sweep=" in captured.err
    assert "test " not in captured.out


def test_a_store_that_was_copied_is_refused_before_anything_is_written(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shop.output, tmp_path / "copy")
    before = sorted(shop.output.rglob("*"))
    assert main(["promote", f"output={tmp_path / 'copy'}", "select.max_accuracy_drop=1"]) == 2
    assert "was moved or copied: its artifacts are noted at file://" in capsys.readouterr().err
    assert sorted(shop.output.rglob("*")) == before


def test_there_is_nothing_to_roll_back_of_a_sweep_not_promoted(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollback", f"output={shop.output}", "name=never"]) == 2
    assert "there is no registered model 'never'" in capsys.readouterr().err
