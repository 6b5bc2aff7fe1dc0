"""The unpruned network: kept in the cache, read from checkpoints, and judged as trained out."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Direction, Metric
from autoprune.orchestration.baseline import (
    Baseline,
    BaselineCache,
    load_checkpoint,
    rising,
    train_baseline,
)
from autoprune.pruning.recover import FitPlan
from tests.pruning_tasks import Blobs, small_net


def trained(cache: Path, *, identity: str = "a", seed: int = 0, **more: Any) -> Baseline:
    kept, facts, network = BaselineCache(cache), {"id": identity}, small_net()
    found = kept.find(facts, network)
    if found is not None:
        return found
    return kept.keep(facts, train_baseline(network, Blobs(), FitPlan(epochs=2), seed=seed, **more))


def test_a_network_is_trained_once_for_its_identity(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    first = trained(tmp_path, report=lambda *epoch: told.append(epoch))
    again = trained(tmp_path, report=lambda *epoch: told.append(epoch))
    assert tuple(value for _, value in told) == first.history
    assert first.source.startswith("trained now")
    assert again.source.startswith("trained before")
    assert (again.digest, again.history) == (first.digest, first.history)
    other = trained(tmp_path, identity="b", seed=1)
    assert other.digest != first.digest
    assert len(list(tmp_path.iterdir())) == 2


def test_two_sweeps_may_train_the_same_network_at_once(tmp_path: Path) -> None:
    inner: list[Baseline] = []

    def meanwhile(*epoch: float) -> None:
        if not inner:
            assert epoch[0] in (0, 1)
            inner.append(trained(tmp_path))

    outer = trained(tmp_path, report=meanwhile)
    assert outer.digest == inner[0].digest == trained(tmp_path).digest
    assert [path.name[0] for path in tmp_path.iterdir()] != ["."]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("history", "metric", "expected"),
    [
        ((0.1, 0.2, 0.3, 0.4, 0.5), Metric("accuracy", tolerance=0.05), True),
        ((0.1, 0.9, 0.95, 0.95, 0.951), Metric("accuracy", tolerance=0.05), False),
        ((0.1, 0.9, 0.95, 0.97, 0.6), Metric("accuracy", tolerance=0.05), False),
        ((90.0, 50.0, 30.0, 20.0, 10.0), Metric("perplexity", Direction.MIN), True),
        ((90.0, 50.0, 30.0, 20.0, 25.0), Metric("perplexity", Direction.MIN), False),
        ((0.1, 0.9), Metric("accuracy"), False),
    ],
)
def test_a_training_that_was_cut_short_is_told(
    history: tuple[float, ...], metric: Metric, expected: bool
) -> None:
    assert rising(history, metric) is expected


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "wrapped.pth", "folder"])
def test_checkpoints_of_every_kind(tmp_path: Path, name: str) -> None:
    source = small_net(seed=5)
    state = source.state_dict()
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        save_file(state, path / "model.safetensors")
    elif name == "w.safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if "wrapped" in name else state, path)
    found = load_checkpoint(small_net(), str(path))
    assert found.digest == Baseline(source, "").digest
    assert found.history == ()


def broken(folder: Path) -> dict[str, Path]:
    """Checkpoints that are none, by what is wrong with them."""
    paths = {name: folder / name for name in ("gone.pt", "text.pt", "text.safetensors")}
    paths["cut.pt2"] = folder / "cut.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)), paths["cut.pt2"])
    paths["cut.pt2"].write_bytes(paths["cut.pt2"].read_bytes()[:-100])
    paths |= {name: folder / name for name in ("list.pt", "other.safetensors", "empty", "pruned")}
    paths["text.pt"].write_text("no weights")
    paths["text.safetensors"].write_text("no weights")
    torch.save([1, 2], paths["list.pt"])
    save_file(nn.Linear(2, 3).state_dict(), paths["other.safetensors"])
    paths["empty"].mkdir()
    paths["pruned"].mkdir()
    shutil.copy(paths["other.safetensors"], paths["pruned"] / "model.safetensors")
    (paths["pruned"] / "recipe.json").write_text("{}")
    return paths


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.pt", r"gone.pt does not exist; set baseline.checkpoint to a file"),
        ("text.pt", r"cannot be read as a state dict \(\w+\); save it with torch.save"),
        ("cut.pt2", r"cannot be read as an exported program \(\w+: .*; save it with torch.export"),
        ("text.safetensors", r"is not a safetensors file .*; restore it from a copy"),
        ("list.pt", r"holds no state dict; save model.state_dict"),
        ("other.safetensors", r"not of this network: missing \['0.bias'.*unexpected \['bias'"),
        ("empty", r"holds no weights of an unpruned network; name a safetensors file"),
        ("pruned", r"holds no weights of an unpruned network"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(AutopruneError, match=message):
        load_checkpoint(small_net(), str(broken(tmp_path)[name]))


def test_a_checkpoint_of_other_widths_says_which(tmp_path: Path) -> None:
    state = small_net().state_dict()
    state["7.bias"] = torch.zeros(9)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(AutopruneError, match=r"7.bias \(9,\) instead of \(4,\)"):
        load_checkpoint(small_net(), str(tmp_path / "w.safetensors"))
