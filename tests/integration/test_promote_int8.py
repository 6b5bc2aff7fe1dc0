"""Train, prune, fine-tune, quantise, export and promote, by the command and one config."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import mlflow.pyfunc
import numpy as np
import onnxruntime
import pytest
import torch
from mlflow import MlflowClient

import autoprune
from autoprune.cli import main
from autoprune.data import digits
from autoprune.domain.trial import Measurement
from autoprune.measurement.quantise import quantise
from autoprune.measurement.runtimes import Int8Network
from autoprune.orchestration.folders import JOURNAL_FILE, trial_folder
from autoprune.orchestration.onnx_files import ONNX_FILE
from autoprune.orchestration.promotion.registry import EVIDENCE
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.tracking.connection import process_store
from autoprune.orchestration.tracking.serving import ServingError, log_model
from autoprune.orchestration.view import SweepView, view_of
from autoprune.pruning.accuracy import evaluate
from autoprune.tasks import Classification
from tests.integration.test_registry import make_run
from tests.pruning_tasks import Blobs, small_net

WORDS = (
    *("model=mlp", "model.width=512", "data.side=8", "model.image_side=8"),
    *("baseline.fit.epochs=4", "recovery.fit.epochs=1", "meter=onnxruntime", "meter.max_s=0.2"),
    *("meter.gate=false", "meter.batch_sizes=[64]", "precisions=[int8]", "calibration_batches=4"),
    *("tracking.export=[onnx]", "searcher=uniform", "budget.trials=2", "executor=inline"),
    *("uniform_first=[]", "+searcher.ratios=[0.5,0.25]", "name=small"),
)


class Scores(NamedTuple):
    logits: torch.Tensor
    total: torch.Tensor


@dataclass
class Made:
    output: Path
    folder: Path = field(init=False)
    view: SweepView = field(init=False)

    def __post_init__(self) -> None:
        assert main(["sweep", *WORDS, f"output={self.output}"]) == 0
        (journal,) = self.output.glob(f"*/{JOURNAL_FILE}")
        self.folder, self.view = journal.parent, view_of(read_journal(journal))

    @property
    def number(self) -> int:
        return self.view.front.members[0].trial.number

    @property
    def network(self) -> Path:
        return trial_folder(self.folder, self.number) / "model"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.output}/mlflow.db"

    def promote(self, *words: str) -> int:
        select = f"select.trial={self.number}"
        gate = ("gate.max_test_drop=1", "gate.min_speedup=0.01")
        return main(["promote", f"output={self.output}", select, *gate, *words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Made]:
    output, away = tmp_path_factory.mktemp("outputs"), tmp_path_factory.mktemp("away")
    shutil.copy(mlflow_template, output / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(away)
        yield Made(output)


def test_the_sweep_told_of_the_quantised_networks_and_exported_them(made: Made) -> None:
    task = Classification(digits(side=8))
    for member in made.view.front.members:
        assert member.trial.spec.precision == "int8"
        folder = trial_folder(made.folder, member.trial.number)
        network = autoprune.load(folder)
        assert isinstance(network, Int8Network)
        assert isinstance(member.outcome, Measurement)
        told = member.outcome.metrics
        assert told["accuracy"] == evaluate(network, task, "val")["accuracy"] > 0.8
        session = onnxruntime.InferenceSession(folder / "model" / ONNX_FILE)
        images = task.data.val.inputs[:5].float() / 127.5 - 1.0
        (scores,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert scores.shape == (5, 10)


def test_a_promoted_member_is_the_quantised_one_and_is_served(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made.promote("name=served", "export=[onnx]") == 0
    out = capsys.readouterr().out
    assert "registered served version 1: champion" in out
    assert f"{made.network / ONNX_FILE} (int8, batch free; outputs differ" in out
    client = MlflowClient(made.uri, made.uri)
    version = client.get_model_version_by_alias("served", "champion")
    network = autoprune.load(made.network)
    task = Classification(digits(side=8))
    evidence = json.loads(version.tags[EVIDENCE])
    assert evidence["value"] == evaluate(network, task, "test")["accuracy"]
    assert evidence["runtime"] == "onnx"
    with process_store(made.uri):
        served = mlflow.pyfunc.load_model("models:/served@champion")
    for size in (1, 7):
        images = (task.data.test.inputs[:size].float() / 127.5 - 1.0).numpy()
        (scores,) = served.predict(images).values()
        with torch.no_grad():
            expected = network(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_program_that_was_changed_is_refused(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    program = made.network / ONNX_FILE
    (other,) = (p for p in made.folder.glob(f"trials/*/model/{ONNX_FILE}") if p != program)
    sound = program.read_bytes()
    program.write_bytes(other.read_bytes())
    try:
        assert made.promote("name=changed") == 3
    finally:
        program.write_bytes(sound)
    assert "the rebuilt network's outputs differ by" in capsys.readouterr().out


def test_it_is_measured_by_the_command(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"output={made.output}", "sweep=latest", f"select.trial={made.number}"]
    words += ["runtimes=[eager,onnxruntime]", "meter.max_s=0.05", "--json"]
    assert main(["measure", *words]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    reasons = [row.get("reason") for row in rows]
    assert "takes networks in fp32 only" in str(reasons[0])
    assert rows[1]["speedup"]["runtime"] == "onnx"


def test_a_network_of_several_outputs_is_not_served_in_int8(
    tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small_net()

        def forward(self, x: torch.Tensor) -> Scores:
            scores = self.body(x)
            return Scores(scores, scores.sum(1))

    class Task(Blobs):
        def loss(self, model: torch.nn.Module, batch: object) -> torch.Tensor:
            return model(batch[0]).logits.sum()  # type: ignore[index]

    monkeypatch.chdir(tmp_path)
    client = MlflowClient(sqlite_uri, sqlite_uri)
    network = quantise(Two(), Task(), batches=1, seed=0).eval()
    with pytest.raises(ServingError, match="returns 2 tensors; in int8 MLflow serves networks"):
        log_model(client, make_run(client), network, example=Blobs().example())
