"""What a trial asks of a node, and how many of them the nodes of a cluster hold at a time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from autoprune.domain.errors import AutopruneError

SPECK = 0.001
"""What a trial takes of the resource by which Ray marks a node's accelerator; a node offers 1."""

GIGABYTE = 1e9

OWN_OPTIONS = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_gb"}
"""Ray's names of what has an option of its own."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster, or a kind of node of which it may start up to `most`.

    `offers` has Ray's names: ``CPU``, ``GPU``, ``memory`` in bytes, and resources of the user's.
    """

    name: str
    offers: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    most: float = 1

    def __str__(self) -> str:
        labels = [f"{name}={value}" for name, value in sorted(self.labels.items())]
        offers = [_amount(name, amount) for name, amount in sorted(self.offers.items())]
        return f"{self.name} ({', '.join([*offers, *labels]) or 'nothing'})"


@dataclass(frozen=True, slots=True)
class Demand:
    """What one trial takes of a node for as long as it runs.

    GPUs may be fractions: two trials with half of one share it. `resources` are the user's own by
    name, `accelerator` a type as Ray has it (``A100``), and `labels` what the node's must be.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    accelerator: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        amounts = {"cpus": self.cpus, "gpus": self.gpus, "memory_gb": self.memory_gb}
        amounts |= {f"resources.{name}": amount for name, amount in self.resources.items()}
        for name, option in OWN_OPTIONS.items():
            if name in self.resources:
                raise AutopruneError(f"executor.resources.{name} is executor.{option}; set that")
        for name, amount in amounts.items():
            if not math.isfinite(amount) or amount < 0:
                raise AutopruneError(f"executor.{name} is {amount}; choose 0 or more")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise AutopruneError(
                f"executor.gpus is {self.gpus:g}; choose a part of one GPU or a whole number"
            )
        if not self.bundle:
            raise AutopruneError("a trial asks for nothing; give executor.cpus, gpus or resources")

    @property
    def bundle(self) -> dict[str, float]:
        """What it takes, by Ray's names."""
        found = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gb * GIGABYTE}
        found |= self.resources
        if self.accelerator is not None:
            found[f"accelerator_type:{self.accelerator}"] = SPECK
        return {name: amount for name, amount in found.items() if amount > 0}

    def fits(self, node: Node) -> int:
        """How many such trials a node holds at a time."""
        if any(node.labels.get(name) != value for name, value in self.labels.items()):
            return 0
        # the tolerance is for fractions: ten trials of a tenth of a GPU fit one
        return min(
            int(node.offers.get(name, 0.0) / amount + 1e-9) for name, amount in self.bundle.items()
        )

    def __str__(self) -> str:
        labels = [f"{name}={value}" for name, value in sorted(self.labels.items())]
        return ", ".join([*(_amount(*part) for part in sorted(self.bundle.items())), *labels])


def slots_of(
    demand: Demand, nodes: Sequence[Node], *, coming: Sequence[Node] = (), wanted: int | None = None
) -> int:
    """How many trials run at a time on `nodes`, or on all that there may be of the kinds `coming`.

    Nodes of those kinds that are there already count among them. As many as are wanted, or as fit
    where None are. Raises AutopruneError, with what there is, where none would ever fit, or not as
    many as are wanted.
    """
    there = _held(demand, nodes)
    most = max(there, _held(demand, coming))
    if most >= (wanted or 1):
        return int(wanted or (most if math.isfinite(most) else max(there, 1)))
    have = "; ".join(map(str, [*nodes, *coming])) or "no node"
    if most == 0:
        raise AutopruneError(
            f"no node can hold a trial, which asks for {demand}; there are {have}; lower what "
            "executor.cpus, gpus, memory_gb, resources, accelerator or labels ask for, or start "
            "such a node"
        )
    raise AutopruneError(
        f"{wanted} trials at a time, each with {demand}, do not fit: {most:g} do; there are {have}"
        "; lower executor.slots or what a trial asks for"
    )


def _held(demand: Demand, nodes: Iterable[Node]) -> float:
    """How many trials nodes hold together; infinitely many where a kind of node has no bound."""
    # nodes that hold none are left out: none of infinitely many would be NaN
    return sum(fit * node.most for node in nodes if (fit := demand.fits(node)))


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / GIGABYTE:.4g} GB of memory"
    if name.startswith("accelerator_type:"):
        return name.partition(":")[2]
    plural = "s" if name in ("CPU", "GPU") and amount != 1 else ""
    return f"{amount:g} {name}{plural}"
