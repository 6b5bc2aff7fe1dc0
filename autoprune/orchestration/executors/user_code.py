"""The user's own modules: put where Python finds them, here and in a cluster's workers."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

OURS = ("__main__", "autoprune", "autoprune_agents")
SENT_BY_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray sets for a job's driver, whose workers have the job's folder."""


def importable(places: Iterable[str]) -> None:
    """Put folders of the user's modules before this process's import path."""
    sys.path[:0] = [place for place in places if place not in sys.path]


def users_own(name: str, places: Iterable[str]) -> Path | None:
    """Where a module that is loaded lies below one of the places; None for every other one."""
    module = sys.modules.get(name)
    found = None if module is None else _place(module)
    inside = found is not None and str(found.parent) in places
    return found if inside else None


def runtime_env(code_paths: Sequence[str]) -> Mapping[str, Any]:
    """The runtime environment that brings workers the modules which were loaded from folders.

    What the modules themselves load later is brought where it is a part of the same package.
    """
    if SENT_BY_A_JOB in os.environ:
        return {}
    modules = sorted(_loaded_from(code_paths))
    # Ray 2.60 cannot set up an environment with an empty list of modules: no worker would start
    return {"py_modules": modules} if modules else {}


def _loaded_from(code_paths: Sequence[str]) -> Iterator[str]:
    """The files of single modules and the folders of packages."""
    places = {Path(path).resolve() for path in code_paths}
    for name, module in list(sys.modules.items()):
        found = None if "." in name or name in OURS else _place(module)
        if found is not None and found.parent in places:
            yield str(found)


def _place(module: ModuleType) -> Path | None:
    """The folder of a package, or the file of a module in Python."""
    folders = list(getattr(module, "__path__", ()))
    if folders:
        return Path(folders[0]).resolve()
    file = Path(getattr(module, "__file__", None) or "")
    return file.resolve() if file.suffix == ".py" else None
