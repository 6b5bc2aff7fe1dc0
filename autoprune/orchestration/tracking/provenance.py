"""Where a sweep comes from: its configuration, the code, the installed versions, the machine."""

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from autoprune.measurement.device import cpu_model

PACKAGES = (
    "autoprune",
    "torch",
    "torch-pruning",
    "ray",
    "optuna",
    "mlflow",
    "moocore",
    "numpy",
    "onnxruntime",
    "safetensors",
)
GIT_TIMEOUT_S = 20


@dataclass(frozen=True)
class Provenance:
    """What to record of a sweep's origin.

    `config` is the resolved configuration in plain types. `commit` is empty outside a git
    repository; `diff` is the patch from that commit to the files as they are.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    commit: str = ""
    diff: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)


def gather(config: Mapping[str, Any], folder: Path) -> Provenance:
    """The provenance of a sweep started now from `folder`, on this machine."""
    return Provenance(
        config=dict(config),
        commit=_git(folder, "rev-parse", "HEAD").strip(),
        diff=_git(folder, "diff", "HEAD"),
        versions={"python": platform.python_version(), **_versions()},
        hardware=_hardware(),
    )


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; empty where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
