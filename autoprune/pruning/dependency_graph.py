"""Torch-Pruning's graph of dependencies, made to come to an end on networks that it does not know.

Torch-Pruning 1.6.1 takes every operation that it does not know for an elementwise one. It is not
as careful with those that it knows: which indices a concatenation, a split, a slice or a reshape
leads to is guessed from sizes, and a wrong guess raises, or lets indices grow without end. Here
such an operation is taken for an elementwise one, too, and the proof of the groups has the word.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch_pruning as tp
from torch import nn
from torch_pruning.dependency.shape_infer import infer_channels_between, init_shape_information

from autoprune.pruning.cuts import LAYERS, Side, width

OPTYPE = tp.ops.OPTYPE
SIDES: tuple[Side, ...] = ("in", "out")
FLAT, JOINED = 0, 1
SLOTS = {
    OPTYPE.RESHAPE: FLAT,
    OPTYPE.SPLIT: FLAT,
    OPTYPE.UNBIND: FLAT,
    OPTYPE.EXPAND: FLAT,
    OPTYPE.SLICE: FLAT,
    OPTYPE.CONCAT: JOINED,
}
"""Operations behind which an index is another one, and where a dependency keeps their mapping."""


class DependencyGraph(tp.DependencyGraph):  # type: ignore[misc]
    """What an index of one layer is at every other one."""

    def build_dependency(self, *args: Any, **kwargs: Any) -> Any:
        """The graph, whose mappings of indices are made once, for every group."""
        built = super().build_dependency(*args, **kwargs)
        self._behind: dict[Any, list[tuple[Any, int]]] = defaultdict(list)
        layers = [module for module in self.module2node if isinstance(module, LAYERS)]
        widest = max((width(m, side) for m in layers for side in SIDES), default=0)
        for node in self.module2node.values():
            for dependency in node.dependencies:
                self._bound(dependency, (node, dependency.target), widest)
        for node, places in self._behind.items():
            if node.type is OPTYPE.RESHAPE and not all(_flattens(node, d) for d, _ in places):
                self._forget(node)
        for node in self._behind:
            node.type = OPTYPE.ELEMENTWISE  # or Torch-Pruning would make the mappings anew
        return built

    def coupled(self, root: nn.Module, outputs: Sequence[int]) -> Any:
        """Torch-Pruning's group of these outputs of a layer: pairs of a dependency and indices."""
        pruner = self.get_pruner_of_module(root)
        while True:
            try:
                return self.get_pruning_group(root, pruner.prune_out_channels, list(outputs))
            except _LostError as lost:
                for node in lost.nodes:
                    self._forget(node)

    def get_in_channels(self, module_or_node: Any) -> Any:
        """The channels that a layer or an operation takes, None where that is open.

        A concatenation asks what it feeds, which may be a flatten: that takes channels as they are.
        """
        if getattr(module_or_node, "type", None) is OPTYPE.RESHAPE:
            sizes = _sizes(module_or_node)
            return sizes[1] if len(sizes) >= 4 else None
        return super().get_in_channels(module_or_node)

    def _build_dependency(self, module2node: Any) -> None:
        super()._build_dependency(module2node)
        init_shape_information(self)
        for node in module2node.values():
            if node.type is OPTYPE.CONCAT and None in _parts(self, node):
                node.type = OPTYPE.ELEMENTWISE  # its sizes would be summed all the same

    def _bound(self, dependency: Any, ends: Sequence[Any], widest: int) -> None:
        for slot, mapping in enumerate(dependency.index_mapping):
            nodes = tuple(end for end in ends if SLOTS.get(end.type) == slot)
            for node in nodes:
                self._behind[node].append((dependency, slot))
            if mapping is not None:
                assert nodes, "whoever has a mapping is in SLOTS, or nothing could be forgotten"
                dependency.index_mapping[slot] = _Bounded(mapping, nodes, widest)

    def _forget(self, node: Any) -> None:
        for dependency, slot in self._behind[node]:
            dependency.index_mapping[slot] = None


class _LostError(Exception):
    """The indices behind some operations are none of any layer's."""

    def __init__(self, nodes: Sequence[Any]) -> None:
        super().__init__(nodes)
        self.nodes = nodes


@dataclass(frozen=True, eq=False)
class _Bounded:
    """A mapping of Torch-Pruning's that raises where it leads to nothing."""

    mapping: Any
    nodes: Sequence[Any]
    widest: int

    def __call__(self, indices: Any) -> Any:
        try:
            found = self.mapping(indices)
        except Exception as error:  # offsets that are not there, a division by zero
            raise _LostError(self.nodes) from error
        if any(not 0 <= i.idx < self.widest or i.root_idx is None for i in found):
            raise _LostError(self.nodes)
        return found


def _flattens(reshape: Any, dependency: Any) -> bool:
    """Whether a reshape makes features of all channels and pixels, as the mapping of its indices
    says.
    """
    bounded, sizes = dependency.index_mapping[FLAT], _sizes(reshape)
    stride = getattr(bounded and bounded.mapping, "_stride", None)
    return stride is None or (len(sizes) >= 3 and stride == math.prod(sizes[2:]))


def _sizes(reshape: Any) -> list[int]:
    """The sizes of what is reshaped, by the name that torch has for them (2.13)."""
    return list(getattr(reshape.grad_fn, "_saved_self_sym_sizes", []))


def _parts(graph: Any, concatenation: Any) -> list[int | None]:
    """The channels of all that is joined."""
    return [infer_channels_between(graph, node, concatenation) for node in concatenation.inputs]
