"""Networks as users name them: what is read, what is known of its inputs, what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Speedup
from autoprune.evaluation import Snapshot
from autoprune.models import mlp
from autoprune.orchestration.artifacts import save_snapshot
from autoprune.orchestration.comparison.networks import (
    Network,
    Origin,
    artifact_in,
    load_network,
    of_program,
    sweep_of,
    unpruned,
)
from autoprune.orchestration.comparison.pair import pair_of
from autoprune.orchestration.folders import JOURNAL_FILE
from autoprune.pruning.recipe import Recipe

ARGUMENTS = {"width": 16, "depth": 2, "in_channels": 1, "num_classes": 4, "image_side": 4}
MLP = {"_target_": "autoprune.models.mlp", **ARGUMENTS}
IMAGE = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SPEED = Speedup(1.0, 1.0, 1.0, 1.0, 1.0, 3, "eager", "cpu", 0.0)


def network(seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(**{**ARGUMENTS, **changes}).eval()


def artifact(folder: Path, *, target: str = MLP["_target_"], example: Any = IMAGE) -> Path:
    """The folder of a trial that cut nothing, as a sweep writes it."""
    model = {**MLP, "_target_": target}
    recipe = Recipe.of((), PruningSpec.of({"hidden.0": 16}), example, model=model)
    weights, outputs = network(seed=1).state_dict(), (torch.zeros(1, 10),)
    snapshot = Snapshot(recipe, weights, {}, SPEED, {}, done=True, outputs=outputs)
    return save_snapshot(folder / "0007", snapshot)


def program(model: nn.Module, *args: Any, **options: Any) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), args, **options)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A network of every kind on disk."""
    found = {name: tmp_path / name for name in ("w.safetensors", "w.pt", "free.pt2")}
    save_file(network().state_dict(), found["w.safetensors"])
    torch.save({"state_dict": network().state_dict()}, found["w.pt"])
    free = program(network(), IMAGE.repeat(2, 1, 1, 1), dynamic_shapes=({0: Dim.AUTO},))
    torch.export.save(free, found["free.pt2"])
    found["folder"] = tmp_path / "folder"
    found["folder"].mkdir()
    save_file(network().state_dict(), found["folder"] / "model.safetensors")
    found["trial"] = artifact(tmp_path).parent
    found["mlflow"] = tmp_path / "mlflow"
    (found["mlflow"] / "data").mkdir(parents=True)
    (found["mlflow"] / "data" / "model.pt2").write_bytes(found["free.pt2"].read_bytes())
    return found


KINDS = ["w.safetensors", "w.pt", "free.pt2", "folder", "trial", "trial/model", "mlflow"]


@pytest.mark.parametrize("name", [*KINDS, "trial/model/model.safetensors"])
def test_networks_of_every_kind_are_read(files: dict[str, Path], name: str) -> None:
    key, _, rest = name.partition("/")
    found = load_network(str(files[key] / rest), Origin(network))
    expected = network(seed=1) if key == "trial" else network()
    with torch.no_grad():
        torch.testing.assert_close(found.model(IMAGE), expected(IMAGE))
    assert not found.model.training
    assert found.source == str(files[key] / rest)
    assert found.program == (key in ("free.pt2", "mlflow"))
    assert found.batches == (1, math.inf)
    if found.example is not None:
        assert isinstance(found.example, torch.Tensor)
        assert (found.example.shape, found.example.dtype) == (IMAGE.shape, torch.float32)
    assert (found.example is None) == (key in ("w.safetensors", "w.pt", "folder"))


def test_a_recipe_is_believed_where_nobody_named_a_model(tmp_path: Path) -> None:
    def never() -> nn.Module:
        raise AssertionError

    ours, theirs = artifact(tmp_path / "a"), artifact(tmp_path / "b", target="elsewhere.mlp")
    assert load_network(str(ours), Origin(never, named=False)).takes is not None
    with pytest.raises(AutopruneError, match=r"'elsewhere.mlp', which is not one of autoprune's"):
        load_network(str(theirs), Origin(never, named=False))
    allowed = artifact(tmp_path / "c", target="tests.unit.test_networks.mlp")
    origin = Origin(never, named=False, allow=["tests.unit.test_networks.mlp"])
    assert load_network(str(allowed), origin).source == str(allowed)
    assert load_network(str(theirs), Origin(network)).source == str(theirs)


def test_the_unpruned_network_of_a_recipe(tmp_path: Path) -> None:
    folder, weights = artifact(tmp_path), tmp_path / "baseline.safetensors"
    save_file(network(seed=3).state_dict(), weights)
    found = unpruned(folder, weights)
    assert torch.equal(found.model(IMAGE), network(seed=3)(IMAGE))
    assert found.source == str(weights)


def test_inputs_of_a_recipe_in_every_layout(tmp_path: Path) -> None:
    ids = torch.zeros(1, 5, dtype=torch.int64)
    for number, example in enumerate([(IMAGE, ids), {"x": IMAGE, "ids": ids}]):
        folder = artifact(tmp_path / str(number), example=example)
        found = load_network(str(folder), Origin(network))
        assert type(found.example) is type(example)
        assert [str(takes) for takes in found.takes or ()] == [
            "float32 (*, 1, 4, 4)",
            "int64 (*, 5)",
        ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.pt", r"gone.pt: there is no such file or folder; name a checkpoint \(.safetensors"),
        ("notes.txt", r"notes.txt is no network that autoprune reads; name a checkpoint"),
        ("empty", r"empty holds no network; name a checkpoint"),
        ("pickled", r"pickled is a pickled model, and reading it would run its code; log it with"),
        ("model.pt", r"model.pt cannot be read as a state dict \(\w+\); save it with torch.save"),
        ("other.pt", r"is not of this network: missing .*; give the model the arguments"),
    ],
)
def test_what_is_no_network_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("no network")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled" / "data").mkdir(parents=True)
    (tmp_path / "pickled" / "data" / "model.pth").touch()
    torch.save(network(), tmp_path / "model.pt")
    torch.save(network(width=8).state_dict(), tmp_path / "other.pt")
    with pytest.raises(AutopruneError, match=message):
        load_network(str(tmp_path / name), Origin(network))


def test_a_checkpoint_without_a_model_says_that_it_was_a_guess(tmp_path: Path) -> None:
    torch.save(network(width=8).state_dict(), tmp_path / "w.pt")
    with pytest.raises(AutopruneError, match=r"no model was named, so it was tried on the default"):
        load_network(str(tmp_path / "w.pt"), Origin(network, named=False))


def test_in_a_sweep_its_own_networks_are_offered(tmp_path: Path) -> None:
    sweep = tmp_path / "mine-1"
    kept = artifact(sweep / "trials")
    (sweep / JOURNAL_FILE).touch()
    assert sweep_of(kept) == sweep
    assert sweep_of(tmp_path) is None
    assert artifact_in(kept.parent) == artifact_in(kept / "model.safetensors") == kept
    for place in (sweep / "models" / "7", sweep):
        with pytest.raises(AutopruneError, match=r"networks that mine-1 kept: trials/0007; or its"):
            load_network(str(place), Origin(network))


class Sums(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum(1) + y.sum()


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, by: int) -> torch.Tensor:
        return x * by


def test_batch_sizes_that_a_program_takes() -> None:
    two = torch.randn(4, 3)
    layer = nn.Linear(3, 3)
    fixed = of_program(program(layer, two), "fixed")
    between = {0: Dim("batch", min=3, max=64)}
    bounded = of_program(program(layer, two, dynamic_shapes=(between,)), "bounded")
    free = of_program(program(layer, two, dynamic_shapes=({0: Dim.AUTO},)), "free")
    assert [n.batches for n in (fixed, bounded, free)] == [(4, 4), (3, 64), (1, math.inf)]
    said = [n.batches_text for n in (fixed, bounded, free)]
    assert said == ["batches of 4 only", "batches of 3 to 64", "batches from 1 up"]
    assert isinstance(fixed.example, torch.Tensor)
    assert fixed.example.shape == (1, 3)


def test_programs_of_other_inputs_are_refused() -> None:
    one, other = torch.randn(4, 3), torch.randn(2, 3)
    with pytest.raises(AutopruneError, match=r"whose first axes are 4 and 2; export the network"):
        of_program(program(Sums(), one, other), "p.pt2")
    with pytest.raises(AutopruneError, match=r"inputs \['x', '3'\] that are not all tensors"):
        of_program(program(Scaled(), one, 3), "p.pt2")
    with pytest.raises(AutopruneError, match=r"inputs by position and \['y'\] by name; export"):
        of_program(program(Sums(), one, kwargs={"y": one}), "p.pt2")
    named = of_program(torch.export.export(Sums(), (), {"x": one, "y": one}), "p.pt2")
    assert isinstance(named.example, dict)
    assert set(named.example) == {"x", "y"}


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> None:
        return None


def test_networks_that_do_not_fit_together_are_refused() -> None:
    def refused(baseline: Network, candidate: Network, example: Any = IMAGE) -> str:
        with pytest.raises(AutopruneError) as caught:
            pair_of(baseline, candidate, example)
        return str(caught.value)

    usual = Network(network(), "usual")
    seven = Network(network(num_classes=7), "seven")
    rgb = Network(network(in_channels=3), "rgb")
    assert "outputs of shape (1, 4) and the candidate of (1, 7); compare networks" in refused(
        usual, seven
    )
    message = refused(usual, rgb)
    assert "the candidate rgb does not take the example input of shape (1, 1, 4, 4)" in message
    assert "set experiment=..., or data and task" in message
    assert "the candidate empty returns no tensor" in refused(usual, Network(Nothing(), "empty"))
    one, eight = (of_program(program(network(), IMAGE.repeat(n, 1, 1, 1)), "p") for n in (1, 8))
    assert "takes batches of 8 only and the baseline batches of 1 only" in refused(one, eight)
    big = of_program(program(network(image_side=8), torch.randn(1, 1, 8, 8)), "big.pt2")
    message = refused(one, big)
    assert "candidate takes float32 (*, 1, 8, 8) and the baseline float32 (*, 1, 4, 4)" in message
    message = refused(usual, big)
    assert "candidate big.pt2 takes float32 (*, 1, 8, 8), and the example input has" in message


def test_what_is_known_of_a_pair_before_any_clock_runs() -> None:
    usual, other = Network(network(), "usual"), Network(network(seed=1, width=8), "other")
    pair = pair_of(usual, other, IMAGE)
    assert pair.difference > 0
    assert [fact.source for fact in pair.facts] == ["usual", "other"]
    assert pair.facts[0].params > pair.facts[1].params
    assert pair_of(usual, usual, IMAGE).difference == 0
    assert 0 < pair.sample_mb < 0.1
