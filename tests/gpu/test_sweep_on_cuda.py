"""A whole sweep with its trials on a CUDA device: training, judging, measuring, going on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoprune.domain.trial import Measurement, Stage, Trial
from autoprune.evaluation import run_trial
from autoprune.measurement.runtimes import TorchRuntime
from autoprune.orchestration.artifacts import read_snapshot
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.request import BaselineRequest, SweepRequest
from autoprune.orchestration.session import start
from autoprune.orchestration.storage import InFolder
from autoprune.orchestration.work import work
from autoprune.pruning.criteria import criterion_of
from autoprune.pruning.distill import Distillation
from autoprune.pruning.healing import Recovery
from autoprune.pruning.reconstruct import Reconstruction
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.sparsity.plan import Sparsity
from tests.tiny import request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_cuda(folder: Path, amp: str = "off") -> SweepRequest:
    asked = request(folder, recoveries={"finetune": Recovery(FitPlan(epochs=2, amp=amp))})
    return replace(
        asked,
        device="cuda",
        meter=replace(asked.meter, runtime=TorchRuntime(device="cuda")),
        baseline=BaselineRequest(plan=FitPlan(epochs=2)),
        criteria={"taylor": criterion_of("taylor")},
    )


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_sweep_trains_and_measures_there(tmp_path: Path, amp: str) -> None:
    view = start(prepare(on_cuda(tmp_path, amp))).view
    assert view.counts["finished"] == len(view.observations) == 4
    for observation in view.observations:
        assert isinstance(observation.outcome, Measurement)
        assert observation.outcome.speedup is not None
        assert torch.cuda.get_device_name() in observation.outcome.speedup.device


def test_least_squares_and_a_teacher_work_there(tmp_path: Path) -> None:
    hints = Distillation(hints=0.5, hint_layers=("0", "5"))
    recovery = Recovery(FitPlan(epochs=2), reconstruction=Reconstruction(), distillation=hints)
    asked = replace(on_cuda(tmp_path), recoveries={recovery.name: recovery})
    view = start(prepare(asked)).view
    assert view.counts["finished"] == len(view.observations) == 4


@pytest.mark.parametrize(
    "plan",
    [Sparsity(epochs=2, overlap=True), Sparsity(2, "slimming"), Sparsity(2, "low_rank")],
    ids=["overlap", "slimming", "low rank"],
)
def test_sparse_training_works_there(tmp_path: Path, plan: Sparsity) -> None:
    recovery = Recovery(FitPlan(epochs=1), sparsity=replace(plan, budget="macs", strength=0.05))
    asked = replace(on_cuda(tmp_path), recoveries={recovery.name: recovery})
    view = start(prepare(asked)).view
    assert view.counts["finished"] == len(view.observations) == 4


def test_a_snapshot_of_a_gpu_is_gone_on_with_on_a_cpu(tmp_path: Path) -> None:
    prepared = prepare(on_cuda(tmp_path))
    trial = Trial(0, prepared.plan.space.uniform(0.5), 1)
    trial = replace(trial, spec=replace(trial.spec, criterion="taylor"))
    steps = work(trial, prepared.context, InFolder(tmp_path))
    while next(steps).stage is not Stage.RECOVER:
        pass
    snapshot = read_snapshot(trial_folder(tmp_path, 0))
    assert snapshot is not None
    resumed = run_trial(trial, replace(prepared.context, device="cpu"), resume=snapshot)
    assert isinstance(resumed.outcome, Measurement)
