"""Networks written for other programs: with the batch free, and held against PyTorch."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.quantise import quantise
from autoprune.measurement.runtimes.protocol import TOLERANCES
from autoprune.orchestration.exports import (
    ExportError,
    check_formats,
    export_network,
)
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.onnx_files import ONNX_FILE
from autoprune.orchestration.promotion.promote import FinishedSweep, exported
from tests.pruning_tasks import Blobs, small_net
from tests.tiny import request

TASK = Blobs()


def test_a_program_takes_batches_of_any_size_and_computes_the_same(tmp_path: Path) -> None:
    network = small_net().train()
    found = export_network(network, TASK, tmp_path)
    assert network.training
    assert [file.name for file in tmp_path.iterdir()] == [ONNX_FILE]
    assert found.path == tmp_path / ONNX_FILE
    assert found.difference <= TOLERANCES["fp32"]
    assert f"{ONNX_FILE} (fp32, batch free; outputs differ from PyTorch's in fp32 by" in str(found)
    session = onnxruntime.InferenceSession(found.path)
    (taken,) = session.get_inputs()
    assert taken.shape[0] == "batch"
    with torch.no_grad():
        for size in (1, 2, 7):
            (outputs,) = session.run(None, {taken.name: TASK.x[:size].numpy()})
            expected = network.eval()(TASK.x[:size])
            np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_of_a_network_in_int8_it_is_told_how_far_it_is_off(tmp_path: Path) -> None:
    int8 = quantise(small_net(), TASK, batches=2, seed=0).eval()
    (tmp_path / ONNX_FILE).write_bytes(int8.program)
    found = export_network(int8, TASK, tmp_path)
    assert TOLERANCES["fp32"] < found.difference < 1
    assert found.precision == "int8"
    assert found.path.read_bytes() == int8.program


def test_a_program_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    class TwoFaced(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1.0 if torch.compiler.is_exporting() else x

    with pytest.raises(ExportError, match=r"differs from the network by .*; at most 0\.001 is all"):
        export_network(nn.Sequential(TwoFaced(), *small_net()), TASK, tmp_path)
    assert not list(tmp_path.iterdir())


def test_formats_that_there_are_not() -> None:
    check_formats("tracking.export", ["onnx"])
    with pytest.raises(AutopruneError, match=r"tracking\.export: format 'onxx' is not known; did"):
        check_formats("tracking.export", ["onxx"])


def test_the_front_of_a_sweep_is_exported_where_that_is_asked(tmp_path: Path) -> None:
    launched = launch(request(tmp_path), Tracking(optuna=False, export=("onnx",)))
    folder, view = launched.result.folder, launched.result.view
    numbers = [member.trial.number for member in view.front.members]
    assert [line.split(":")[0] for line in launched.exported] == [f"trial {n}" for n in numbers]
    assert sorted(folder.glob(f"trials/*/model/{ONNX_FILE}")) == sorted(
        folder / "trials" / f"{number:04d}" / "model" / ONNX_FILE for number in numbers
    )
    assert not launch(request(tmp_path), Tracking(optuna=False)).exported


def test_a_network_that_cannot_be_exported_costs_the_sweep_nothing(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 4) if torch.compiler.is_exporting() else x

    model = nn.Sequential(*small_net(), Fixed())
    launched = launch(request(tmp_path, model=model), Tracking(optuna=False, export=("onnx",)))
    assert not launched.exported
    told = [line for line in launched.warnings if "is not exported: the network cannot be" in line]
    assert len(told) == len(launched.result.view.front.members)


def test_a_member_is_exported_after_the_sweep(tmp_path: Path) -> None:
    asked = request(tmp_path)
    result = launch(asked, Tracking(optuna=False)).result
    member = result.view.front.members[0]
    found = exported(FinishedSweep(result.folder, result.view, asked, None), member)
    assert found.path.is_file()
    assert f"trials/{member.trial.number:04d}/model" in str(found)
