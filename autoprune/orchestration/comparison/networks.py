"""Networks as users name them: checkpoints, artifact folders, exported programs, MLflow models."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.evaluation import portable
from autoprune.measurement.programs import runnable
from autoprune.orchestration.artifacts import (
    MODEL_FOLDER,
    RECIPE_FILE,
    WEIGHTS_FILE,
    load,
    read_recipe,
    rebuild_from,
)
from autoprune.orchestration.baseline import files_of, load_checkpoint
from autoprune.orchestration.folders import BASELINE_FILE, JOURNAL_FILE
from autoprune.orchestration.program_files import MLFLOW_PROGRAM, SUFFIX, load_program
from autoprune.orchestration.untrusted import check_part
from autoprune.pruning.recipe import InputSpec, Recipe
from autoprune.tasks.protocol import Inputs, map_inputs, tensors_of

CHECKPOINTS = (".safetensors", ".pt", ".pth")
MLFLOW_PICKLE = "data/model.pth"

NAMEABLE = (
    "a checkpoint (.safetensors, .pt), an exported program (.pt2), a folder that autoprune wrote, "
    "or an MLflow model (models:/name@alias)"
)


@dataclass(frozen=True, slots=True)
class Takes:
    """What a file says of one tensor that its network takes; a size of None is free."""

    sizes: tuple[int | None, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        sizes = ", ".join("*" if size is None else str(size) for size in self.sizes)
        return f"{str(self.dtype).removeprefix('torch.')} ({sizes})"


@dataclass(frozen=True, slots=True)
class Network:
    """A network to measure, on the CPU in evaluation mode, and what the user named it.

    `example` is an input of batch size 1, and `takes` what every tensor of an input must be:
    both None where nothing but the network's code tells. `batches` are the least and the most
    samples that it takes at once. `program` tells a graph that was exported from a network's
    code.
    """

    model: nn.Module
    source: str
    example: Inputs | None = None
    takes: tuple[Takes, ...] | None = None
    batches: tuple[int, float] = (1, math.inf)
    program: bool = False

    @property
    def batches_text(self) -> str:
        """The batch sizes that it takes, in words."""
        low, high = self.batches
        if low == high:
            return f"batches of {low} only"
        return f"batches of {low} to {high:g}" if math.isfinite(high) else f"batches from {low} up"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file does not say: the unpruned network's code, and the MLflow store.

    `model` builds the unpruned network. `named` tells whether the user, or the sweep, said which
    it is: otherwise a recipe that knows its own is believed. `allow` are the targets that a
    recipe may build besides autoprune's.
    """

    model: Callable[[], nn.Module]
    named: bool = True
    store: str | None = None
    allow: Sequence[str] = ()


def load_network(reference: str, origin: Origin) -> Network:
    """The network that a path or an MLflow model URI names; nothing in a file is run as code.

    Raises AutopruneError for what is not there, is no network, or could run code.
    """
    with files_of(reference, origin.store) as path:
        return _load(path, reference, origin)


def _load(path: Path, reference: str, origin: Origin) -> Network:
    if not path.exists():
        raise AutopruneError(f"{reference}: there is no such file or folder; name {_offer(path)}")
    if path.name == WEIGHTS_FILE and path.with_name(RECIPE_FILE).is_file():
        path = path.parent
    if path.is_dir():
        return _in_folder(path, reference, origin)
    if path.suffix == SUFFIX:
        return of_program(load_program(path), reference)
    if path.suffix in CHECKPOINTS:
        return _checkpoint(path, reference, origin)
    raise AutopruneError(f"{reference} is no network that autoprune reads; name {NAMEABLE}")


def of_program(program: torch.export.ExportedProgram, source: str) -> Network:
    """An exported program as a network.

    Raises AutopruneError where its inputs are not tensors with the batch as first axis.
    """
    names = program.graph_signature.user_inputs
    found = {node.name: node.meta["val"] for node in program.graph.nodes if node.name in names}
    given = [found.get(str(name)) for name in names]
    tensors = [tensor for tensor in given if isinstance(tensor, torch.Tensor) and tensor.ndim]
    if len(tensors) < len(names):
        raise AutopruneError(
            f"{source} takes inputs {list(map(str, names))} that are not all tensors; export the "
            "network as a function of tensors, with the batch as first axis of each"
        )
    firsts = {str(tensor.shape[0]): tensor.shape[0] for tensor in tensors}
    if len(firsts) != 1:
        raise AutopruneError(
            f"{source} takes inputs whose first axes are {' and '.join(firsts)}; export the "
            "network as a function of tensors, with the batch as first axis of each"
        )
    (first,) = firsts.values()
    return Network(
        runnable(program).cpu().eval(),
        source,
        example=_own_example(program, source),
        takes=tuple(
            Takes((None, *(n if isinstance(n, int) else None for n in t.shape[1:])), t.dtype)
            for t in tensors
        ),
        batches=_batches(program, first),
        program=True,
    )


def unpruned(artifact: Path, weights: Path, *, allow: Sequence[str] = ()) -> Network:
    """The network that a recipe was cut from, with weights of its own."""
    recipe = replace(read_recipe(artifact), history=())
    model = portable(rebuild_from(recipe, weights, allow=allow))
    return _with_inputs(model, recipe, str(weights))


def sweep_of(path: Path) -> Path | None:
    """The folder of the sweep that a path lies in; None where it lies in none."""
    places = (path, *path.parents, *path.absolute().parents)
    return next((place for place in places if (place / JOURNAL_FILE).is_file()), None)


def artifact_in(path: Path) -> Path | None:
    """The folder with the recipe that a path names; None where there is none."""
    places = (path, check_part(path, MODEL_FOLDER), path.parent)
    return next((place for place in places if (place / RECIPE_FILE).is_file()), None)


def _in_folder(folder: Path, reference: str, origin: Origin) -> Network:
    artifact = artifact_in(folder)
    if artifact is not None:
        model = origin.model() if origin.named else None
        network = load(artifact, model=model, allow=origin.allow)
        return _with_inputs(network, read_recipe(artifact), reference)
    if (folder / MLFLOW_PROGRAM).is_file():
        return of_program(load_program(check_part(folder, MLFLOW_PROGRAM)), reference)
    if (folder / MLFLOW_PICKLE).is_file():
        raise AutopruneError(
            f"{reference} is a pickled model, and reading it would run its code; log it with "
            "mlflow.pytorch.log_model(..., serialization_format='pt2')"
        )
    if (folder / WEIGHTS_FILE).is_file():
        return _checkpoint(check_part(folder, WEIGHTS_FILE), reference, origin)
    raise AutopruneError(f"{reference} holds no network; name {_offer(folder)}")


def _checkpoint(path: Path, reference: str, origin: Origin) -> Network:
    try:
        return Network(load_checkpoint(origin.model(), str(path)).model, reference)
    except AutopruneError as error:
        if origin.named:
            raise
        raise AutopruneError(
            f"{error}; no model was named, so it was tried on the default one: set experiment=... "
            "or model=..."
        ) from error


def _with_inputs(model: nn.Module, recipe: Recipe, source: str) -> Network:
    """A network with the inputs that its recipe tells of."""
    example = example_of(recipe)
    takes = tuple(Takes((None, *t.shape[1:]), t.dtype) for t in tensors_of(example))
    return Network(portable(model), source, example=example, takes=takes)


def example_of(recipe: Recipe) -> Inputs:
    """An input of the shapes and dtypes that a recipe tells of; its numbers mean nothing."""
    tensors = {spec.name: _tensor(spec) for spec in recipe.inputs}
    if recipe.layout == "dict":
        return tensors
    values = tuple(tensors.values())
    return values[0] if recipe.layout == "tensor" else values


def _tensor(spec: InputSpec) -> torch.Tensor:
    dtype = getattr(torch, spec.dtype)
    if not dtype.is_floating_point:
        return torch.zeros(spec.shape, dtype=dtype)
    return torch.randn(spec.shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _own_example(program: torch.export.ExportedProgram, source: str) -> Inputs | None:
    """The first sample of what the program was exported with."""
    if program.example_inputs is None:
        return None
    args, kwargs = program.example_inputs
    if args and kwargs:
        raise AutopruneError(
            f"{source} takes inputs by position and {sorted(kwargs)} by name; export the network "
            "with all of its inputs given in one way"
        )
    found: Inputs = dict(kwargs) if kwargs else args[0] if len(args) == 1 else tuple(args)
    first: Inputs = map_inputs(lambda tensor: tensor[:1].detach().cpu(), found)
    return first


def _batches(program: torch.export.ExportedProgram, first: object) -> tuple[int, float]:
    if isinstance(first, int):
        return first, first
    assert isinstance(first, torch.SymInt)
    bounds = program.range_constraints.get(first.node.expr)
    if bounds is None:
        return 1, math.inf
    # torch 2.13 writes 2 for the least of every free size, and does not hold to it
    least = 1 if bounds.lower <= 2 else int(bounds.lower)
    return least, int(bounds.upper) if bounds.upper < 2**31 else math.inf


def _offer(path: Path) -> str:
    """What to name instead of a path, with the networks of the sweep that it lies in."""
    sweep = sweep_of(path)
    if sweep is None:
        return NAMEABLE
    kept = sorted(found.parent.name for found in sweep.glob(f"trials/*/{MODEL_FOLDER}"))
    listed = ", ".join(f"trials/{name}" for name in kept[:8]) or "none (the front is empty)"
    return f"one of the networks that {sweep.name} kept: {listed}; or its {BASELINE_FILE}"
