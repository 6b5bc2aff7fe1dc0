"""Checks that the arguments of every built-in network go through."""

from autoprune.domain.errors import AutopruneError


def require_at_least(model: str, low: int, **values: int) -> None:
    """Raise AutopruneError for an argument of `model` that is no integer of `low` or more."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise AutopruneError(
                f"model {model!r}: {name} is {value!r}; choose an integer of {low} or more"
            )


def require_positive(model: str, **values: float) -> None:
    """Raise AutopruneError for a multiplier of `model` that is no number above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise AutopruneError(f"model {model!r}: {name} is {value!r}; choose a number above 0")
