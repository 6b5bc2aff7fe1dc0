"""Serving and the registry on a real store, and in a process that has no autoprune."""

import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.promotion.registry import (
    CHALLENGER,
    CHAMPION,
    EVIDENCE,
    MOVING,
    PREVIOUS,
    VERDICT,
    RegistryError,
    holder,
    register,
    rollback,
)
from autoprune.orchestration.tracking.connection import process_store
from autoprune.orchestration.tracking.serving import (
    ServingError,
    log_model,
    prove_ready,
    ready_model,
)
from tests.servers import MlflowServer
from tests.unit.test_registry_rules import CHAMPION as EVIDENCE_OF_FIRST
from tests.unit.test_registry_rules import speed

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


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 10),
    )


def make_run(client: MlflowClient, name: str = "served") -> str:
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    run_id = str(client.create_run(experiment).info.run_id)
    client.log_metric(run_id, "accuracy", 0.97)
    client.log_metric(run_id, "recover/loss", 0.1)
    return run_id


def logged_model(client: MlflowClient) -> str:
    """A model as the registry sees it, without weights: aliases do not look inside."""
    run_id = make_run(client)
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    return str(client.finalize_logged_model(model.model_id, "READY").model_id)


@pytest.fixture
def client(tmp_path: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.chdir(tmp_path)
    return MlflowClient(tracking_uri=sqlite_uri)


def test_a_model_is_served_where_autoprune_is_not_installed(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    client = MlflowClient(tracking_uri=mlflow_server.uri)
    run_id, network = make_run(client), make_network()
    network.train()
    model_id = log_model(client, run_id, network, example=torch.zeros(1, 1, 8, 8))
    assert network.training
    registered = register(client, "served_model", model_id, evidence=EVIDENCE_OF_FIRST)
    assert registered.verdict.wins

    # -I and -S leave out what makes autoprune importable here (the editable install's .pth file)
    site = sysconfig.get_path("purelib")
    command = [sys.executable, "-I", "-S", "-c", PREDICT, site, mlflow_server.uri]
    command += ["models:/served_model@champion", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    network.eval()
    for size in (1, 7):
        x = np.linspace(-1, 1, size * 64, dtype=np.float32).reshape(size, 1, 8, 8)
        with torch.no_grad():
            expected = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{size}.npy"), expected, atol=1e-5)


def test_the_model_belongs_to_the_run_and_is_logged_once(client: MlflowClient) -> None:
    run_id = make_run(client)
    assert ready_model(client, run_id) is None
    example = {"x": torch.zeros(1, 1, 8, 8)}

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)  # type: ignore[no-any-return]

    model_id = log_model(client, run_id, Named(), example=example, tags={"sweep": "s"})
    assert log_model(client, run_id, Named(), example=example) == model_id
    model = client.get_logged_model(model_id)
    assert model.source_run_id == run_id
    assert model.tags["sweep"] == "s"
    assert {m.key: m.value for m in model.metrics} == {"accuracy": 0.97}
    outputs = client.get_run(run_id).outputs.model_outputs
    assert [o.model_id for o in outputs] == [model_id]


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x, x


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("network", "example", "message"),
    [
        (make_network(), (torch.zeros(1, 2), torch.zeros(1, 2)), "takes 2 tensors"),
        (Pair(), torch.zeros(1, 2), "returns a tuple; MLflow serves networks that return one"),
        (Branching(), torch.zeros(1, 2), "cannot be exported for serving"),
        (Noisy(), torch.zeros(1, 2), "differs from the network by"),
    ],
)
def test_a_network_that_cannot_be_served_is_refused(
    client: MlflowClient, network: nn.Module, example: Any, message: str
) -> None:
    run_id = make_run(client)
    with pytest.raises(ServingError, match=message):
        log_model(client, run_id, network, example=example)
    assert ready_model(client, run_id) is None


def test_aliases_move_from_challenger_to_champion_to_previous(client: MlflowClient) -> None:
    faster = replace(EVIDENCE_OF_FIRST, **speed(3.0))
    first = register(client, "m", logged_model(client), evidence=EVIDENCE_OF_FIRST, tags={"a": "b"})
    assert holder(client, "m", CHAMPION) == first.version
    assert client.get_model_version("m", first.version).tags["a"] == "b"
    assert EVIDENCE in client.get_model_version("m", first.version).tags

    same = register(client, "m", logged_model(client), evidence=EVIDENCE_OF_FIRST)
    assert not same.verdict.wins
    assert holder(client, "m", CHALLENGER) == same.version
    assert holder(client, "m", CHAMPION) == first.version
    assert client.get_model_version("m", same.version).tags[VERDICT] == same.verdict.reason

    third = register(client, "m", logged_model(client), evidence=faster)
    assert holder(client, "m", CHAMPION) == third.version
    assert holder(client, "m", PREVIOUS) == first.version
    assert holder(client, "m", CHALLENGER) is None

    assert rollback(client, "m") == (first.version, third.version)
    assert holder(client, "m", CHAMPION) == first.version
    assert rollback(client, "m") == (third.version, first.version)


def test_the_same_model_is_one_version(client: MlflowClient) -> None:
    model_id = logged_model(client)
    first = register(client, "m", model_id, evidence=EVIDENCE_OF_FIRST)
    again = register(client, "m", model_id, evidence=EVIDENCE_OF_FIRST)
    assert again.version == first.version
    assert again.verdict.reason == "it is the champion already"
    assert len(client.search_model_versions("name = 'm'")) == 1


def test_a_champion_without_evidence_stays(client: MlflowClient) -> None:
    client.create_registered_model("m")
    with process_store(client.tracking_uri):
        foreign = client.create_model_version("m", f"models:/{logged_model(client)}")
    client.set_registered_model_alias("m", CHAMPION, foreign.version)
    new = register(client, "m", logged_model(client), evidence=EVIDENCE_OF_FIRST)
    assert not new.verdict.wins
    assert "has no evidence to compare with" in new.verdict.reason
    assert holder(client, "m", CHAMPION) == str(foreign.version)


class CutOffError(Exception):
    pass


class Dying(MlflowClient):
    """A client whose process dies at its n-th change of an alias or of the intent's tag."""

    def __init__(self, uri: str, left: int) -> None:
        super().__init__(tracking_uri=uri)
        self.left = left

    def _live(self) -> None:
        if self.left == 0:
            raise CutOffError
        self.left -= 1

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._live()
        super().set_registered_model_alias(name, alias, version)

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._live()
        super().delete_registered_model_alias(name, alias)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        self._live()
        super().delete_registered_model_tag(name, key)


@pytest.mark.parametrize("left", range(3))
def test_a_move_cut_off_at_any_point_is_completed_by_the_next(
    client: MlflowClient, sqlite_uri: str, left: int
) -> None:
    first = register(client, "m", logged_model(client), evidence=EVIDENCE_OF_FIRST)
    faster = replace(EVIDENCE_OF_FIRST, **speed(3.0))
    model_id = logged_model(client)
    with pytest.raises(CutOffError):
        register(Dying(sqlite_uri, left), "m", model_id, evidence=faster)
    assert holder(client, "m", CHAMPION) is not None
    second = register(client, "m", model_id, evidence=faster)
    assert holder(client, "m", CHAMPION) == second.version
    assert holder(client, "m", PREVIOUS) == first.version

    with pytest.raises(CutOffError):
        rollback(Dying(sqlite_uri, left), "m")
    assert rollback(client, "m") == (first.version, second.version)
    assert MOVING not in client.get_registered_model("m").tags


def test_nothing_to_roll_back_to_is_said(client: MlflowClient) -> None:
    with pytest.raises(RegistryError, match="there is no registered model 'm'; promote a model"):
        rollback(client, "m")
    client.create_registered_model("m")
    with pytest.raises(RegistryError, match="'m' has no champion; promote a model"):
        rollback(client, "m")
    register(client, "m", logged_model(client), evidence=EVIDENCE_OF_FIRST)
    with pytest.raises(RegistryError, match="no version before champion 1; nothing to go back"):
        rollback(client, "m")


def test_a_name_that_mlflow_refuses_is_said(client: MlflowClient) -> None:
    with pytest.raises(AutopruneError, match="model name 'a/b' is refused"):
        register(client, "a/b", logged_model(client), evidence=EVIDENCE_OF_FIRST)


def test_what_a_store_sends_back_is_compared_and_not_run(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, network, example = MlflowClient(sqlite_uri), make_network(), torch.zeros(1, 1, 8, 8)
    model_id = log_model(client, make_run(client), network, example=example)
    place = Path(urlsplit(client.get_logged_model(model_id).artifact_location).path)
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    record = (place / "MLmodel").read_text()
    assert "loader_module: mlflow.pytorch" in record
    (place / "MLmodel").write_text(record.replace("mlflow.pytorch", "hostile"))
    prove_ready(client, model_id, network, example=example)
    with torch.no_grad():
        network[5].bias.add_(1.0)
    with pytest.raises(ServingError, match="differs from the network"):
        prove_ready(client, model_id, network, example=example)
    (place / "data" / "model.pt2").unlink()
    (place / "data" / "model.pth").write_bytes(b"a pickle")
    with pytest.raises(AutopruneError, match=r"model\.pt2"):
        prove_ready(client, model_id, network, example=example)
    assert not (tmp_path / "ran").exists()
