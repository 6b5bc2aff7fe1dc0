"""The dependency groups of a network, from Torch-Pruning's graph, each proved before it is used.

Nothing here keeps the network or the graph alive: a `Dependencies` holds names and indices.
"""

import copy
import threading
import warnings
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from autoprune.domain.errors import first_line
from autoprune.domain.space import UNEVEN_KINDS, Group
from autoprune.domain.trial import Cause, TrialError
from autoprune.pruning.checks import Refused, Relation, sort_relations
from autoprune.pruning.concat import joined
from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.cuts import LAYERS, width
from autoprune.pruning.dependency_graph import DependencyGraph
from autoprune.pruning.foreign import in_pytorchs_form
from autoprune.pruning.isolation import own_rng
from autoprune.pruning.limit import TimeLimitError, run_limited
from autoprune.pruning.verify import Verifier
from autoprune.pruning.wholes import blocks_in, by_heads, embedding_members, heads_of_pytorch
from autoprune.tasks.protocol import (
    Inputs,
    device_of,
    every_module,
    forward,
    map_inputs,
    move,
    tensors_of,
)

ROOTS = (_ConvNd, nn.Linear)

# Torch-Pruning 1.6.1 keeps the pruning dimension in pruners shared by the whole process.
_TORCH_PRUNING = threading.Lock()


class GraphError(TrialError):
    """The network's dependencies cannot be found; nothing of it can be pruned."""

    def __init__(self, reason: str) -> None:
        super().__init__(Cause.GRAPH, reason)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (str(self),)


@dataclass(frozen=True, eq=False)
class Dependencies:
    """What can be pruned of a network, in the order of its forward pass, and what cannot."""

    couplings: tuple[Coupling, ...]
    refused: tuple[Refused, ...] = ()

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups of a search space."""
        return tuple(coupling.group for coupling in self.couplings)


def trace(model: nn.Module, example: Inputs, *, time_limit_s: float = 60.0) -> Dependencies:
    """Find the dependency groups of `model`, which is left as it is (a copy is traced).

    `example` is an input of batch size 1 that the network accepts. A group is named after the
    first of its layers in the forward pass; frozen parameters take part like any others. Every
    group returned was proved: with some of its units gone, on random weights, the network
    computes what it computes when nothing reads them. The same network gives the same groups.

    Raises GraphError where the network fails on the example, has no group, or takes longer than
    `time_limit_s` seconds (`run_limited` says how it is stopped).
    """
    try:
        return run_limited(lambda: _trace(model, example), seconds=time_limit_s)
    except TimeLimitError:
        recurrent = [name for name, m in model.named_modules() if isinstance(m, nn.RNNBase)]
        remedy = "prune a smaller part of the network"
        if recurrent:
            remedy = f"give a shorter example, over whose steps layers {recurrent} are unrolled"
        raise GraphError(
            f"the dependency graph of {type(model).__name__} was not built within "
            f"{time_limit_s:g} s; raise the time limit (space.graph_limit_s) or {remedy}"
        ) from None


def _trace(model: nn.Module, example: Inputs) -> Dependencies:
    if isinstance(model, torch.jit.ScriptModule):
        raise GraphError(
            f"{type(model).__name__} is compiled by TorchScript, whose layers cannot be cut; give "
            "the module that it was made from"
        )
    lazy = [n for n, m in model.named_modules() if isinstance(m, LazyModuleMixin)]
    if lazy:
        raise GraphError(f"layers {lazy} have no shape yet; run the network once before pruning")
    try:
        work = copy.deepcopy(model).eval()
    except Exception as error:
        raise GraphError(f"the network cannot be copied: {first_line(error)}") from error
    in_pytorchs_form(work)
    for parameter in work.parameters():
        # Torch-Pruning 1.6.1 sees nothing of what is frozen, without a word.
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    inputs = move(example, device_of(work))
    with own_rng(0, device_of(work)):
        order = forward_order(work, inputs)
        position = {name: i for i, name in enumerate(order)}
        with _TORCH_PRUNING, torch.enable_grad():
            relations = list(_relations(work, inputs, order))
        modules = dict(work.named_modules())
        relations = by_heads(relations, modules) + heads_of_pytorch(modules)
        relations += blocks_in(work, inputs)
    relations = [relation for relation in relations if _place(relation.name, position) in position]
    couplings, refused = sort_relations(relations, modules)
    more, unjoined = sort_relations(joined(couplings, modules, order), modules)
    couplings, refused = couplings + more, refused + unjoined
    couplings, unproved = _prove(couplings, work, inputs)
    refused += unproved
    if not couplings:
        unseen = "it cannot be traced: autograd reaches no layer from its output"
        nothing = unseen if any(True for _ in work.parameters()) else "it has no layer to prune"
        listed = "; ".join(f"{r.name}: {r.reason}" for r in refused) or nothing
        raise GraphError(
            f"{type(model).__name__} has no prunable group ({listed}); give a network with "
            "convolutions or linear layers before the one that makes its output"
        )
    return Dependencies(
        tuple(sorted(couplings, key=lambda c: position[_place(c.group.name, position)])),
        tuple(sorted(refused, key=lambda r: position[_place(r.name, position)])),
    )


def _place(name: str, modules: Container[str]) -> str:
    """The module that a group is named after; what follows a last colon says what of it."""
    return name if name in modules else name.rpartition(":")[0]


def forward_order(model: nn.Module, inputs: Inputs) -> list[str]:
    """The names of the modules in the order in which the forward pass first calls them."""
    order: dict[str, None] = {}
    running: list[str] = []
    hooks = []
    for name, module in model.named_modules():

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            order.setdefault(name)
            running.append(name)

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            running.pop()

        hooks += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave),
        ]
    try:
        with torch.no_grad(), every_module():
            forward(model, inputs)
    except Exception as error:
        shapes = map_inputs(lambda tensor: tuple(tensor.shape), inputs)
        where = f"in layer {running[-1]!r}" if running and running[-1] else "in its forward"
        raise GraphError(
            f"{type(model).__name__} fails on the example input of shape {shapes} "
            f"{where}: {type(error).__name__}: {first_line(error)}; "
            "give an example input that the network accepts"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return list(order)


def _relations(model: nn.Module, inputs: Inputs, order: Sequence[str]) -> Iterator[Relation]:
    """One relation for every root whose outputs no earlier one covers, in forward order."""
    modules = dict(model.named_modules())
    with _graph(model, inputs) as graph:
        covered: dict[str, set[int]] = defaultdict(set)
        for name in order:
            root = modules[name]
            if not isinstance(root, ROOTS) or root not in graph.module2node:
                continue
            free = [i for i in range(width(root, "out")) if i not in covered[name]]
            if not free:
                continue
            relation = _relation(graph, root, name, free)
            for member in relation.members:
                if member.side == "out":
                    covered[member.layer].update(member.index.tolist())
            yield relation


@contextmanager
def _graph(model: nn.Module, inputs: Inputs) -> Iterator[Any]:
    graph = DependencyGraph()
    try:
        # Without a forward function Torch-Pruning 1.6.1 first tries model(*tensor), and a
        # convolution takes the example without its batch axis.
        with warnings.catch_warnings():
            # what it takes for the pruning axis of free parameters is proved with the groups
            warnings.filterwarnings("ignore", "Unwrapped parameters detected")
            graph.build_dependency(
                model,
                inputs,
                forward_fn=forward,
                output_transform=lambda out: [t for t in tensors_of(out) if t.grad_fn is not None],
                verbose=False,
            )
    except Exception as error:
        raise GraphError(
            f"the dependency graph of {type(model).__name__} cannot be built: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    try:
        yield graph
    finally:
        # The graph is full of cycles; cut, it frees the copy of the network at once.
        for node in graph.module2node.values():
            node.inputs, node.outputs, node.dependencies, node.grad_fn = [], [], [], None
        graph.module2node.clear()


def _relation(graph: Any, root: nn.Module, name: str, free: list[int]) -> Relation:
    group = graph.coupled(root, free)
    unit_of = {index: unit for unit, index in enumerate(free)}
    relation = Relation(name, len(free))
    names, seen = graph._module2name, set[str]()
    for i in range(len(group)):
        dependency, indices = group[i]
        target = dependency.target.module
        units = np.array([unit_of[r] for r in group[i].root_idxs], dtype=np.int64)
        index = np.array(indices, dtype=np.int64)
        if isinstance(target, nn.Parameter):
            axis = int(dependency.target.pruning_dim) % target.dim()
            relation.members.append(
                Member(graph._param_to_name[target], "param", index, units, axis=axis)
            )
        elif isinstance(target, LAYERS):
            if isinstance(target, nn.PReLU) and target.num_parameters == 1:
                continue
            is_out = graph.is_out_channel_pruning_fn(dependency.handler)
            relation.members.append(Member(names[target], "out" if is_out else "in", index, units))
        elif isinstance(target, nn.MultiheadAttention):
            found = embedding_members(names[target], target, index, units)
            if found is None:
                relation.strange.append(f"MultiheadAttention {names[target]!r}")
            else:
                relation.members += [m for m in found if m.layer not in seen]
                seen.update(m.layer for m in found)
        elif target in names:
            if tp.ops.module2type(target) is not tp.ops.OPTYPE.ELEMENTWISE:
                relation.strange.append(f"{type(target).__name__} {names[target]!r}")
        elif dependency.target.type is tp.ops.OPTYPE.OUTPUT:
            relation.is_output = True
    return relation


def _prove(
    couplings: list[Coupling], model: nn.Module, inputs: Inputs
) -> tuple[list[Coupling], list[Refused]]:
    """Couplings that may be cut together, all at once first and one by one where that fails.

    Where those that may be cut alone may not be together, the uneven kinds go first.
    """
    if not couplings:
        return [], []
    try:
        verifier = Verifier(model, inputs)
    except ValueError as error:
        raise GraphError(f"{type(model).__name__} cannot be pruned: {error}") from None
    if verifier.fault(couplings) is None:
        return couplings, []
    faults = {c.group.name: verifier.fault([c]) for c in couplings}
    proved = [c for c in couplings if faults[c.group.name] is None]
    refused = [Refused(name, fault) for name, fault in faults.items() if fault is not None]
    while proved and (together := verifier.fault(proved)) is not None:
        going = [c for c in proved if c.group.kind in UNEVEN_KINDS] or proved
        refused += [Refused(c.group.name, f"together with others: {together}") for c in going]
        proved = [c for c in proved if c not in going]
    return proved, refused
