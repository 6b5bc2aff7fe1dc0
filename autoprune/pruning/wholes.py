"""Groups whose units are whole modules, or parts that a module counts: blocks, and heads.

Axis legend: u = units of a group.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from torch import nn

from autoprune.pruning.attention import PROJECTIONS, head_count, narrow_fault
from autoprune.pruning.bypass import Stack, stacks_of
from autoprune.pruning.checks import Relation
from autoprune.pruning.coupling import Member
from autoprune.pruning.cuts import LAYERS, Indices, is_depthwise
from autoprune.tasks.protocol import Inputs

Modules = Mapping[str, nn.Module]

PROJECTED = 3
"""Queries, keys and values: what makes fewer than three is no attention."""


def by_heads(relations: Iterable[Relation], modules: Modules) -> list[Relation]:
    """Relations as they are, but those of an attention with a head in place of its channels."""
    return [_by_heads(relation, modules) for relation in relations]


def _by_heads(relation: Relation, modules: Modules) -> Relation:
    owner = _owner_of(relation.name, modules)
    heads = None if owner is None else head_count(modules[owner])
    if owner is None or heads is None or heads < 2:
        return relation
    makers = [m for m in relation.members if m.side == "out" and _makes(modules[m.layer])]
    if not makers or not all(m.layer.startswith(f"{owner}.") for m in makers):
        return relation
    if len(makers) == 1:
        members = _fused(makers[0], owner, modules, heads=heads)
    else:
        members = _apart(relation, makers, heads=heads)
    if not members:
        return relation
    tables = list(_tables(owner, modules, heads))
    known = {table.layer for table in tables}
    members = [m for m in members if m.layer not in known]
    members += [Member(owner, "heads", _each(heads), _each(heads)), *tables]
    return Relation(owner, heads, members, relation.strange, relation.is_output, kind="heads")


def _owner_of(name: str, modules: Modules) -> str | None:
    """The innermost module around a layer that speaks of heads."""
    while name:
        name = name.rpartition(".")[0]
        if head_count(modules[name]) is not None:
            return name
    return None


def _apart(relation: Relation, makers: Sequence[Member], *, heads: int) -> list[Member]:
    """The members of heads whose queries, keys and values layers of their own make; none where so
    few layers make no attention, or its width is no multiple of the heads.
    """
    made = sum(len(maker.index) for maker in makers)
    width, rest = divmod(relation.size, heads)
    if rest or made < PROJECTED * relation.size:
        return []
    return [
        Member(m.layer, m.side, m.index, m.unit // width, axis=m.axis) for m in relation.members
    ]


def _fused(maker: Member, owner: str, modules: Modules, *, heads: int) -> list[Member]:
    """The members of heads whose queries, keys and values one layer makes, in this order; none
    where it is another layer.

    Torch-Pruning 1.6.1 loses track where such a layer's outputs are split or reshaped, so what
    reads the heads is found by its width.
    """
    layer = modules[maker.layer]
    width = layer.out_features if isinstance(layer, nn.Linear) else 0
    size, rest = divmod(width, PROJECTED)
    readers = [
        name
        for name, module in modules.items()
        if name.startswith(f"{owner}.")
        and isinstance(module, nn.Linear)
        and module is not layer
        and module.in_features == size
    ]
    if rest or size % heads or len(readers) != 1:
        return []
    unit = _each(size) // (size // heads)
    return [
        Member(maker.layer, "out", _each(width), np.tile(unit, PROJECTED)),
        Member(readers[0], "in", _each(size), unit),
    ]


def _makes(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) and not is_depthwise(layer)


def _tables(owner: str, modules: Modules, heads: int) -> Iterator[Member]:
    """Parameters in an attention, of no layer, with one entry a head: such as position biases."""
    for inside, module in modules.items():
        if not f"{inside}.".startswith(f"{owner}.") or isinstance(module, LAYERS):
            continue
        for name, parameter in module._parameters.items():
            shape = [] if parameter is None else list(parameter.shape)
            if shape.count(heads) == 1:
                each = _each(heads)
                yield Member(f"{inside}.{name}", "param", each, each, axis=shape.index(heads))


def heads_of_pytorch(modules: Modules) -> list[Relation]:
    """One relation for every `nn.MultiheadAttention`, whose projections no layer makes."""
    return [
        _heads_of(name, module)
        for name, module in modules.items()
        if isinstance(module, nn.MultiheadAttention)
    ]


def _heads_of(name: str, module: nn.MultiheadAttention) -> Relation:
    heads, width = module.num_heads, module.head_dim
    channels = np.arange(module.embed_dim, dtype=np.int64)
    relation = Relation(name, heads, kind="heads")
    fault = narrow_fault(module)
    if fault is not None:
        relation.strange.append(f"MultiheadAttention {name!r} ({fault})")
    for own in (*PROJECTIONS, "in_proj_bias"):
        parameter = getattr(module, own)
        if parameter is not None:
            parts = len(parameter) // module.embed_dim
            index = np.arange(len(parameter), dtype=np.int64)
            unit = np.tile(channels // width, parts)
            relation.members.append(Member(f"{name}.{own}", "param", index, unit))
    relation.members += [
        Member(f"{name}.out_proj", "in", channels, channels // width),
        Member(name, "heads", _each(heads), _each(heads)),
    ]
    return relation


def embedding_members(
    name: str, module: nn.MultiheadAttention, index: Indices, unit: Indices
) -> list[Member] | None:
    """What of an `nn.MultiheadAttention` belongs to units of its embedding; None where it has
    inputs of several widths, or keys of its own.
    """
    if module.in_proj_weight is None or narrow_fault(module) is not None:
        return None
    return [
        Member(f"{name}.in_proj_weight", "param", index, unit, axis=1),
        Member(f"{name}.out_proj", "out", index, unit),
    ]


def blocks_in(model: nn.Module, inputs: Inputs) -> list[Relation]:
    """One relation for every stack of blocks, named after its first one."""
    return [_blocks(stack) for stack in stacks_of(model, inputs)]


def _blocks(stack: Stack) -> Relation:
    members = [
        Member(block, "block", np.zeros(1, np.int64), np.full(1, unit, np.int64))
        for unit, block in enumerate(stack.blocks)
    ]
    pinned = (0,) if stack.pinned else ()
    name = f"{stack.blocks[0]}:blocks"
    return Relation(name, len(members), members, kind="blocks", pinned=pinned)


def _each(count: int) -> Indices:
    return np.arange(count, dtype=np.int64)
