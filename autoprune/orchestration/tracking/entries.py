"""Metrics, parameters and tags of a run, as MLflow takes them."""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

PARAM_LENGTH = 6000
TAG_LENGTH = 8000
KEY_LENGTH = 250


@dataclass(frozen=True, slots=True)
class Entries:
    """What is to be written to a run: numbers, parameters (written once), and tags.

    The numbers are of a `step`, and were found `at_ms`, which is now where it is None.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    step: int = 0
    at_ms: int | None = None


def log_entries(client: MlflowClient, run_id: str, *entries: Entries) -> None:
    """Write entries together; of a tag the last one counts, and numbers that are not finite go.

    MLflow's client divides them into as few requests as its limits allow.
    """
    now = now_ms()
    metrics = [
        Metric(key(name), float(value), now if some.at_ms is None else some.at_ms, some.step)
        for some in entries
        for name, value in some.metrics.items()
        if math.isfinite(value)
    ]
    params = {key(name): value for some in entries for name, value in some.params.items()}
    tags = {key(name): value for some in entries for name, value in some.tags.items()}
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param(name, value[:PARAM_LENGTH]) for name, value in params.items()],
        tags=[RunTag(name, value[:TAG_LENGTH]) for name, value in tags.items()],
    )


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
