"""Whether a record has values of the types that it names: scripts are not type-checked."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from autoprune.domain.errors import FaultsError


def _number(*kinds: type) -> Callable[[Any], bool]:
    """True and False are no numbers, though Python has them as such."""
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


def _several(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A text, which is a sequence of texts, is no list of them."""
    return lambda value: isinstance(value, (list, tuple)) and all(map(fits, value))


_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_number(int), "a whole number"),
    float: (_number(int, float), "a number"),
    bool: (lambda value: isinstance(value, bool), "True or False"),
    str: (lambda value: isinstance(value, str), "a text"),
    type(None): (lambda value: value is None, "None"),
    Sequence[str]: (_several(lambda value: isinstance(value, str)), "a list of texts"),
    tuple[int, ...]: (_several(_number(int)), "a list of whole numbers"),
}


def check_types(record: Any) -> None:
    """Raise FaultsError with every field of a dataclass that is not what its annotation says.

    It knows the types of `_KINDS`, classes, and either of several of these.
    """
    hints = get_type_hints(type(record))
    faults = []
    for field in fields(record):
        value, hint = getattr(record, field.name), hints[field.name]
        kinds = (hint,) if hint in _KINDS else get_args(hint) or (hint,)
        if not any(_fits(value, kind) for kind in kinds):
            words = ", or ".join(map(_word, kinds))
            faults.append(f"{field.name} is {value!r}; give {words}")
    if faults:
        raise FaultsError(faults)


def _fits(value: Any, kind: Any) -> bool:
    return _KINDS[kind][0](value) if kind in _KINDS else isinstance(value, kind)


def _word(kind: Any) -> str:
    return _KINDS[kind][1] if kind in _KINDS else f"a {kind.__name__}"
