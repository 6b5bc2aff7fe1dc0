"""autoprune finds the fastest version of a trained network worth having."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoprune.api import (
        AutopruneError,
        Distillation,
        FitPlan,
        Front,
        Ladder,
        Member,
        Reconstruction,
        Recovery,
        Schedule,
        Sparsity,
        load,
        measure,
        search,
        train,
    )

__all__ = [
    "AutopruneError",
    "Distillation",
    "FitPlan",
    "Front",
    "Ladder",
    "Member",
    "Reconstruction",
    "Recovery",
    "Schedule",
    "Sparsity",
    "load",
    "measure",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    # loaded when first asked for: `import autoprune.domain` then needs no torch, ray or mlflow
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autoprune import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
