"""Folders that hold a network without pickle: a recipe (JSON) and a safetensors state dict.

That of a network in int8 holds its program, too, ``model.onnx``: that is the network, and the
state dict is the one in fp32 that it was quantised from.

A trial's folder holds at most two of them: ``model`` is what it is worth, at its end or where it
pauses, and ``epoch-0003`` or so how far it has come since. Each is written beside its place and
renamed, so that what is there is whole.
"""

import json
import math
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import FP32
from autoprune.domain.trial import Speedup
from autoprune.evaluation import Snapshot
from autoprune.measurement.runtimes import Int8Network
from autoprune.orchestration.durable import replace_folder, sync
from autoprune.orchestration.onnx_files import ONNX_FILE, read_onnx
from autoprune.orchestration.untrusted import (
    MIB,
    UntrustedError,
    check_file,
    check_part,
    memory,
    read_json,
)
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.recover import FitState

RECIPE_FILE = "recipe.json"
WEIGHTS_FILE = "model.safetensors"
FIT_FILE = "fit.pt"
OUTPUTS_FILE = "outputs.safetensors"
MODEL_FOLDER = "model"
MAX_HEADER = 32 * MIB
"""Of the names and shapes in a file of weights: a tensor takes about a hundred bytes."""

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}

_RESTORE = "restore it from a copy, or name another"

_MALFORMED = (
    *(OSError, struct.error, ValueError, TypeError, LookupError, AttributeError),
    *(RecursionError, RuntimeError),
)


def load(
    path: str | Path,
    *,
    model: Callable[[], nn.Module] | nn.Module | None = None,
    allow: Sequence[str] = (),
) -> nn.Module:
    """Rebuild a pruned network from its artifact folder, in evaluation mode.

    Its outputs equal those of the network that was saved bit for bit, and it can be trained on;
    one that was quantised is an `Int8Network`, whose `origin` can.
    A ``_target_`` in the recipe is built only where it is one of autoprune's own models or
    stands in `allow`; otherwise hand over the unpruned network, or a factory of it, as `model`.
    No code from the folder is run, no link in it followed, and no weights are read that do not fit
    the network. Raises AutopruneError for a folder that is not an artifact.
    """
    folder = Path(path)
    if not (folder / RECIPE_FILE).is_file() and (folder / MODEL_FOLDER / RECIPE_FILE).is_file():
        folder = check_part(folder, MODEL_FOLDER)
    recipe, weights = read_recipe(folder), check_part(folder, WEIGHTS_FILE)
    network = rebuild_from(recipe, weights, model=model, allow=allow).eval()
    if recipe.spec.precision == FP32:
        return network
    return Int8Network(read_onnx(check_part(folder, ONNX_FILE)), network).eval()


def rebuild_from(
    recipe: Recipe,
    weights: Path,
    *,
    model: Callable[[], nn.Module] | nn.Module | None = None,
    allow: Sequence[str] = (),
) -> nn.Module:
    """`rebuild`, which reads a file of weights once it is known that they fit the network."""
    sketch = sketch_weights(weights)
    return rebuild(recipe, sketch, read=lambda: read_weights(weights), model=model, allow=allow)


def save_snapshot(trial_folder: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot into a trial's folder, whole or not at all; what it outdates is dropped.

    It becomes the trial's ``model`` where it is done, or has outputs, by which whoever rebuilds it
    can tell that it is the same; otherwise it is there to go on from.
    """
    stands = snapshot.done or snapshot.outputs
    name = MODEL_FOLDER if stands else f"epoch-{snapshot.epoch:04d}"
    place = trial_folder / name
    # one of its own: a worker that was given up, since nobody could reach it, may still be at work
    draft = trial_folder / f".draft-{name}-{secrets.token_hex(4)}"
    draft.mkdir(parents=True)
    try:
        _write_snapshot(draft, snapshot)
        if snapshot.done:  # the journal will say so for good; an epoch could be trained again
            for file in draft.iterdir():
                sync(file)
        replace_folder(place, draft)
        if snapshot.done:
            sync(trial_folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    for older in trial_folder.glob("epoch-*"):
        if older != place:
            shutil.rmtree(older, ignore_errors=True)
    return place


def discard_drafts(trial_folder: Path) -> None:
    """Drop what workers of a trial were writing when they were killed."""
    for draft in trial_folder.glob(".draft-*"):
        shutil.rmtree(draft, ignore_errors=True)


def _write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    facts = {
        "recipe": snapshot.recipe.to_json(),
        "metrics": dict(snapshot.metrics),
        "speedup": asdict(snapshot.speedup),
        "seconds": dict(snapshot.seconds),
        "epoch": snapshot.epoch,
        "done": snapshot.done,
    }
    (folder / RECIPE_FILE).write_text(json.dumps(facts, indent=1))
    write_weights(folder / WEIGHTS_FILE, snapshot.state_dict)
    if snapshot.fit is not None:
        torch.save(snapshot.fit.to_plain(), folder / FIT_FILE)
    if snapshot.outputs:
        write_weights(folder / OUTPUTS_FILE, dict(_numbered(snapshot.outputs)))
    if snapshot.program is not None:
        (folder / ONNX_FILE).write_bytes(snapshot.program)


def snapshots(trial_folder: Path) -> list[Path]:
    """The whole snapshots of a trial: its ``model`` first, then where it has come to since."""
    return [*trial_folder.glob(MODEL_FOLDER), *sorted(trial_folder.glob("epoch-*"))]


def read_snapshot(trial_folder: Path) -> Snapshot | None:
    """The furthest snapshot of a trial; None where there is none that can be read."""
    found: list[Snapshot] = []
    for folder in snapshots(trial_folder):
        # whatever a damaged file raises: it costs its epochs, not the trial
        with suppress(Exception):
            found.append(_read_snapshot(folder))
    return max(found, key=lambda snapshot: (snapshot.done, snapshot.epoch), default=None)


def _read_snapshot(folder: Path) -> Snapshot:
    facts = _read_facts(folder)
    fit_file = folder / FIT_FILE
    fit = None
    if fit_file.is_file():
        # on the CPU, wherever it trained: the optimizer takes it to where its weights are
        fit = FitState.from_plain(torch.load(fit_file, map_location="cpu", weights_only=True))
    recipe, file = Recipe.from_json(facts["recipe"]), folder / ONNX_FILE
    int8 = recipe.spec.precision != FP32 and file.is_file()
    return Snapshot(
        recipe,
        read_weights(folder / WEIGHTS_FILE),
        facts["metrics"],
        Speedup.from_json(facts["speedup"]),
        seconds=facts["seconds"],
        epoch=facts["epoch"],
        done=facts["done"],
        fit=fit,
        program=read_onnx(file) if int8 else None,
    )


def write_weights(path: Path, state_dict: Any) -> None:
    """Write a state dict as safetensors; tensors that share memory are written out each."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in state_dict.items()}, path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file. Raises AutopruneError where it is missing or damaged."""
    sketch_weights(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _no_safetensors(path, error) from error


def sketch_weights(path: Path) -> dict[str, torch.Tensor]:
    """What a safetensors file holds, on the meta device: only its header is read.

    Raises AutopruneError like `read_weights`, and for a file that this machine could not hold.
    """
    try:
        size = check_file(path, most=memory())
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, size):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {str(name): _sketched(facts) for name, facts in header.items()}
    except FileNotFoundError:
        raise AutopruneError(f"no weights at {path}; name an artifact folder or a file") from None
    except UntrustedError:
        raise
    except _MALFORMED as error:
        raise _no_safetensors(path, error) from error


def _sketched(facts: dict[str, Any]) -> torch.Tensor:
    dtype, shape, (begin, end) = _DTYPES[facts["dtype"]], facts["shape"], facts["data_offsets"]
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError("a tensor's shape is not that of its data")
    return torch.empty(shape, dtype=dtype, device="meta")


def _no_safetensors(path: Path, error: Exception) -> AutopruneError:
    return AutopruneError(f"{path} is not a safetensors file ({error}); {_RESTORE}")


def read_recipe(folder: Path) -> Recipe:
    """The recipe in an artifact folder; raises AutopruneError where there is none."""
    return Recipe.from_json(_read_facts(folder)["recipe"])


def read_outputs(model_folder: Path) -> tuple[torch.Tensor, ...]:
    """What the saved network made of the task's example input, tensor by tensor."""
    found = read_weights(check_part(model_folder, OUTPUTS_FILE))
    return tuple(found[name] for name in sorted(found))


def _numbered(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((f"{index:04d}", tensor) for index, tensor in enumerate(tensors))


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE_FILE
    try:
        facts = read_json(path)
    except OSError:
        raise AutopruneError(
            f"no recipe at {path}; name a folder that autoprune wrote, such as "
            "outputs/<sweep>/trials/0007/model"
        ) from None
    except UntrustedError:
        raise
    except ValueError as error:
        raise AutopruneError(f"{path} is not valid JSON ({error}); {_RESTORE}") from None
    if not isinstance(facts, dict) or "recipe" not in facts:
        raise AutopruneError(f"{path} holds no recipe; {_RESTORE}")
    return facts
