"""From objects that a script holds to the parts of a comparison."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.evaluation import portable
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.quiet import QuietNode
from autoprune.measurement.runtimes import Runtime
from autoprune.measurement.runtimes.protocol import uncalibrated
from autoprune.orchestration.comparison.compare import MeterOrNone, NoMeter
from autoprune.orchestration.comparison.networks import (
    Network,
    Origin,
    load_network,
    of_program,
)
from autoprune.orchestration.comparison.pair import NetworkPair, pair_of
from autoprune.settings.arguments import RUNTIME, all_of
from autoprune.settings.measure import named_meters
from autoprune.settings.rules import Rule
from autoprune.tasks.protocol import Inputs, tensors_of

Given = nn.Module | torch.export.ExportedProgram | str | Path


RUNTIMES: Rule = (
    lambda given: bool(given) and all_of(lambda one: isinstance(one, str) or RUNTIME(one))(given),
    'a list of names, such as ["eager"], or of runtimes (autoprune.measurement.runtimes)',
)


def given_pair(candidate: Given, baseline: Given, example: Inputs | None) -> NetworkPair:
    """The two networks with an example input: the one that is given, or a file's own.

    Raises AutopruneError for what cannot be measured.
    """
    if example is not None and not tensors_of(example):
        raise AutopruneError(
            f"the example is a {type(example).__name__}; give an input of batch size 1: a tensor, "
            "or a tuple or dict of them"
        )
    networks = [_network(given) for given in (baseline, candidate)]
    examples = [example, *(network.example for network in reversed(networks))]
    found = next((one for one in examples if one is not None), None)
    if found is None or not tensors_of(found):
        raise AutopruneError(
            "measure needs an example: give an input of batch size 1, a tensor, or a tuple or dict "
            "of them"
        )
    if not tensors_of(found)[0].ndim:
        raise AutopruneError("the example is a single number; give an input of batch size 1")
    batch = len(tensors_of(found)[0])
    if batch != 1:
        raise AutopruneError(
            f"the example is a batch of {batch}; give one sample, such as example[:1], and the "
            "sizes to measure as batch_sizes"
        )
    return pair_of(networks[0], networks[1], found)


def given_meters(
    runtimes: Sequence[str | Runtime], calibration: Sequence[Inputs]
) -> dict[str, MeterOrNone]:
    """The meters of runtimes, by their names or as objects. Raises AutopruneError for others."""
    found: dict[str, MeterOrNone] = {}
    for runtime in runtimes:
        if isinstance(runtime, str):
            meters = named_meters([runtime])
        else:
            meters = {runtime.name: PairedMeter(runtime, QuietNode())}
        twice = sorted(meters.keys() & found.keys())
        if twice:
            raise AutopruneError(
                f"two of the runtimes are called {twice[0]!r}; measure them one after the other"
            )
        found |= {name: _calibrated(meter, calibration) for name, meter in meters.items()}
    return found


def _network(given: Given) -> Network:
    if isinstance(given, torch.jit.ScriptModule):
        raise AutopruneError(
            f"{type(given).__name__} is compiled by TorchScript; give the module that it was made "
            "from, or an exported program"
        )
    if isinstance(given, nn.Module):
        return Network(portable(given), type(given).__name__)
    if isinstance(given, torch.export.ExportedProgram):
        return of_program(given, "the exported program")
    if isinstance(given, (str, Path)):
        return load_network(str(given), Origin(_no_code, named=False))
    raise AutopruneError(
        f"{given!r} is no network; give an nn.Module, an exported program, or a path"
    )


def _no_code() -> nn.Module:
    raise AutopruneError("a checkpoint holds no network; load it into yours, and give that one")


def runtime_named(name: str) -> Runtime:
    """The runtime of that name. Raises AutopruneError where there is none, or it cannot be had."""
    meter = named_meters([name])[name]
    if isinstance(meter, NoMeter):
        raise AutopruneError(meter.reason)
    return meter.runtime


def _calibrated(meter: MeterOrNone, calibration: Sequence[Inputs]) -> MeterOrNone:
    runtime = None if isinstance(meter, NoMeter) else uncalibrated(meter.runtime)
    if isinstance(meter, NoMeter) or runtime is None:
        return meter
    if not calibration:
        return NoMeter(
            f"runtime {runtime.name!r} is calibrated on inputs of the network; give some as "
            "calibration=[...]"
        )
    return replace(meter, runtime=runtime.calibrated(calibration))
