"""Whether two networks can be compared, and what is known of both before any clock runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.measurement.cost import costs
from autoprune.measurement.difference import arrays_of, relative_difference
from autoprune.measurement.prepared import repeated
from autoprune.orchestration.comparison.networks import Network, Takes
from autoprune.orchestration.comparison.records import Facts
from autoprune.tasks.protocol import Inputs, forward, tensors_of


@dataclass(frozen=True, slots=True)
class NetworkPair:
    """Two networks that fit together, and an input of batch size 1 that both take.

    `difference` is how far their outputs on it are apart, `facts` are the baseline's and the
    candidate's. `sample_mb` is the memory that one more sample of a batch takes, of the network
    that needs more. `strange` says of each what outputs nobody would serve.
    """

    baseline: Network
    candidate: Network
    example: Inputs
    difference: float
    facts: tuple[Facts, Facts]
    sample_mb: float
    strange: tuple[str, ...] = ()

    @property
    def networks(self) -> Mapping[str, Network]:
        """Both by their roles, the baseline first."""
        return {"baseline": self.baseline, "candidate": self.candidate}

    @property
    def batches(self) -> tuple[int, float]:
        """The least and the most samples that both take at once."""
        return common_batches(self.baseline, self.candidate)


def pair_of(baseline: Network, candidate: Network, example: Inputs) -> NetworkPair:
    """The two networks, once it is known that both take the example and give the same shapes.

    Raises AutopruneError where they do not fit together.
    """
    both = {"baseline": baseline, "candidate": candidate}
    low, high = common_batches(baseline, candidate)
    if low > high:
        raise AutopruneError(
            f"the candidate takes {candidate.batches_text} and the baseline "
            f"{baseline.batches_text}; export them for the same batch sizes, or with the batch free"
        )
    _check_alike(baseline, candidate)
    inputs = repeated(example, low)
    outputs = [_outputs(role, network, inputs) for role, network in both.items()]
    if [array.shape for array in outputs[0]] != [array.shape for array in outputs[1]]:
        raise AutopruneError(
            f"the baseline gives outputs of shape {_shapes(outputs[0])} and the candidate of "
            f"{_shapes(outputs[1])}; compare networks of one task"
        )
    paper = [costs(network.model, inputs) for network in both.values()]
    baseline_facts, candidate_facts = (
        Facts(network.source, cost["params"], cost["macs"] / low, cost["size_mb"])
        for network, cost in zip(both.values(), paper, strict=True)
    )
    return NetworkPair(
        baseline,
        candidate,
        example,
        difference=relative_difference(outputs[1], outputs[0]),
        facts=(baseline_facts, candidate_facts),
        sample_mb=max((cost["peak_memory_mb"] - cost["size_mb"]) / low for cost in paper),
        strange=tuple(_strange(dict(zip(both, outputs, strict=True)))),
    )


def _strange(outputs: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    for role, arrays in outputs.items():
        if not all(np.isfinite(array).all() for array in arrays):
            yield f"the {role} gives NaN or infinity on the example input"
        elif not any(array.any() for array in arrays):
            yield f"the {role} gives nothing but zeros on the example input"


def common_batches(*networks: Network) -> tuple[int, float]:
    """The least and the most samples that all of the networks take at once."""
    lows, highs = zip(*(network.batches for network in networks), strict=True)
    return max(lows), min(highs)


def _check_alike(baseline: Network, candidate: Network) -> None:
    """Raise AutopruneError where the files of both say that they take different inputs."""
    if baseline.takes is None or candidate.takes is None:
        return
    one, other = (" and ".join(map(str, n.takes or ())) for n in (candidate, baseline))
    if not _all_agree(baseline.takes, candidate.takes):
        raise AutopruneError(
            f"the candidate takes {one} and the baseline {other}; compare networks of one task"
        )


def _all_agree(ones: Sequence[Takes], others: Sequence[Takes]) -> bool:
    return len(ones) == len(others) and all(map(_agree, ones, others))


def _agree(one: Takes, other: Takes) -> bool:
    return (
        one.dtype == other.dtype
        and len(one.sizes) == len(other.sizes)
        and all(
            a is None or b is None or a == b for a, b in zip(one.sizes, other.sizes, strict=True)
        )
    )


def _outputs(role: str, network: Network, inputs: Inputs) -> list[Any]:
    given = tensors_of(inputs)
    own = [Takes(tuple(tensor.shape), tensor.dtype) for tensor in given]
    if network.takes is not None and not _all_agree(network.takes, own):
        raise AutopruneError(
            f"the {role} {network.source} takes {' and '.join(map(str, network.takes))}, and the "
            f"example input has shape {_shapes(given)}; set experiment=..., or data and task, to "
            "those that it was made for"
        )
    try:
        with torch.no_grad():
            outputs = arrays_of(forward(network.model, inputs))
    except Exception as error:  # whatever the network's code runs into
        raise AutopruneError(
            f"the {role} {network.source} does not take the example input of shape "
            f"{_shapes(given)} ({type(error).__name__}: {first_line(error)}); compare networks of "
            "one task, and set experiment=..., or data and task, to theirs"
        ) from error
    if not outputs:
        raise AutopruneError(f"the {role} {network.source} returns no tensor; name one that does")
    return outputs


def _shapes(tensors: Sequence[Any]) -> str:
    return " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
