"""What can be pruned: ``python -m tests.benchmarks.prunability --json FILE``.

autoprune's own networks and families of `transformers` with random weights, every group (also heads
and blocks) cut by a share of its units, by l1. Each cut network runs forwards and backwards, takes
one step of an optimiser, is saved and rebuilt (bit for bit) and exported to ONNX, where it must
compute the same. `seconds` are those of finding the groups, of the cut and of all that. A network
or a step that fails is a row that says why. Needs the extras `onnx` and `transformers`.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.space import KINDS, PruningSpec
from autoprune.measurement.cost import costs
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.runtimes.onnx import OnnxRuntime
from autoprune.models import mlp, mobilenet, resnet, vgg, vit
from autoprune.orchestration.artifacts import read_weights, write_weights
from autoprune.pruning.graph import Dependencies, trace
from autoprune.pruning.isolation import outputs_of
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.surgery import prune
from autoprune.tasks.protocol import Inputs, forward, map_inputs, tensors_of
from tests.families import CONFIGS, family

RATIOS = (0.3, 0.6)
LIMIT_S = 120.0
OWN = {"vgg": vgg, "resnet": resnet, "mobilenet": mobilenet, "vit": vit, "mlp": mlp}
PARITY = 1e-3


@dataclass(frozen=True)
class Row:
    """One network with a share `ratio` of the units of every group gone.

    `params_ratio` and `macs_ratio` are what is left of the network's, None where nothing was cut.
    """

    model: str
    ratio: float
    groups: int
    params_ratio: float | None
    macs_ratio: float | None
    ok: bool
    reason: str
    seconds: float


class UnsoundError(Exception):
    """A cut network that does not do what a network does."""


def network(name: str) -> tuple[nn.Module, Inputs]:
    """A network of ours or a family's, in evaluation mode, and an example."""
    if name not in OWN:
        return family(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built: nn.Module = OWN[name]().eval()  # type: ignore[operator]
        return built, torch.randn(1, 3, 32, 32)


def rows_of(name: str, ratios: Sequence[float]) -> Iterator[Row]:
    """The rows of one network."""
    model, example = network(name)
    start = time.perf_counter()
    try:
        dependencies = trace(model, example, time_limit_s=LIMIT_S)
    except AutopruneError as error:
        took = time.perf_counter() - start
        for ratio in ratios:
            yield Row(name, ratio, 0, None, None, False, str(error), took)
        return
    print(f"{name}: {_groups_of(dependencies)}", flush=True)
    tracing = time.perf_counter() - start
    for ratio in ratios:
        yield _row(name, ratio, model, example, dependencies, tracing)


def _groups_of(dependencies: Dependencies) -> str:
    counts = Counter(group.kind for group in dependencies.groups)
    listed = ", ".join(f"{counts[kind]} of {kind}" for kind in KINDS if counts[kind])
    refused = [f"{r.name} ({r.reason})" for r in dependencies.refused]
    return f"groups: {listed}; refused: {'; '.join(refused) or 'none'}"


def _row(
    name: str,
    ratio: float,
    model: nn.Module,
    example: Inputs,
    dependencies: Dependencies,
    tracing: float,
) -> Row:
    start = time.perf_counter()
    before = costs(model, example)
    left: dict[str, float] = {}
    reason = ""
    try:
        pruned, recipe = _cut(model, example, dependencies, ratio)
        after = costs(pruned, example)
        left = {key: after[key] / before[key] for key in ("params", "macs")}
        _learns(pruned, example)
        _returns(pruned, recipe, model, example)
        _exports(pruned, example)
    except (AutopruneError, UnsoundError) as error:
        reason = first_line(error, 200)
    seconds = tracing + time.perf_counter() - start
    ratios = left.get("params"), left.get("macs")
    return Row(name, ratio, len(dependencies.groups), *ratios, not reason, reason, seconds)


def _cut(
    model: nn.Module, example: Inputs, dependencies: Dependencies, ratio: float
) -> tuple[nn.Module, Recipe]:
    space = build_space(dependencies.groups, Bounds(min_kept=0.01))
    spec: PruningSpec = space.uniform(1 - ratio)
    pruned = prune(model, example, spec, dependencies=dependencies)
    if not all(o.isfinite().all() for o in tensors_of(outputs_of(pruned.model, example))):
        raise UnsoundError("the cut network's outputs are not finite")
    return pruned.model, pruned.recipe


def _learns(model: nn.Module, example: Inputs) -> None:
    """A loss, its gradients, and one step of an optimiser."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    batch = map_inputs(_two_of, example)
    outputs = tensors_of(forward(model, batch))
    loss = torch.stack([o.square().mean() for o in outputs]).sum()
    loss.backward()
    optimiser.step()
    model.eval()
    after = list(model.parameters())
    if not all(p.isfinite().all() for p in after):
        raise UnsoundError("a step of the optimiser leaves weights that are not finite")
    if all(torch.equal(a, b) for a, b in zip(after, before, strict=True)):
        raise UnsoundError("a step of the optimiser changes no weight")


def _two_of(x: torch.Tensor) -> torch.Tensor:
    """Two samples like the one of `x`, of other values: equal ones a batch norm erases."""
    other = torch.randn_like(x) if x.is_floating_point() else x.flip(-1)
    return torch.cat([x, other])


def _returns(pruned: nn.Module, recipe: Recipe, model: nn.Module, example: Inputs) -> None:
    """Saved as a sweep saves it, and rebuilt bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_weights(path, pruned.state_dict())
        text = json.dumps(recipe.to_json())
        again = rebuild(Recipe.from_json(json.loads(text)), read_weights(path), model=model)
    pairs = zip(
        tensors_of(outputs_of(again, example)), tensors_of(outputs_of(pruned, example)), strict=True
    )
    if not all(torch.equal(a, b) for a, b in pairs):
        raise UnsoundError("the network that was saved and rebuilt computes something else")


def _exports(pruned: nn.Module, example: Inputs) -> None:
    found = OnnxRuntime(threads=2).prepare(pruned, example)()
    difference = relative_difference(found, outputs_of(pruned, example))
    if not difference <= PARITY:
        raise UnsoundError(f"ONNX Runtime computes something else, by {difference:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*OWN, *CONFIGS], default=[*OWN, *CONFIGS])
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        rows += rows_of(name, arguments.ratios)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print("| model | groups | gone | params left | MACs left | ok | s |")
    print("| --- | --: | --: | --: | --: | --- | --: |")
    for row in rows:
        params, macs = (
            "" if share is None else f"{share:.0%}" for share in (row.params_ratio, row.macs_ratio)
        )
        verdict = "yes" if row.ok else row.reason
        print(
            f"| {row.model} | {row.groups} | {row.ratio:.0%} | {params} | {macs} | {verdict} | "
            f"{row.seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
