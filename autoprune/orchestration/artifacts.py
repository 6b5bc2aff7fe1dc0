"""Folders that hold a network without pickle: a recipe (JSON) and a safetensors state dict.

A trial's folder holds at most two of them: ``model`` is what it is worth, at its end or where it
pauses, and ``epoch-0003`` or so how far it has come since. Each is written beside its place and
renamed, so that what is there is whole.
"""

import errno
import json
import secrets
import shutil
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
from autoprune.domain.trial import Speedup
from autoprune.evaluation import Snapshot
from autoprune.orchestration.durable import sync
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.recover import FitState

RECIPE_FILE = "recipe.json"
WEIGHTS_FILE = "model.safetensors"
FIT_FILE = "fit.pt"
OUTPUTS_FILE = "outputs.safetensors"
MODEL_FOLDER = "model"
MAX_RECIPE_BYTES = 64 * 2**20
TRIES = 10


def load(
    path: str | Path,
    *,
    model: Callable[[], nn.Module] | nn.Module | None = None,
    allow: Sequence[str] = (),
) -> nn.Module:
    """Rebuild a pruned network from its artifact folder, in evaluation mode.

    Its outputs equal those of the network that was saved bit for bit, and it can be trained on.
    A ``_target_`` in the recipe is built only where it is one of autoprune's own models or
    stands in `allow`; otherwise hand over the unpruned network, or a factory of it, as `model`.
    No code from the folder is run. Raises AutopruneError for a folder that is not an artifact.
    """
    folder = Path(path)
    if not (folder / RECIPE_FILE).is_file() and (folder / MODEL_FOLDER / RECIPE_FILE).is_file():
        folder = folder / MODEL_FOLDER
    recipe, weights = read_recipe(folder), read_weights(folder / WEIGHTS_FILE)
    return rebuild(recipe, weights, model=model, allow=allow).eval()


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
        _put(draft, place)
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


def _put(draft: Path, place: Path) -> None:
    """Rename a folder to where another one may be, or come to be meanwhile."""
    for last in (False,) * (TRIES - 1) + (True,):
        shutil.rmtree(place, ignore_errors=True)
        try:
            draft.rename(place)
        except OSError as error:
            if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


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
    return Snapshot(
        Recipe.from_json(facts["recipe"]),
        read_weights(folder / WEIGHTS_FILE),
        facts["metrics"],
        Speedup.from_json(facts["speedup"]),
        seconds=facts["seconds"],
        epoch=facts["epoch"],
        done=facts["done"],
        fit=fit,
    )


def write_weights(path: Path, state_dict: Any) -> None:
    """Write a state dict as safetensors; tensors that share memory are written out each."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in state_dict.items()}, path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; raises AutopruneError where it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise AutopruneError(f"no weights at {path}; name an artifact folder or a file") from None
    except SafetensorError as error:
        raise AutopruneError(f"{path} is not a safetensors file ({error})") from None


def read_recipe(folder: Path) -> Recipe:
    """The recipe in an artifact folder; raises AutopruneError where there is none."""
    return Recipe.from_json(_read_facts(folder)["recipe"])


def read_outputs(model_folder: Path) -> tuple[torch.Tensor, ...]:
    """What the saved network made of the task's example input, tensor by tensor."""
    found = read_weights(model_folder / OUTPUTS_FILE)
    return tuple(found[name] for name in sorted(found))


def _numbered(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((f"{index:04d}", tensor) for index, tensor in enumerate(tensors))


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE_FILE
    try:
        size = path.stat().st_size
        if size > MAX_RECIPE_BYTES:
            raise AutopruneError(
                f"{path} has {size} bytes; a recipe has {MAX_RECIPE_BYTES} at most"
            )
        facts = json.loads(path.read_text())
    except OSError:
        raise AutopruneError(
            f"no recipe at {path}; name a folder that autoprune wrote, such as "
            "outputs/<sweep>/trials/0007/model"
        ) from None
    except (ValueError, RecursionError) as error:
        raise AutopruneError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(facts, dict) or "recipe" not in facts:
        raise AutopruneError(f"{path} holds no recipe")
    return facts
