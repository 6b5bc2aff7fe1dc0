"""What a proof must show: pure functions of its figures."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Direction, Metric
from autoprune.domain.trial import Speedup
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import TorchRuntime
from autoprune.orchestration.promotion.promote import ProofGate, faults
from autoprune.orchestration.promotion.proof import Proof, Subject, difference, prove_afresh
from tests.pruning_tasks import Blobs, small_net

SPEED = Speedup(2.0, 1.9, 2.1, 2.0, 1.0, samples=40, runtime="eager", device="cpu", noise=0.01)
PROOF = Proof(0.0, {"m": 0.95}, {"m": 0.96}, SPEED)
MORE, LESS = Metric("m"), Metric("m", Direction.MIN)


def test_a_sound_proof_has_no_fault() -> None:
    assert faults(PROOF, ProofGate(min_speedup=1.5, max_drop=0.02), MORE) == []


@pytest.mark.parametrize(
    ("proof", "gate", "message"),
    [
        (replace(PROOF, difference=1e-3), ProofGate(), "outputs differ by 0.001"),
        (replace(PROOF, difference=math.inf), ProofGate(), "outputs differ by inf"),
        (PROOF, ProofGate(min_speedup=1.95), "speedup 2.000 .*lower bound is not above 1.95"),
        (PROOF, ProofGate(max_drop=0.001), "m on test 0.9500 .* worse by more than 0.001"),
        (replace(PROOF, candidate={"m": math.nan}), ProofGate(), "m on test nan"),
        (replace(PROOF, candidate={"m": 0.8, "m_high": 0.85}), ProofGate(), r"at best 0.8500"),
    ],
)
def test_each_fault_is_told_with_its_figures(proof: Proof, gate: ProofGate, message: str) -> None:
    (found,) = faults(proof, gate, MORE)
    assert re.search(message, found)


def test_all_faults_are_told_at_once() -> None:
    proof = replace(PROOF, difference=1.0, candidate={"m": 0.1})
    assert len(faults(proof, ProofGate(min_speedup=9.0), MORE)) == 3


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_less_is_judged_as_more_turned_around(found: float, base: float, allowed: float) -> None:
    gate = ProofGate(max_drop=allowed)
    more = faults(replace(PROOF, candidate={"m": found}, baseline={"m": base}), gate, MORE)
    less = faults(replace(PROOF, candidate={"m": -found}, baseline={"m": -base}), gate, LESS)
    assert bool(more) == bool(less)


def test_an_interval_counts_at_its_better_end() -> None:
    candidate = {"m": 20.0, "m_low": 10.5, "m_high": 30.0}
    proof = replace(PROOF, candidate=candidate, baseline={"m": 10.0})
    assert faults(proof, ProofGate(max_drop=1.0), LESS) == []
    assert faults(proof, ProofGate(max_drop=0.1), LESS)


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=5), st.floats(0.001, 1))
def test_outputs_are_as_far_apart_as_their_largest_difference(
    values: list[float], apart: float
) -> None:
    saved = torch.tensor([*values, 10.0], dtype=torch.float64)
    moved = saved.clone()
    moved[0] += apart
    assert difference([saved], [saved]) == 0.0
    assert difference([saved, saved], [saved, moved]) == pytest.approx(apart / 10)


@pytest.mark.parametrize(
    ("saved", "found"),
    [
        ([torch.ones(2)], [torch.ones(3)]),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)]),
        ([torch.ones(2), torch.ones(2)], [torch.ones(2), torch.tensor([1.0, math.nan])]),
        ([torch.tensor([math.inf])], [torch.tensor([math.inf])]),
    ],
)
def test_outputs_that_cannot_be_compared_are_infinitely_far_apart(
    saved: list[torch.Tensor], found: list[torch.Tensor]
) -> None:
    assert difference(saved, found) == math.inf


def test_a_proof_is_json_both_ways() -> None:
    assert Proof.from_json(PROOF.to_json()) == PROOF


def test_a_proof_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    meter = PairedMeter(TorchRuntime(), NoGate())
    subject = Subject(tmp_path / "none", small_net(), Blobs(), meter)
    root = str(Path(__file__).parents[2])
    with pytest.raises(AutopruneError, match=r"could not be made: .*no recipe at .*; mend that"):
        prove_afresh(subject, code_paths=[root])
