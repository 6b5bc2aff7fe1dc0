"""What a sweep's journal says of how it was asked for: its request, its config, its store."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.executors.user_code import importable
from autoprune.orchestration.folders import BASELINE_FILE, EARLY_FILE
from autoprune.orchestration.record import Record
from autoprune.orchestration.request import BaselineRequest, SweepRequest
from autoprune.orchestration.sweep import Budget
from autoprune.settings.build import build_request, default_uri, tracking_of
from autoprune.settings.compose import completed
from autoprune.settings.parts import budget_config


def config_of(folder: Path, record: Record) -> dict[str, Any]:
    """The config of a sweep where its folder is now, with the budget of its last resume.

    Raises AutopruneError for a sweep that was started from Python.
    """
    config = record.header["config"]
    if config is None:
        raise AutopruneError(
            f"{folder.name} was started from Python, where its model and task are; this command "
            "goes with sweeps that the command line started"
        )
    config = completed(config)
    budget = config["budget"] | budget_config(Budget(**record.budget))
    return {**config, "output": str(folder.parent), "budget": budget}


def request_of(folder: Path, config: Mapping[str, Any], record: Record) -> SweepRequest:
    """The request of a sweep that exists, with the baseline that it began with."""
    importable(record.header["code_paths"])
    request = build_request(config, code_paths=record.header["code_paths"])
    weights, early = str(folder / BASELINE_FILE), str(folder / EARLY_FILE)
    return replace(request, baseline=BaselineRequest(checkpoint=weights, early=early))


def uri_of(folder: Path, record: Record) -> str:
    """The tracking store of a sweep; one started from Python without config has the default."""
    from_python = record.header["config"] is None
    uri = None if from_python else tracking_of(config_of(folder, record)).uri
    return uri or default_uri(folder.parent)
