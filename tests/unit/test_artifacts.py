import json
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Trial
from autoprune.evaluation import Snapshot, example_outputs, portable, run_trial
from autoprune.models import mlp
from autoprune.orchestration.artifacts import (
    OUTPUTS_FILE,
    RECIPE_FILE,
    WEIGHTS_FILE,
    load,
    read_outputs,
    save_snapshot,
)
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.request import SweepRequest
from autoprune.pruning.recover import FitPlan, fit
from tests.pruning_tasks import Blobs, small_net
from tests.tiny import request

MLP = {
    "_target_": "autoprune.models.mlp",
    "width": 16,
    "depth": 2,
    "in_channels": 1,
    "num_classes": 4,
    "image_side": 4,
}


def write(folder: Path, asked: SweepRequest) -> Path:
    """Run one trial and save its network; the artifact's folder."""
    prepared, found = prepare(asked), list[Snapshot]()
    trial = Trial(0, prepared.plan.space.uniform(0.5), 5)
    kept = folder / "0000"

    def keep(progress) -> None:
        if progress.snapshot is not None and progress.snapshot.done:
            save_snapshot(kept, progress.snapshot)
            found.append(progress.snapshot)

    run_trial(trial, prepared.context, report=keep)
    assert found
    return kept / "model"


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    """The artifact of one of autoprune's own models."""
    folder = tmp_path_factory.mktemp("ours")
    arguments = {key: value for key, value in MLP.items() if key != "_target_"}
    return write(folder, request(folder, model=mlp(**arguments), model_config=MLP))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """The artifact of a user's model, by the name of its factory."""
    folder = tmp_path_factory.mktemp("theirs")
    config = {"_target_": "tests.pruning_tasks.small_net", "seed": 0}
    return write(folder, request(folder, model_config=config))


def copied(artifact: Path, place: Path) -> Path:
    place.mkdir()
    for file in artifact.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


@pytest.mark.parametrize("up", [0, 1], ids=["model folder", "trial folder"])
def test_an_own_model_loads_bit_for_bit_by_its_path_alone(ours, up):
    network = load(ours if not up else ours.parent)
    assert not network.training
    (saved,), (found,) = read_outputs(ours), example_outputs(network, Blobs())
    assert torch.equal(saved, found)
    widths = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert widths == [8, 8, 4]


def test_a_loaded_network_can_be_fine_tuned(ours):
    network, task = load(ours), Blobs()
    before = portable(network)
    losses = [epoch.loss for epoch in fit(network, task, FitPlan(epochs=5, lr=0.05), seed=0)]
    assert losses[-1] < losses[0]
    for (name, old), new in zip(before.named_parameters(), network.parameters(), strict=True):
        assert new.requires_grad, name
        assert not torch.equal(old, new), name


@pytest.mark.parametrize(
    "how",
    [
        {"model": small_net},
        {"model": small_net(seed=3)},
        {"allow": ("tests.pruning_tasks.small_net",)},
    ],
    ids=["factory", "network", "allowed target"],
)
def test_a_users_model_loads_where_the_caller_names_it(theirs, how):
    (saved,), (found,) = read_outputs(theirs), example_outputs(load(theirs, **how), Blobs())
    assert torch.equal(saved, found)


def test_a_strangers_target_is_refused_by_name_and_not_run(theirs, tmp_path):
    with pytest.raises(AutopruneError, match=r"tests\.pruning_tasks\.small_net"):
        load(theirs)
    artifact = copied(theirs, tmp_path / "stranger")
    facts = json.loads((artifact / RECIPE_FILE).read_text())
    touched = tmp_path / "ran"
    facts["recipe"]["model"] = {"_target_": "pathlib.Path.touch", "self": str(touched)}
    (artifact / RECIPE_FILE).write_text(json.dumps(facts))
    with pytest.raises(AutopruneError, match=r"pathlib\.Path\.touch"):
        load(artifact)
    assert not touched.exists()


@pytest.mark.parametrize("name", [RECIPE_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "overwritten"])
def test_a_damaged_file_is_named(ours, tmp_path, name, damage):
    artifact = copied(ours, tmp_path / "copy")
    file = artifact / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        cuts = {"empty": b"", "cut": content[: len(content) // 2], "overwritten": b"\x80\xff" * 40}
        file.write_bytes(cuts[damage])
    with pytest.raises(AutopruneError, match=name.replace(".", r"\.")):
        load(artifact)


def test_weights_of_another_network_are_refused(ours, theirs, tmp_path):
    artifact = copied(ours, tmp_path / "mixed")
    (artifact / WEIGHTS_FILE).write_bytes((theirs / WEIGHTS_FILE).read_bytes())
    with pytest.raises(AutopruneError):
        load(artifact)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no recipe; restore it from a copy"),
        ('{"recipe": 3}', "recipe"),
        ('{"recipe": {}}', "recipe"),
        ("{", "not valid JSON"),
    ],
)
def test_a_recipe_that_is_none_is_refused(ours, tmp_path, text, message):
    artifact = copied(ours, tmp_path / "copy")
    (artifact / RECIPE_FILE).write_text(text)
    with pytest.raises(AutopruneError, match=message):
        load(artifact)


def test_a_folder_that_is_no_artifact_says_what_one_is(tmp_path):
    with pytest.raises(AutopruneError, match=r"no recipe at .*name a folder that autoprune wrote"):
        load(tmp_path)


def test_a_huge_recipe_is_refused_unread(tmp_path):
    with (tmp_path / RECIPE_FILE).open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(AutopruneError, match="67108864 at most are read here"):
        load(tmp_path)


def test_an_artifact_holds_no_pickle(ours):
    assert {file.name for file in ours.iterdir()} == {RECIPE_FILE, WEIGHTS_FILE, OUTPUTS_FILE}


def test_a_text_is_replaced_whole(tmp_path):
    path = tmp_path / "report.json"
    replace_text(path, "one")
    replace_text(path, "two")
    assert path.read_text() == "two"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
