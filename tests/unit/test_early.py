"""The baseline early in its training: kept along the way, or trained again where it was not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.baseline import BaselineCache
from autoprune.orchestration.early import load_early
from autoprune.orchestration.preparation import load_baseline
from autoprune.orchestration.request import BaselineRequest, SweepRequest
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan, fit
from autoprune.pruning.schedule import Schedule
from tests.pruning_tasks import Blobs, small_net
from tests.tiny import request

PLAN, IDENTITY = FitPlan(epochs=4), {"network": 1}
RECOVERIES = {"rewind": Recovery(FitPlan(epochs=1), schedule=Schedule(rewind=True))}


def asked(folder: Path, epoch: int | None) -> SweepRequest:
    baseline = BaselineRequest(plan=PLAN, identity=IDENTITY, keep_epoch=epoch)
    return request(folder, baseline=baseline, recoveries={} if epoch is None else RECOVERIES)


def files(folder: Path) -> Sequence[str]:
    kept = BaselineCache(folder / "baselines").folder(IDENTITY)
    return sorted(path.name for path in kept.iterdir())


def same(one: nn.Module | None, other: nn.Module | None) -> bool:
    assert one is not None
    assert other is not None
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("epoch", [0, 2])
def test_early_weights_are_kept_beside_the_trained_ones(tmp_path: Path, epoch: int) -> None:
    wanted, heard = asked(tmp_path, epoch), []
    baseline = load_baseline(wanted, report=lambda number, _: heard.append(number))
    assert heard == [1, 2, 3, 4]
    assert files(tmp_path) == [f"epoch-000{epoch}.safetensors", "history.json", "model.safetensors"]
    early = load_early(wanted)
    network = small_net()
    for _, _ in zip(range(epoch), fit(network, Blobs(), PLAN, seed=0), strict=False):
        pass
    assert same(early, network)
    assert not same(early, baseline.model)
    assert early is not None
    assert not early.training
    assert same(load_baseline(wanted).model, baseline.model)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_baseline_of_before_is_trained_again_that_far(tmp_path: Path, epoch: int) -> None:
    """The weights are those that it had then: bit for bit what is kept along the way."""
    before = load_baseline(asked(tmp_path / "before", None))
    assert files(tmp_path / "before") == ["history.json", "model.safetensors"]
    wanted = asked(tmp_path / "before", epoch)
    found = load_baseline(wanted)
    assert found.source.startswith("trained before")
    assert found.digest == before.digest
    made = load_early(wanted)
    assert f"epoch-000{epoch}.safetensors" in files(tmp_path / "before")
    assert len(files(tmp_path / "before")) == 3
    along = asked(tmp_path / "along", epoch)
    load_baseline(along)
    assert same(made, load_early(along))
    assert same(made, load_early(wanted)), "and are found the next time"


def test_early_weights_may_be_given(tmp_path: Path) -> None:
    given = small_net(seed=5)
    wanted = request(tmp_path, baseline=BaselineRequest(early=given), recoveries=RECOVERIES)
    found = load_early(wanted)
    assert same(found, given)
    assert found is not given
    strange = replace(wanted, baseline=BaselineRequest(early=nn.Linear(2, 3)))
    with pytest.raises(AutopruneError, match=r"early is not of the network .*: \['0.b"):
        load_early(strange)
    wide = nn.Sequential(*small_net(), nn.Identity())
    wide[7] = nn.Linear(6, 5)
    with pytest.raises(AutopruneError, match=r"\['7.*of another shape; give that network as"):
        load_early(replace(wanted, baseline=BaselineRequest(early=wide)))


def test_nobody_rewinds_and_nothing_is_trained_again(tmp_path: Path) -> None:
    load_baseline(asked(tmp_path, None))
    plain = replace(asked(tmp_path, 1), recoveries={"none": Recovery(FitPlan(epochs=0))})
    assert load_early(plain) is None
    assert files(tmp_path) == ["history.json", "model.safetensors"]
