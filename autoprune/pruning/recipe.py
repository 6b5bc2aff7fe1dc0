"""The portable half of a pruned network: how to come from the unpruned one to it, as JSON."""

import copy
import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import nn

import autoprune.models
from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import FP32, PRECISIONS, PruningSpec
from autoprune.pruning.cuts import Cut, Side
from autoprune.pruning.cutting import apply_cuts
from autoprune.pruning.factors import Factor, put_factors
from autoprune.tasks.protocol import Inputs

VERSION = 1
OWN_TARGETS = "autoprune.models."

# Far beyond any real network; they keep a hostile file from exhausting the memory.
MAX_CUTS = 100_000
MAX_RANGES = 10_000_000
MAX_INDEX = 2**31
MAX_ARGUMENT = 100_000
MAX_INPUT = 2**28
MAX_DEPTH = 16
MAX_NODES = 10_000

Layout = Literal["tensor", "tuple", "dict"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Shape and dtype (``float32``) of one tensor that the network takes, by name or position."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What rebuilds a pruned network, given its state dict: plain facts, no code.

    `model` is how to build the unpruned network (``_target_`` and arguments, plain JSON) or None
    where it can only be handed over; `history` the cuts; `inputs` and `layout` the example input
    it was pruned with; `spec` what was asked; `factors` the layers that are two after the cuts.
    """

    history: tuple[Cut, ...]
    spec: PruningSpec
    inputs: tuple[InputSpec, ...]
    layout: Layout = "tensor"
    model: Mapping[str, Any] | None = None
    factors: tuple[Factor, ...] = ()

    def __post_init__(self) -> None:
        if self.model is not None:
            _check_config(self.model)
        sides = [(cut.layer, cut.side, cut.axis) for cut in self.history]
        if len(set(sides)) < len(sides):
            raise AutopruneError("a recipe cuts one side of a layer twice; it was tampered with")
        layers = [factor.layer for factor in self.factors]
        if len(set(layers)) < len(layers):
            raise AutopruneError("a recipe factors a layer twice; it was tampered with")

    @classmethod
    def of(
        cls,
        history: tuple[Cut, ...],
        spec: PruningSpec,
        example: Inputs,
        *,
        model: Mapping[str, Any] | None = None,
    ) -> Self:
        """The recipe of cuts made with `example`."""
        named: Mapping[str, torch.Tensor]
        layout: Layout
        if isinstance(example, dict):
            layout, named = "dict", example
        elif isinstance(example, tuple):
            layout, named = "tuple", {str(i): x for i, x in enumerate(example)}
        else:
            layout, named = "tensor", {"0": example}
        inputs = tuple(
            InputSpec(name, tuple(x.shape), str(x.dtype).removeprefix("torch."))
            for name, x in named.items()
        )
        return cls(history, spec, inputs, layout, model)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        return {
            "version": VERSION,
            "model": None if self.model is None else copy.deepcopy(dict(self.model)),
            "spec": self.spec.to_json(),
            "layout": self.layout,
            "inputs": [
                {"name": i.name, "shape": list(i.shape), "dtype": i.dtype} for i in self.inputs
            ],
            "history": [
                {"layer": cut.layer, "side": cut.side, "removed": [list(r) for r in cut.removed]}
                | ({"axis": cut.axis} if cut.side == "param" else {})
                for cut in self.history
            ],
            **({"factors": list(map(asdict, self.factors))} if self.factors else {}),
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read a recipe, trusting nothing in it.

        Raises AutopruneError for another version, a missing or mistyped part, indices out of
        range, or sizes that no network has.
        """
        table = _typed(data, dict, "the recipe")
        version = _part(table, "version", int)
        if version != VERSION:
            raise AutopruneError(
                f"the recipe has version {version}; this autoprune reads version {VERSION}"
            )
        model = table.get("model")
        layout = _part(table, "layout", str)
        if layout not in get_args(Layout):
            raise AutopruneError(f"recipe: layout {layout!r} is not one of {get_args(Layout)}")
        history = _bounded(_part(table, "history", list), MAX_CUTS, "cuts")
        inputs = _bounded(_part(table, "inputs", list), 1_000, "inputs")
        takes = tuple(map(_read_input, inputs))
        numbers = sum(math.prod(given.shape) for given in takes)
        if numbers > MAX_INPUT:
            raise AutopruneError(
                f"recipe: the inputs hold {numbers} numbers; an example has {MAX_INPUT} at most"
            )
        cuts = tuple(map(_read_cut, history))
        _bounded(range(sum(len(cut.removed) for cut in cuts)), MAX_RANGES, "ranges")
        # there were none at first
        factors = _part(table, "factors", list) if "factors" in table else []
        return cls(
            cuts,
            _read_spec(_part(table, "spec", dict)),
            takes,
            layout,
            None if model is None else _typed(model, dict, "recipe: model"),
            tuple(map(_read_factor, _bounded(factors, MAX_CUTS, "factored layers"))),
        )


def rebuild(
    recipe: Recipe,
    state_dict: Mapping[str, torch.Tensor],
    *,
    read: Callable[[], Mapping[str, torch.Tensor]] | None = None,
    model: Callable[[], nn.Module] | nn.Module | None = None,
    allow: Sequence[str] = (),
) -> nn.Module:
    """The pruned network, with outputs equal bit for bit to those of the one that was saved.

    With `read` the `state_dict` may be a sketch on the meta device: `read` gives the weights, and
    is called once it is known that they fit.

    The unpruned network is `model` (a network, which is copied, or a factory) or else what the
    recipe's ``_target_`` builds, only where it is a built-in network or stands in `allow`:
    nothing else that a recipe names is ever imported. Raises AutopruneError for a target that is
    refused and for cuts or weights that do not fit the network.
    """
    if model is None:
        _rehearse(recipe, state_dict)
    built = _unpruned(recipe, model, allow)
    apply_cuts(built, recipe.history)
    put_factors(built, recipe.factors)
    _check_fit(built, state_dict)
    for name, tensor in [*built.named_parameters(), *built.named_buffers()]:
        saved = state_dict.get(name)
        if saved is not None and saved.dtype != tensor.dtype:
            tensor.data = tensor.data.to(saved.dtype)  # or loading would round the weights
    built.load_state_dict(state_dict if read is None else read())
    return built


def _rehearse(recipe: Recipe, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Build a built-in network without memory first: a hostile recipe may ask for too much."""
    if recipe.model is not None and recipe.model["_target_"].startswith(OWN_TARGETS):
        with torch.device("meta"):
            sketch = _unpruned(recipe, None, ())
        apply_cuts(sketch, recipe.history)
        put_factors(sketch, recipe.factors)
        _check_fit(sketch, state_dict)


def _check_fit(built: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    own = built.state_dict()
    wrong = sorted(own.keys() ^ state_dict.keys()) + sorted(
        name for name in own.keys() & state_dict.keys() if own[name].shape != state_dict[name].shape
    )
    if wrong:
        raise AutopruneError(
            f"the weights do not fit the network that the recipe describes: {wrong[:4]} are "
            "missing, left over or of another shape; use the weights saved beside the recipe"
        )


def _unpruned(
    recipe: Recipe, model: Callable[[], nn.Module] | nn.Module | None, allow: Sequence[str]
) -> nn.Module:
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    if model is not None:
        built: object = model()
    elif recipe.model is None:
        raise AutopruneError(
            "the recipe does not say how the unpruned network is built; pass it, or a factory of "
            "it, as model="
        )
    else:
        arguments = dict(recipe.model)
        target = arguments.pop("_target_")
        try:
            built = _locate(target, allow)(**arguments)
        except TypeError as error:
            raise AutopruneError(f"recipe: {target} cannot be built: {error}") from error
    if not isinstance(built, nn.Module):
        raise AutopruneError(f"the unpruned network is a {type(built).__name__}, not a module")
    return built


def _locate(target: str, allow: Sequence[str]) -> Callable[..., Any]:
    """The built-in or allowed callable of that name; no other is looked up."""
    name = target.removeprefix(OWN_TARGETS)
    if target.startswith(OWN_TARGETS) and name in autoprune.models.__all__:
        found: Callable[..., Any] = getattr(autoprune.models, name)
        return found
    if target not in allow:
        raise AutopruneError(
            f"the recipe wants to build {target!r}, which is not one of autoprune's networks; if "
            f"you trust it, pass allow=[{target!r}] or the unpruned network as model="
        )
    module, _, attribute = target.rpartition(".")
    try:
        allowed: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise AutopruneError(
            f"the allowed target {target!r} cannot be imported: {error}"
        ) from error
    return allowed


def _check_config(config: Mapping[str, Any]) -> None:
    """Plain JSON with one `_target_` at the top, of bounded size."""
    target = config.get("_target_")
    if not isinstance(target, str) or not target:
        raise AutopruneError(f"recipe: the model's _target_ is {target!r}; it names a callable")
    nodes = [(key, value, 1) for key, value in config.items() if key != "_target_"]
    seen = 0
    while nodes:
        key, value, depth = nodes.pop()
        seen += 1
        if not isinstance(key, str) or (key.startswith("_") and key.endswith("_")):
            raise AutopruneError(
                f"recipe: argument {key!r} of {target}; a recipe's arguments are plain values, "
                "without a nested _target_"
            )
        if isinstance(value, Mapping):
            nodes += [(inner, v, depth + 1) for inner, v in value.items()]
        elif isinstance(value, (list, tuple)):
            nodes += [(key, v, depth + 1) for v in value]
        elif isinstance(value, (int, float)):
            limit = MAX_ARGUMENT if target.startswith(OWN_TARGETS) else sys.float_info.max
            if not abs(value) <= limit:  # NaN is not, and integers may be too big for a float
                raise AutopruneError(
                    f"recipe: argument {key!r} is {str(value)[:80]}; it is {limit} at most"
                )
        elif not isinstance(value, (str, type(None))):
            raise AutopruneError(
                f"recipe: argument {key!r} of {target} is a {type(value).__name__}; "
                "arguments are plain JSON"
            )
        if depth > MAX_DEPTH or seen > MAX_NODES:
            raise AutopruneError(f"recipe: the arguments of {target} are too deep or too many")
    json.dumps(config, allow_nan=False)


def _read_cut(data: Any) -> Cut:
    table = _typed(data, dict, "recipe: a cut")
    side = _part(table, "side", str)
    if side not in get_args(Side):
        raise AutopruneError(f"recipe: side {side!r} is not one of {get_args(Side)}")
    axis = _part(table, "axis", int) if side == "param" else 0
    removed = []
    for pair in _part(table, "removed", list):
        ends = _typed(pair, list, "recipe: a range")
        if len(ends) != 2 or not all(type(e) is int and 0 <= e < MAX_INDEX for e in ends):
            raise AutopruneError(f"recipe: range {str(ends)[:80]}; give [start, stop]")
        removed.append((ends[0], ends[1]))
    return Cut(_part(table, "layer", str), side, tuple(removed), axis=axis)


def _read_factor(data: Any) -> Factor:
    table = _typed(data, dict, "recipe: a factored layer")
    return Factor(_part(table, "layer", str), _part(table, "rank", int))


def _read_input(data: Any) -> InputSpec:
    table = _typed(data, dict, "recipe: an input")
    shape, dtype = _part(table, "shape", list), _part(table, "dtype", str)
    if len(shape) > MAX_DEPTH or not all(type(n) is int and 0 <= n < MAX_INDEX for n in shape):
        raise AutopruneError(f"recipe: input shape {str(shape)[:80]} is not one of a tensor")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise AutopruneError(f"recipe: input dtype {dtype[:80]!r} is not one of torch's")
    return InputSpec(_part(table, "name", str), tuple(shape), dtype)


def _read_spec(data: dict[str, Any]) -> PruningSpec:
    kept = _part(data, "kept", dict)
    for name, units in kept.items():
        if type(units) is not int or not 0 < units < MAX_INDEX:
            raise AutopruneError(f"recipe: group {name!r} keeps {str(units)[:80]}; give a count")
    _part(data, "criterion", str)
    _part(data, "recovery", str)
    precision = data.get("precision", FP32)
    if precision not in PRECISIONS:
        raise AutopruneError(f"recipe: precision {str(precision)[:80]!r} is none of {PRECISIONS}")
    return PruningSpec.from_json(data)


def _part(table: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in table:
        raise AutopruneError(f"recipe: {key!r} is missing; it was not written by autoprune")
    return _typed(table[key], kind, f"recipe: {key!r}")


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise AutopruneError(f"{what} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _bounded(items: Any, limit: int, what: str) -> Any:
    if len(items) > limit:
        raise AutopruneError(f"recipe: {len(items)} {what}; a recipe has {limit} at most")
    return items
