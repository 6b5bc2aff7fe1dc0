"""Which of two models is the better one, from their evidence alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.domain.objective import Direction
from autoprune.orchestration.promotion.registry import Evidence, judge

CHAMPION = Evidence(
    metric="accuracy",
    direction=Direction.MAX,
    value=0.98,
    margin=0.01,
    speedup=2.0,
    speedup_low=1.95,
    speedup_high=2.05,
    baseline="abc",
    runtime="onnxruntime",
    device="cpu",
)


def speed(ratio: float) -> dict[str, float]:
    return {"speedup": ratio, "speedup_low": ratio * 0.97, "speedup_high": ratio * 1.03}


@pytest.mark.parametrize(
    ("change", "wins", "reason"),
    [
        (speed(2.5), True, "faster"),
        (speed(2.5) | {"value": 0.971}, True, "faster"),
        (speed(2.5) | {"value": 0.965}, False, "neither"),
        (speed(2.03), False, "neither"),
        ({"value": 0.995}, True, "better"),
        (speed(1.9) | {"value": 0.999}, False, "neither"),
        ({"runtime": "eager"}, False, "not comparable: runtime eager"),
        ({"baseline": "def"} | speed(9.0), False, "not comparable: baseline def"),
    ],
)
def test_the_champion_is_beaten_beyond_noise_only(
    change: dict[str, float], wins: bool, reason: str
) -> None:
    verdict = judge(replace(CHAMPION, **change), CHAMPION)  # type: ignore[arg-type]
    assert verdict.wins is wins
    assert verdict.reason.startswith(reason)


def test_lower_is_better_where_the_metric_says_so() -> None:
    champion = replace(CHAMPION, metric="perplexity", direction=Direction.MIN, value=20.0)
    assert judge(replace(champion, value=19.0), champion).wins
    assert not judge(replace(champion, value=21.0, **speed(3.0)), champion).wins


def test_the_first_model_is_champion() -> None:
    assert judge(CHAMPION, None).wins


EVIDENCES = st.builds(
    lambda value, ratio: replace(CHAMPION, value=value, **speed(ratio)),
    st.floats(0.9, 1.0),
    st.floats(1.0, 4.0),
)


@given(EVIDENCES)
def test_nothing_beats_itself(evidence: Evidence) -> None:
    assert not judge(evidence, evidence).wins


@given(EVIDENCES)
def test_evidence_survives_json(evidence: Evidence) -> None:
    assert Evidence.from_json(evidence.to_json()) == evidence
