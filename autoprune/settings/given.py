"""From objects that a script holds to a request of a comparison."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.evaluation import portable
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.quiet import QuietNode
from autoprune.measurement.runtimes import Runtime
from autoprune.measurement.runtimes.protocol import Calibrates
from autoprune.orchestration.comparison.compare import ComparisonRequest, Meter
from autoprune.orchestration.comparison.networks import (
    Network,
    Origin,
    load_network,
    of_program,
)
from autoprune.orchestration.comparison.pair import pair_of
from autoprune.settings.arguments import RUNTIME, SIZES, TRUTH, all_of, check_arguments
from autoprune.settings.measure import named_meters
from autoprune.tasks.protocol import Inputs, tensors_of

Given = nn.Module | torch.export.ExportedProgram | str | Path


def given_comparison(
    candidate: Given,
    baseline: Given,
    example: Inputs | None,
    *,
    runtimes: Sequence[str | Runtime],
    batch_sizes: Sequence[int],
    memory: bool,
    calibration: Sequence[Inputs],
) -> ComparisonRequest:
    """The request for two networks, runtimes by name or as objects, and an example input.

    Raises AutopruneError for what cannot be measured.
    """
    check_arguments(
        {"runtimes": runtimes, "batch_sizes": batch_sizes, "memory": memory},
        {
            "runtimes": (
                lambda given: bool(given) and all_of(_names_or_is_runtime)(given),
                'a list of names, such as ["eager"], or of runtimes '
                "(autoprune.measurement.runtimes)",
            ),
            "batch_sizes": SIZES,
            "memory": TRUTH,
        },
    )
    sizes = MeterSettings(batch_sizes=tuple(batch_sizes)).batch_sizes
    networks = [_network(given) for given in (baseline, candidate)]
    examples = [example, *(network.example for network in reversed(networks))]
    found = next((one for one in examples if one is not None), None)
    if found is None or not tensors_of(found):
        raise AutopruneError(
            "measure needs an example: give an input of batch size 1, a tensor, or a tuple or dict "
            "of them"
        )
    batch = len(tensors_of(found)[0]) if tensors_of(found)[0].ndim else 0
    if batch != 1:
        raise AutopruneError(
            f"the example is a batch of {batch}; give one sample, such as example[:1], and the "
            "sizes to measure as batch_sizes"
        )
    pair = pair_of(networks[0], networks[1], found)
    return ComparisonRequest(pair, _meters(runtimes, calibration), batch_sizes=sizes, memory=memory)


def _names_or_is_runtime(given: object) -> bool:
    return isinstance(given, str) or RUNTIME(given)


def _network(given: Given) -> Network:
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


def _meters(runtimes: Sequence[str | Runtime], calibration: Sequence[Inputs]) -> dict[str, Meter]:
    found: dict[str, Meter] = {}
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


def _calibrated(meter: Meter, calibration: Sequence[Inputs]) -> Meter:
    if isinstance(meter, AutopruneError):
        return meter
    runtime = meter.runtime
    if not isinstance(runtime, Calibrates) or not runtime.calibration_samples:
        return meter
    if not calibration:
        return AutopruneError(
            f"runtime {runtime.name!r} is calibrated on inputs of the network; give some as "
            "calibration=[...]"
        )
    return replace(meter, runtime=runtime.calibrated(calibration))
