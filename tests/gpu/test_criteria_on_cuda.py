"""Criteria score on the GPU as they do on the CPU."""

import pytest
import torch

from autoprune.pruning.criteria import CRITERIA, Scoring, score
from autoprune.pruning.graph import trace
from tests.criteria_tasks import network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_those_of_the_cpu(name: str) -> None:
    net, data = network("gated")
    net, data.x = net.double(), data.x.double()
    found = trace(net, data.example())
    here, there = (
        score(net, found.couplings, CRITERIA[name], Scoring(data, device=device))
        for device in ("cpu", "cuda")
    )
    for group, expected in here.items():
        assert there[group].device == torch.device("cpu")
        torch.testing.assert_close(there[group], expected, rtol=1e-6, atol=1e-9)
