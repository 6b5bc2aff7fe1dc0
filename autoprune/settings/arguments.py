"""Rules for arguments from Python, whose types nobody has checked: every fault at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.domain.errors import FaultsError
from autoprune.settings.rules import RUNTIME_NAMES, Rule


def check_arguments(given: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise FaultsError with every argument that breaks its rule."""
    faults = [
        f"{name} is {given[name]!r}; give {what}"
        for name, (fits, what) in rules.items()
        if not fits(given[name])
    ]
    if faults:
        raise FaultsError(faults)


def whole(value: Any) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return (isinstance(value, float) and math.isfinite(value)) or whole(value)


def a(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    """Whether something is an instance of a type."""
    return lambda value: isinstance(value, kind)


def all_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether something is a list or a tuple of such things."""
    return lambda value: isinstance(value, (list, tuple)) and all(map(fits, value))


def or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether something is None, or such a thing."""
    return lambda value: value is None or fits(value)


def offers(names: Sequence[str]) -> Callable[[Any], bool]:
    """Whether an object, and no class, has the attributes of a protocol."""
    return lambda value: not isinstance(value, type) and all(hasattr(value, n) for n in names)


RUNTIME = offers(RUNTIME_NAMES)
TRUTH: Rule = (a(bool), "True or False")
TEXT: Rule = (a(str), "a text")
PLACE: Rule = (a((str, Path)), "a path")
SIZES: Rule = (all_of(whole), "a list of whole numbers, such as (1, 32)")
