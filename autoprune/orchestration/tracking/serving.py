"""A pruned network as a model in MLflow, served where autoprune is not installed.

The model is the exported program (``pt2``), which needs torch and mlflow only and holds no
pickle; that of a network in int8 is its program of ONNX, which needs onnxruntime in torch's place
and answers with its outputs by name. It is an MLflow 3 logged model: an output of the trial's run,
so that the run's page and the experiment's *Models* tab show it together with its metrics.
"""

import copy
import importlib
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.onnx
import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.programs import runnable
from autoprune.measurement.runtimes import Int8Network
from autoprune.measurement.runtimes.onnx_programs import CPU
from autoprune.orchestration.onnx_files import ONNX_FILE, read_onnx
from autoprune.orchestration.program_files import MLFLOW_PROGRAM, load_program
from autoprune.orchestration.tracking.connection import complaint
from autoprune.orchestration.tracking.entries import now_ms
from autoprune.orchestration.tracking.fetching import fetch
from autoprune.orchestration.untrusted import check_part
from autoprune.tasks.protocol import Inputs, forward, tensors_of

NAME = "model"
EXPORT_BATCH = 2
"""torch.export takes a dimension of size 1 for a constant, so the example has two."""
PROOF_BATCHES = (1, 3)
TOLERANCE = 1e-4


class ServingError(AutopruneError):
    """A network that MLflow's pyfunc cannot serve."""


class OneTensor(nn.Module):
    """A network as a function of one tensor to one tensor, which is what pyfunc serves.

    `example` has the shape in which the network takes inputs: a tensor, or a tuple or dict of
    one. Of an output that is a record with ``logits`` (as in transformers) those are taken.
    """

    def __init__(self, network: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.network, self._example = network, example

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, ...] to [B, ...]."""
        inputs: Inputs = x
        if isinstance(self._example, dict):
            inputs = dict.fromkeys(self._example, x)
        elif isinstance(self._example, tuple):
            inputs = (x,)
        output = forward(self.network, inputs)
        found = getattr(output, "logits", output)
        if not isinstance(found, torch.Tensor):
            raise ServingError(
                f"the network returns a {type(output).__name__}; "
                "MLflow serves networks that return one tensor"
            )
        return found


def log_model(
    client: MlflowClient,
    run_id: str,
    network: nn.Module,
    *,
    example: Inputs,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Log `network` as the served model of a trial's run; returns its model id.

    The network is exported on the CPU in evaluation mode, with the batch size free; the caller's
    one stays as it is. Before anything is uploaded the saved model is loaded as pyfunc and must
    predict as the network does. A run that has a ready model keeps it. Raises ServingError for a
    network that takes or returns more than one tensor, or that cannot be exported.
    """
    ready = ready_model(client, run_id)
    if ready is not None:
        return ready
    served = OneTensor(copy.deepcopy(network).cpu().eval(), example)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        try:
            _save(served, path, _batch(example, EXPORT_BATCH))
            _prove(served, path, example)
        except ServingError:
            raise
        except Exception as error:  # whatever torch.export cannot follow
            raise ServingError(
                f"the network cannot be exported for serving: {complaint(error)}; "
                "make its forward traceable by torch.export with a free batch size"
            ) from error
        return _upload(client, run_id, path, dict(tags or {}))


def _upload(client: MlflowClient, run_id: str, path: Path, tags: dict[str, str]) -> str:
    """Make the saved model an output of the run; returns its id.

    ``mlflow.pytorch.log_model`` would do the same through the fluent interface, on whatever
    tracking URI the process has set.
    """
    run = client.get_run(run_id)
    model = client.create_logged_model(
        run.info.experiment_id,
        name=NAME,
        source_run_id=run_id,
        tags=tags,
        params=run.data.params,
        model_type="pruned network",
    )
    record = Model.load(str(path))
    record.artifact_path, record.run_id = model.artifact_location, run_id
    record.model_id = record.model_uuid = model.model_id
    record.save(str(path / "MLmodel"))
    client.log_model_artifacts(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    now = now_ms()
    metrics = [
        Metric(name, value, now, 0, model_id=model.model_id, run_id=run_id)
        for name, value in run.data.metrics.items()
        if "/" not in name
    ]
    client.log_batch(run_id, metrics)
    return str(model.model_id)


def prove_ready(
    client: MlflowClient, model_id: str, network: nn.Module, *, example: Inputs
) -> None:
    """Fetch a logged model and compare what its program predicts with the network's own outputs.

    Nothing else of what the store sends is used, and none of it run as code. Raises ServingError
    where they differ.
    """
    served = OneTensor(copy.deepcopy(network).cpu().eval(), example)
    with tempfile.TemporaryDirectory() as folder:
        path = fetch(f"models:/{model_id}", client.tracking_uri, Path(folder))
        program = _kept(path, network)

        def predict(inputs: NDArray[Any]) -> NDArray[Any]:
            with torch.no_grad():
                found: NDArray[Any] = program(torch.from_numpy(inputs)).numpy()
            return found

        _compare(served, predict, example)


def _kept(path: Path, network: nn.Module) -> nn.Module:
    """The program in a logged model's folder, as a network."""
    if isinstance(network, Int8Network):
        return OneOutput(Int8Network(read_onnx(check_part(path, ONNX_FILE)))).eval()
    return runnable(load_program(check_part(path, MLFLOW_PROGRAM))).cpu().eval()


class OneOutput(nn.Module):
    """The one output of a program that gives a tuple of them."""

    def __init__(self, program: Int8Network) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, ...] to [B, ...]."""
        (output,) = self.program(x)
        found: torch.Tensor = output
        return found


def ready_model(client: MlflowClient, run_id: str) -> str | None:
    """The id of the run's model, None where it has none that is whole."""
    run = client.get_run(run_id)
    found = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    whole = [m.model_id for m in found if m.status == LoggedModelStatus.READY]
    return str(whole[0]) if whole else None


def _tensor(example: Inputs) -> torch.Tensor:
    tensors = tensors_of(example)
    if len(tensors) != 1:
        raise ServingError(
            f"the network takes {len(tensors)} tensors; MLflow serves networks that take one"
        )
    return tensors[0].detach().cpu()


def _batch(example: Inputs, size: int) -> NDArray[Any]:
    """`size` copies of the example's first row: [size, ...]."""
    row = _tensor(example)[:1]
    return row.expand(size, *row.shape[1:]).contiguous().numpy()


def _signature(served: nn.Module, inputs: NDArray[Any]) -> ModelSignature:
    with torch.no_grad():
        outputs = served(torch.from_numpy(inputs)).numpy()
    free = [TensorSpec(a.dtype, (-1, *a.shape[1:])) for a in (inputs, outputs)]
    return ModelSignature(inputs=Schema([free[0]]), outputs=Schema([free[1]]))


def _save(served: OneTensor, path: Path, inputs: NDArray[Any]) -> None:
    """Write the model folder. Requirements are given, or MLflow takes 10 s to infer them."""
    if isinstance(served.network, Int8Network):
        _save_onnx(served, served.network, path, inputs)
        return
    mlflow.pytorch.save_model(
        served,
        path=str(path),
        signature=_signature(served, inputs),
        input_example=inputs,
        pip_requirements=requirements(),
        serialization_format="pt2",
    )


def _save_onnx(served: OneTensor, network: Int8Network, path: Path, inputs: NDArray[Any]) -> None:
    """The same of a network in int8."""
    onnx = importlib.import_module("onnx")
    program = onnx.load_model_from_string(network.program)
    if len(program.graph.output) != 1:
        raise ServingError(
            f"the network returns {len(program.graph.output)} tensors; in int8 MLflow serves "
            "networks that return one tensor"
        )
    mlflow.onnx.save_model(
        program,
        path=str(path),
        signature=_signature(served, inputs),
        input_example=inputs,
        pip_requirements=[*requirements("mlflow", "onnx", "numpy"), f"onnxruntime=={_runtime()}"],
        onnx_execution_providers=[CPU],
        save_as_external_data=False,
    )


def _runtime() -> str:
    """The version of ONNX Runtime, whose packages for GPUs go by other names."""
    return str(importlib.import_module("onnxruntime").__version__)


def requirements(*packages: str) -> list[str]:
    """What a server of the model has to install, pinned to what is installed here.

    Local parts of versions (torch's ``+cpu``) are left out: package indexes do not have them.
    """
    packages = packages or ("mlflow", "torch", "numpy")
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in packages]


def _prove(served: nn.Module, path: Path, example: Inputs) -> None:
    """Predict with the saved model, as a server would, on batches of other sizes."""
    loaded = mlflow.pyfunc.load_model(str(path), model_config={"device": "cpu"})
    _compare(served, loaded.predict, example)


def _compare(served: nn.Module, predict: Callable[[NDArray[Any]], Any], example: Inputs) -> None:
    for size in PROOF_BATCHES:
        inputs = _batch(example, size)
        with torch.no_grad():
            expected = served(torch.from_numpy(inputs)).numpy()
        answer = predict(inputs)
        found = np.asarray(next(iter(answer.values())) if isinstance(answer, dict) else answer)
        if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            worst = float(np.abs(found - expected).max())
            raise ServingError(
                f"the exported network differs from the network by {worst:.2g} on a batch of "
                f"{size}; its forward must not depend on the batch size or on chance"
            )
