"""The sparsity study on a CUDA device: 2:4 kernels are used, and compute what they should."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.domain.bounds import Bounds
from autoprune.domain.trial import Speedup
from autoprune.measurement.difference import arrays_of, relative_difference
from autoprune.measurement.runtimes import TorchRuntime
from autoprune.orchestration.request import SpaceRequest
from autoprune.orchestration.studies.records import Kernels, Kind
from autoprune.orchestration.studies.sparsity import SparsityRequest, study_sparsity
from autoprune.pruning.masks import masked, two_of_four_masks
from autoprune.pruning.sparse_networks import has_two_of_four, with_csr, with_two_of_four
from tests.tiny import meter, request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
needs_kernels = pytest.mark.skipif(
    not has_two_of_four("cuda"), reason="2:4 kernels need compute capability 8.0"
)


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()),
        nn.Linear(256, 4),
    )


def halved() -> nn.Module:
    whole = network().eval().requires_grad_(False)
    return masked(whole, two_of_four_masks(whole))


@needs_kernels
def test_two_of_four_kernels_compute_what_the_masked_network_does() -> None:
    thinned, inputs = halved(), torch.randn(5, 16)
    converted = with_two_of_four(thinned, inputs, "cuda")
    # 4 outputs are too few for any kernel, 16 inputs for CUTLASS's
    assert converted.layers in (1, 2)
    assert converted.of == 3
    found = converted.model.to("cuda", torch.bfloat16)
    with torch.inference_mode():
        outputs = found(inputs.to("cuda", torch.bfloat16))
    with torch.no_grad():
        expected = thinned(inputs)
    assert relative_difference(arrays_of(outputs), arrays_of(expected)) < 5e-2


def test_csr_kernels_compute_what_the_masked_network_does() -> None:
    thinned, inputs = halved(), torch.randn(5, 16)
    converted = with_csr(thinned, inputs).model.to("cuda")
    with torch.inference_mode():
        found = converted(inputs.to("cuda"))
    with torch.no_grad():
        expected = thinned(inputs)
    assert relative_difference(arrays_of(found), arrays_of(expected)) < 1e-3


@needs_kernels
def test_a_study_measures_the_pattern_in_16_bits(tmp_path: Path) -> None:
    runtime = TorchRuntime(device="cuda")
    sweep = request(tmp_path, model=network(), space=SpaceRequest(Bounds(min_kept=0.05)))
    found = study_sparsity(
        SparsityRequest(
            sweep,
            meters=(replace(meter(), runtime=runtime),),
            kept=(0.5,),
            kinds=(Kind.STRUCTURED, Kind.MASKED, Kind.TWO_OF_FOUR),
        )
    )
    pattern = found.rows[-1]
    assert pattern.kind is Kind.TWO_OF_FOUR
    assert pattern.kernels in (Kernels(1, 3), Kernels(2, 3))
    speed = pattern.speeds["eager"]
    assert isinstance(speed, Speedup)
    assert speed.runtime == "eager bf16"
