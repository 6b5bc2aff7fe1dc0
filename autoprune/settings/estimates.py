"""From a composed config to what is asked of an estimate."""

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import FP32
from autoprune.orchestration.understanding.estimate import EstimateRequest
from autoprune.settings.build import build_request
from autoprune.settings.rules import Faults, Rule, check_ranges

TWO_OR_MORE: Rule = (lambda value: value >= 2, "2 or more: the interval comes from them")


def build_estimate(config: Mapping[str, Any], *, code_paths: Sequence[str] = ()) -> EstimateRequest:
    """What a plain config of `autoprune estimate` asks for.

    Raises FaultsError with every fault of every section.
    """
    faults = Faults()
    ratios = faults.of(lambda: _ratios(config["ratio"]))
    faults.of(lambda: check_ranges("", config, {"checks": TWO_OR_MORE}))
    faults.of(lambda: _check_precisions(config["precisions"]))
    asked = {key: value for key, value in config.items() if key != "ratio"}
    sweep = faults.of(lambda: build_request(asked, code_paths=code_paths))
    faults.check()
    return EstimateRequest(sweep, ratios, checks=config["checks"])


def _ratios(given: Any) -> tuple[float, ...]:
    ratios = given if isinstance(given, list) else [given]
    fit = [type(ratio) in (int, float) and 0 < ratio < 1 for ratio in ratios]
    if not ratios or not all(fit) or len(set(ratios)) < len(ratios):
        raise AutopruneError(
            f"ratio is {given}; choose shares of every group to prune, between 0 and 1, each once, "
            "such as 0.3 or [0.3,0.5]"
        )
    return tuple(map(float, ratios))


def _check_precisions(names: Sequence[str]) -> None:
    if names and FP32 not in names:
        raise AutopruneError(
            f"precisions [{', '.join(names)}]: estimates are of networks in fp32; leave precisions "
            "out, or let a sweep tell"
        )
