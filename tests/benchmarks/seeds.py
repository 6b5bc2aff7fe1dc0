"""What benchmarks over seeds share: their options, their requests, and their intervals."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from autoprune.orchestration.request import SweepRequest
from autoprune.settings.build import build_request
from autoprune.settings.compose import compose_config, plain


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser of ``--json``, ``--seeds`` and ``--quick``; the first line of `doc` is its help."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    return parser


def request(words: Sequence[str]) -> SweepRequest:
    """What `autoprune sweep` would be asked by these overrides."""
    return build_request(plain(compose_config("sweep", words)))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The ends of Student's 95% interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half
