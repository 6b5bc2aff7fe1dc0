"""Metrics, parameters and tags of a run within MLflow's limits on a request."""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

METRICS_A_REQUEST = 1000
PARAMS_A_REQUEST = 100
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
KEY_LENGTH = 250

T = TypeVar("T")


@dataclass(frozen=True)
class Entries:
    """What one call writes to a run: numbers, parameters (written once), and tags."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def log_entries(
    client: MlflowClient, run_id: str, entries: Entries, *, step: int = 0, at_ms: int | None = None
) -> None:
    """Write entries in as many requests as MLflow 3.17 wants; numbers that are not finite go."""
    at_ms = now_ms() if at_ms is None else at_ms
    metrics = [
        Metric(key(name), float(value), at_ms, step)
        for name, value in entries.metrics.items()
        if math.isfinite(value)
    ]
    params = [Param(key(name), value[:PARAM_LENGTH]) for name, value in entries.params.items()]
    tags = [RunTag(key(name), value[:TAG_LENGTH]) for name, value in entries.tags.items()]
    for some_metrics in _chunks(metrics, METRICS_A_REQUEST):
        client.log_batch(run_id, metrics=some_metrics)
    for some_params in _chunks(params, PARAMS_A_REQUEST):
        client.log_batch(run_id, params=some_params)
    for some_tags in _chunks(tags, PARAMS_A_REQUEST):
        client.log_batch(run_id, tags=some_tags)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted name; lists and other values as JSON.

    >>> flatten({"budget": {"trials": 24}, "space": {"exclude": ["head"]}})
    {'budget.trials': '24', 'space.exclude': '["head"]'}
    """
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            found[key(f"{prefix}{name}")] = text
    return found


def key(name: str) -> str:
    """A name as MLflow takes it: letters, digits and ``_ - . space : /``, at most 250."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:KEY_LENGTH]


def now_ms() -> int:
    """The time of day in milliseconds, as MLflow stamps what it stores."""
    return time.time_ns() // 1_000_000


def _chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
