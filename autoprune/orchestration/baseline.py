"""The unpruned network: trained once per digest and kept, or taken from the user's checkpoint."""

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Metric
from autoprune.domain.protocols import StepGuard
from autoprune.evaluation import portable
from autoprune.orchestration.artifacts import (
    RECIPE_FILE,
    WEIGHTS_FILE,
    read_weights,
    sketch_weights,
    write_weights,
)
from autoprune.orchestration.program_files import MLFLOW_PROGRAM, SUFFIX, load_program
from autoprune.orchestration.tracking.connection import check_existing, complaint
from autoprune.orchestration.tracking.fetching import fetch
from autoprune.orchestration.untrusted import (
    UntrustedError,
    check_archive,
    check_file,
    check_part,
    memory,
    read_json,
)
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.recover import FitPlan, fit
from autoprune.tasks.protocol import Task

HISTORY_FILE = "history.json"
ENOUGH_EPOCHS = 5
"""A training of fewer epochs does not tell whether it had converged."""

EpochReport = Callable[[int, float], None]
"""Hears of an epoch of the baseline's training, and of its main metric on val."""

MODEL_URI_SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/")


@dataclass(frozen=True)
class Baseline:
    """A trained network on the CPU, where it came from, and how it trained, by epoch.

    `history` is its main metric on val and `losses` the mean loss on train: empty where the
    network was not trained here, or before that was kept.
    """

    model: nn.Module
    source: str
    history: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits of the weights: equal networks have equal digests."""
        return digest_of(self.model)


def digest_of(model: nn.Module) -> str:
    """Twelve hex digits of a network's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:12]


def train_baseline(
    model: nn.Module,
    task: Task,
    plan: FitPlan,
    *,
    seed: int,
    step_guard: StepGuard = nullcontext,
    report: EpochReport | None = None,
) -> Baseline:
    """`model` trained in place by `plan`, each step inside `step_guard()`.

    `report` hears of every epoch and its main metric on val.
    """
    values: list[float] = []
    losses: list[float] = []
    for epoch in fit(model, task, plan, seed=seed, step_guard=step_guard):
        judged = evaluate(model, task, "val", step_guard=step_guard)
        values.append(judged[task.metrics[0].name])
        losses.append(epoch.loss)
        if report is not None:
            report(epoch.number, values[-1])
    return Baseline(portable(model), "trained now", tuple(values), tuple(losses))


@dataclass(frozen=True)
class BaselineCache:
    """Where trained networks are kept, in a folder each named by the digest of an `identity`.

    An identity is plain JSON that tells model, data and training apart.
    """

    root: Path

    @classmethod
    def below(cls, output: Path) -> Self:
        """The one of an output folder."""
        return cls(output / "baselines")

    def holds(self, identity: Mapping[str, Any]) -> bool:
        """Whether there is a network for an identity."""
        return (self.folder(identity) / WEIGHTS_FILE).is_file()

    def find(self, identity: Mapping[str, Any], model: nn.Module) -> Baseline | None:
        """What was kept for an identity, loaded into `model`; None where there is nothing."""
        if not self.holds(identity):
            return None
        folder = self.folder(identity)
        load_weights(model, folder / WEIGHTS_FILE)
        facts = read_json(folder / HISTORY_FILE)
        history, losses = tuple(facts["history"]), tuple(facts.get("losses", ()))
        return Baseline(portable(model), f"trained before ({folder})", history, losses)

    def keep(
        self,
        identity: Mapping[str, Any],
        baseline: Baseline,
        *,
        beside: Mapping[str, nn.Module] | None = None,
    ) -> Baseline:
        """Write a trained network, whole or not at all; the same one, with where it is.

        `beside` are more weights of it that go into its folder, by the names of their files.
        """
        folder = self.folder(identity)
        facts = {
            "identity": dict(identity),
            "history": baseline.history,
            "losses": baseline.losses,
        }
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".draft-") as place:
            draft = Path(place) / folder.name
            draft.mkdir()
            for name, model in {WEIGHTS_FILE: baseline.model, **(beside or {})}.items():
                write_weights(draft / name, model.state_dict())
            (draft / HISTORY_FILE).write_text(json.dumps(facts, indent=1, default=str))
            try:
                draft.rename(folder)
            except OSError:
                # another sweep trained the same network meanwhile: what it kept is as good
                if not self.holds(identity):
                    raise
        return replace(baseline, source=f"{baseline.source}, kept in {folder}")

    def folder(self, identity: Mapping[str, Any]) -> Path:
        """Where the network of an identity is kept, or would be."""
        return self.root / _digest(identity)


def _digest(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def rising(history: tuple[float, ...], metric: Metric) -> bool:
    """Whether a training was cut short: its last fifth still improved on all before.

    An improvement counts from a tenth of what would make the network useless (`Metric.edge`);
    a training of fewer than `ENOUGH_EPOCHS` says nothing.
    """
    if len(history) < ENOUGH_EPOCHS:
        return False
    tail = max(1, len(history) // 5)
    values = [metric.direction.sign * value for value in history]
    margin = 0.1 * abs(history[-1] - metric.edge(history[-1]))
    return max(values[-tail:]) - max(values[:-tail]) > margin


def late_fall(losses: tuple[float, ...]) -> float | None:
    """Which share of the fall of a training's loss its last fifth made.

    None for a training of fewer than `ENOUGH_EPOCHS`, and for one whose loss did not fall.
    """
    if len(losses) < ENOUGH_EPOCHS or losses[-1] >= losses[0]:
        return None
    tail = max(1, len(losses) // 5)
    return (losses[-1 - tail] - losses[-1]) / (losses[0] - losses[-1])


def load_checkpoint(model: nn.Module, checkpoint: str, *, store: str | None = None) -> Baseline:
    """The network with the user's weights.

    `checkpoint` is a safetensors file, a state dict (``.pt``, ``.pth``, read without running
    code), a folder that holds ``model.safetensors``, or an MLflow model URI of the tracking
    store `store` (None: the one that MLflow's environment names). Raises AutopruneError where it is
    missing, unreadable, or of another network.
    """
    with files_of(checkpoint, store) as path:
        load_weights(model, _weights_in(path) if path.is_dir() else path)
    return Baseline(portable(model), checkpoint)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file of weights into `model`; the message of a misfit says what differs.

    Of a file that does not fit no weights are read, except of an exported program.
    """
    if not path.is_file():
        raise AutopruneError(f"checkpoint {path} does not exist; set baseline.checkpoint to a file")
    if path.suffix == SUFFIX:
        state = dict(load_program(path).state_dict)
        _check_weights(model, state, path)
    elif path.suffix == ".safetensors":
        _check_weights(model, sketch_weights(path), path)
        state = read_weights(path)
    else:
        _check_weights(model, _torch_state(path, sketch=True), path)
        state = _torch_state(path)
    model.load_state_dict(state)


def _check_weights(model: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if own[k].shape != state[k].shape
    ]
    if missing or extra or shapes:
        raise AutopruneError(
            f"checkpoint {path} is not of this network: missing {missing[:3]}, unexpected "
            f"{extra[:3]}, shapes {sorted(shapes)[:3]}; give the model the arguments that the "
            "checkpoint was trained with"
        )


def _torch_state(path: Path, *, sketch: bool = False) -> dict[str, torch.Tensor]:
    """The state dict in a file of `torch.save`; a sketch has no weights, which are not read."""
    place = "meta" if sketch else "cpu"
    try:
        check_file(path, most=memory())
        packed = zipfile.is_zipfile(path)  # files of torch before 1.6 are not
        if packed:
            check_archive(path)
        # mapped: what else a file holds, such as an optimizer, is not read
        state = torch.load(path, map_location=place, weights_only=True, mmap=packed)
    except UntrustedError:
        raise
    except Exception as error:  # torch raises what the zip, the pickle or the file gave it
        raise AutopruneError(
            f"checkpoint {path} cannot be read as a state dict ({type(error).__name__}); save it "
            "with torch.save(model.state_dict(), path) or as safetensors"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise AutopruneError(f"checkpoint {path} holds no state dict; save model.state_dict()")
    return state


def _weights_in(folder: Path) -> Path:
    for name in (WEIGHTS_FILE, MLFLOW_PROGRAM, f"model/{WEIGHTS_FILE}"):
        if (folder / name).is_file():
            if (folder / name).with_name(RECIPE_FILE).is_file():
                break
            return check_part(folder, name)
    raise AutopruneError(
        f"{folder} holds no weights of an unpruned network; name a safetensors file or a state dict"
    )


def files_of(reference: str, store: str | None) -> AbstractContextManager[Path]:
    """The file or the folder that a path or an MLflow model URI names."""
    if reference.startswith(MODEL_URI_SCHEMES):
        return downloaded(reference, store)
    return nullcontext(Path(reference))


@contextmanager
def downloaded(uri: str, store: str | None) -> Iterator[Path]:
    """A folder with a model's files by its MLflow URI, from the tracking store `store`.

    None is the store that MLflow's environment names. Raises AutopruneError where the files
    cannot be had.
    """
    if store is not None:
        check_existing(store)
    # a folder of its own: in a local store MLflow would write beside the model
    with tempfile.TemporaryDirectory() as place:
        try:
            found = fetch(uri, store, Path(place))
        except (AutopruneError, OSError) as error:
            raise AutopruneError(
                f"checkpoint {uri} cannot be fetched ({complaint(error)}); set tracking.uri to "
                "the store that has it"
            ) from error
        yield found
