"""What the command line cannot easily show of the settings."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from autoprune.domain.errors import AutopruneError, FaultsError
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.quiet import QuietNode
from autoprune.orchestration.folders import check_writable
from autoprune.orchestration.forecast import forecast
from autoprune.orchestration.planning import make_plan
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from autoprune.settings.build import build_request
from autoprune.settings.choices import choose
from autoprune.settings.compose import completed, compose_config, plain, quoted
from autoprune.settings.listed import with_recoveries
from autoprune.settings.parts import recoveries_of
from autoprune.settings.rules import check_device
from autoprune.settings.targets import source_digests
from tests import tiny
from tests.pruning_tasks import Blobs


def test_values_that_a_users_file_leaves_open_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = "_target_: autoprune.models.mlp\nwidth: ???\ndepth: ???\n"
    (tmp_path / "model" / "open.yaml").write_text(text)
    config = compose_config("sweep", ["model=open"], config_dir=str(tmp_path))
    with pytest.raises(FaultsError, match=r"model.depth has no value; set model.depth=") as caught:
        plain(config)
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize(
    "name",
    [
        "für uns",
        "a(b",
        "a)b",
        "it's",
        '"said"',
        "a=b",
        "a{b}",
        "a,b",
        "[a]",
        "a:b#c",
        "a\\",
        "${a}",
    ],
)
def test_a_users_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / name / "model" / "own.yaml").write_text("_target_: autoprune.models.mlp\n")
    config = compose_config("sweep", ["model=own"], config_dir=str(tmp_path / name))
    assert config.model._target_ == "autoprune.models.mlp"
    with pytest.raises(FaultsError, match="did you mean 'own'"):
        compose_config("sweep", ["model=owm"], config_dir=str(tmp_path / name))


def test_a_value_may_have_any_letters(tmp_path: Path) -> None:
    config = compose_config("sweep", [f"output={tmp_path}/été", "name='señal'"])
    assert config.output == f"{tmp_path}/été"
    assert config.name == "señal"
    assert compose_config("sweep", ["output=" + quoted("it's (mine), [here]")]).output == (
        "it's (mine), [here]"
    )


def test_a_scripts_own_hydra_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("answer: 42")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        compose_config("sweep", [])
        with pytest.raises(FaultsError):
            compose_config("sweep", ["nonsense=3"])
        assert compose("mine").answer == 42


def test_an_interpolation_to_nothing() -> None:
    with pytest.raises(AutopruneError, match=r"Interpolation key 'nothing' not found"):
        plain(compose_config("sweep", ["name=${nothing}"]))


def test_long_lists_name_the_near_miss_only() -> None:
    names = [f"name{i}" for i in range(30)]
    assert choose("nam17", names) == "did you mean 'name17'?"
    assert "nothing like it" in choose("zzz", names)
    assert choose("a", []) == "there is none"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(AutopruneError, match=r"torch finds no CUDA device on this machine"):
        check_device("executor.device", "cuda")


def test_the_gates_folder_can_be_named() -> None:
    small = ("model=mlp", "model.width=16", "model.image_side=8", "data.side=8")
    request = build_request(plain(compose_config("plan", [*small, "meter.gate_folder=/mnt/gate"])))
    assert request.gate == QuietNode(Path("/mnt/gate"))
    assert isinstance(request.meter, PairedMeter)
    assert request.meter.gate == request.gate


def test_sources_of_nested_targets_and_none_for_what_cannot_be_had() -> None:
    model = {"_target_": "autoprune.models.mlp", "parts": [{"_target_": "torch.nn.Linear"}]}
    found = source_digests({"model": model, "data": {"_target_": "no.such.thing"}})
    assert set(found) == {"autoprune.models.mlp", "torch.nn.Linear"}
    assert all(len(digest) == 12 for digest in found.values())


def test_trying_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept").mkdir()
    check_writable(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()


class OwnLoop(Blobs):
    """A task that trains by itself."""

    def fit(self, model: nn.Module, *, epochs: int, seed: int) -> Iterator[float]:
        yield from (0.0 for _ in range(epochs))


def test_a_forecast_adds_up_and_leaves_the_network_as_it_is(tmp_path: Path) -> None:
    request = tiny.request(tmp_path, recoveries={"finetune": Recovery(FitPlan(epochs=2))})
    before = {name: tensor.clone() for name, tensor in request.model.state_dict().items()}
    found = forecast(request, make_plan(request))
    assert found is not None
    assert found.sweep_s is not None
    assert found.baseline_s == 0
    assert 0 < found.trial_s <= found.sweep_s
    assert all(torch.equal(before[n], t) for n, t in request.model.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_a_task_with_a_loop_of_its_own_is_not_forecast(tmp_path: Path) -> None:
    own = tiny.request(tmp_path, task=OwnLoop())
    assert forecast(own, make_plan(own)) is None


def test_a_config_of_an_older_version_gets_the_defaults_of_keys_it_had_not() -> None:
    now = plain(compose_config("sweep", ["searcher=gp", "meter.max_s=0.7"]))
    older = copy.deepcopy(now)
    del older["meter"]["where"], older["budget"]
    found = completed(older)
    assert found["meter"]["where"] == "trial"
    assert found["budget"]["trials"] is None
    assert {**found, "budget": now["budget"]} == now


def test_the_options_of_recoveries_are_those_of_the_moment(tmp_path: Path) -> None:
    own = tmp_path / "recovery" / "own.yaml"
    own.parent.mkdir()
    own.write_text("fit: {epochs: 3}\n")
    folder = str(tmp_path)
    composed = plain(compose_config("sweep", ["recoveries=[own,none]"], config_dir=folder))
    config = with_recoveries(composed, given=frozenset({"recoveries"}), config_dir=folder)
    own.unlink()
    assert list(recoveries_of(config)) == ["own", "none"]
    assert recoveries_of(config)["own"] == Recovery(FitPlan(epochs=3))
    del config["recovery_options"]["own"]["distillation"]
    assert recoveries_of(completed(config))["own"] == Recovery(FitPlan(epochs=3))
    plain_one = plain(compose_config("sweep", []))
    assert with_recoveries(plain_one, given=frozenset(), config_dir=None) == plain_one
