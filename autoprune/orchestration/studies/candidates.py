"""The networks that the sparsity study compares, equally large at every level."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.space import SearchSpace
from autoprune.evaluation import portable
from autoprune.measurement.cost import costs
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.runtimes.protocol import TOLERANCES
from autoprune.orchestration.studies.records import TWO_OF_FOUR_SHARE, Absent, Kernels, Kind, Row
from autoprune.pruning.graph import Dependencies
from autoprune.pruning.isolation import outputs_of
from autoprune.pruning.masks import (
    kept_params,
    magnitude_masks,
    masked,
    params_of,
    two_of_four_masks,
    weights_of,
    zero_macs,
)
from autoprune.pruning.sparse_networks import (
    Converted,
    has_two_of_four,
    with_csr,
    with_two_of_four,
)
from autoprune.pruning.sparse_storage import Size, two_of_four_state
from autoprune.pruning.uniform_cut import cut_to
from autoprune.tasks.protocol import Inputs, map_inputs

FAR = 0.1
"""A network further than so from the level's parameters, as a part of them, does not compare."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network to measure, with all of its row but the speeds.

    `dense` runs on every runtime. `sparse` is the same network on kernels that skip zeros, None
    where the kind or the device has none; a `fault` says why it cannot be measured.
    """

    row: Row
    dense: nn.Module
    sparse: nn.Module | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Workbench:
    """The unpruned network with all that its candidates are made of; `device` is the meter's."""

    model: nn.Module
    example: Inputs
    space: SearchSpace
    dependencies: Dependencies
    device: str

    @property
    def params(self) -> int:
        """The unpruned network's parameters, tied ones once."""
        return params_of(self.model)

    def unpruned(self) -> Candidate:
        """The network itself."""
        macs = costs(self.model, self.example)["macs"]
        size = Size.of(self.model.state_dict())
        return Candidate(Row(Kind.UNPRUNED, 1.0, self.params, macs, size), self.model)

    def level(self, asked: float, kinds: Collection[Kind]) -> Iterator[Candidate | Absent]:
        """The networks that keep the share `asked` of the parameters, all equally many.

        The pattern 2:4 has no choice of how many it keeps, the structured network comes as near
        to it (or to the share) as whole channels allow, and masked ones keep exactly as many as
        that.
        """
        target, pattern = round(asked * self.params), None
        if Kind.TWO_OF_FOUR in kinds and asked == TWO_OF_FOUR_SHARE:
            pattern = self._two_of_four(asked, target)
            target = pattern.row.params if isinstance(pattern, Candidate) else target
        if Kind.STRUCTURED in kinds:
            found = self._structured(asked, target)
            yield found
            target = found.row.params if isinstance(found, Candidate) else target
        if {Kind.MASKED, Kind.CSR} & set(kinds):
            yield from self._masked(asked, target, kinds)
        if pattern is not None:
            yield pattern

    def csr_of_all(self) -> Candidate:
        """The unpruned network on CSR kernels: what they cost where there is nothing to skip."""
        return self._csr(self.unpruned())

    def _structured(self, asked: float, target: int) -> Candidate | Absent:
        network = cut_to(
            self.model, self.example, target, space=self.space, dependencies=self.dependencies
        )
        found = params_of(network)
        if abs(found - target) > FAR * target:
            return Absent(
                Kind.STRUCTURED,
                asked,
                f"with all groups cut alike it comes no nearer than {found / self.params:.1%} of "
                "the parameters; lower space.min_kept or space.step, or choose another level",
            )
        network = portable(network)
        macs = costs(network, self.example)["macs"]
        size = Size.of(network.state_dict())
        return Candidate(Row(Kind.STRUCTURED, asked, found, macs, size), network)

    def _masked(
        self, asked: float, target: int, kinds: Collection[Kind]
    ) -> Iterator[Candidate | Absent]:
        wanted = [kind for kind in (Kind.MASKED, Kind.CSR) if kind in kinds]
        try:
            masks = magnitude_masks(self.model, kept=target)
        except AutopruneError as error:
            yield from (Absent(kind, asked, str(error)) for kind in wanted)
            return
        thinned = self._thinned(Kind.MASKED, asked, masks)
        if Kind.MASKED in wanted:
            yield thinned
        if Kind.CSR in wanted:
            yield self._csr(thinned)

    def _thinned(self, kind: Kind, asked: float, masks: Mapping[str, torch.Tensor]) -> Candidate:
        network = portable(masked(self.model, masks))
        macs = costs(network, self.example)["macs"] - zero_macs(network, self.example)
        state = (
            two_of_four_state(network, masks) if kind is Kind.TWO_OF_FOUR else network.state_dict()
        )
        params = kept_params(self.model, masks)
        return Candidate(Row(kind, asked, params, macs, Size.of(state)), network)

    def _csr(self, thinned: Candidate) -> Candidate:
        converted = with_csr(thinned.dense, self.example)
        row = replace(
            thinned.row,
            kind=Kind.CSR,
            size=Size.of(converted.model.state_dict()),
            kernels=Kernels(converted.layers, converted.of),
        )
        fault = self._fault(converted, thinned.dense)
        return Candidate(row, thinned.dense, sparse=converted.model, fault=fault)

    def _two_of_four(self, asked: float, target: int) -> Candidate | Absent:
        found = self._thinned(Kind.TWO_OF_FOUR, asked, two_of_four_masks(self.model))
        row = found.row
        if abs(row.params - target) > FAR * target:
            return Absent(
                row.kind,
                asked,
                f"the pattern keeps {row.params / self.params:.1%} of the parameters: the others "
                "are in layers whose inputs do not come in fours, or that no mask thins out",
            )
        if not has_two_of_four(self.device):
            none = Kernels(0, len(weights_of(self.model)), there=False)
            return replace(found, row=replace(row, kernels=none))
        converted = with_two_of_four(found.dense, self.example, self.device)
        kernels = Kernels(converted.layers, converted.of)
        return replace(found, row=replace(row, kernels=kernels), sparse=converted.model)

    def _fault(self, converted: Converted, dense: nn.Module) -> str | None:
        """Why a converted network must not be timed: it fails, or computes something else."""
        for inputs in (self.example, _noise(self.example)):
            try:
                found = outputs_of(converted.model, inputs)
            except Exception as error:  # whatever a network does that reads its layers' weights
                told = f"{type(error).__name__}: {first_line(error)}"
                return f"the network does not run on these kernels: {told}"
            difference = relative_difference(found, outputs_of(dense, inputs))
            if not difference <= TOLERANCES["fp32"]:
                return f"on these kernels its outputs differ by {difference:.2g} of the largest one"
        return None


def _noise(example: Inputs) -> Inputs:
    """Random numbers in place of those of an example; whole numbers stay."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    inputs: Inputs = map_inputs(drawn, example)
    return inputs
