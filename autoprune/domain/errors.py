"""The errors a user can cause. Each message states the rule, the value and the remedy."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class AutopruneError(ValueError):
    """A fault in what the user asked for; the command ends with exit code 2."""


class FaultsError(AutopruneError):
    """Several faults found together, one line each, so that all can be mended at once."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return (type(self), (list(self.faults),))


def broken_rules(record: object, rules: Mapping[str, tuple[bool, str]]) -> list[str]:
    """A fault for every field of a record whose rule does not hold; `rules` say of each field
    whether it does, and what to choose instead.
    """
    return [
        f"{name} is {getattr(record, name)}; choose {remedy}"
        for name, (holds, remedy) in rules.items()
        if not holds
    ]


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error's message, `most` characters at most; its type without one."""
    lines = str(error).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__


def shown(text: str) -> str:
    """A text without the passwords of the URLs in it.

    >>> shown("no answer from postgresql://me:secret@host/db?sslpassword=secret")
    'no answer from postgresql://me:***@host/db?sslpassword=***'
    """
    # a password may have a slash in it, which a port that a path follows does not
    text = re.sub(r"://([^:/@\s]*):(?:[^\s/]*|(?!\d+/)[^\s@]*)@", r"://\1:***@", text)
    return re.sub(r"(?i)([?&;]\w*(?:password|passwd|pwd|secret|token)=)[^&;\s'\"]*", r"\1***", text)


def without_passwords(error: E) -> E:
    """The same error, with `shown` texts in it and in what it came from: tracebacks print them."""
    link: BaseException | None = error
    while link is not None:
        link.args = tuple(shown(part) if isinstance(part, str) else part for part in link.args)
        if isinstance(link, OSError) and link.strerror:
            link.strerror = shown(link.strerror)
        link = link.__cause__ or link.__context__
    return error


def check_once(key: str, names: Sequence[str], *, remedy: str = "") -> None:
    """Raise AutopruneError where the list under `key` has a name more than once.

    `remedy` is what else there is to do than naming it once.
    """
    again = sorted({name for name in names if list(names).count(name) > 1})
    if again:
        raise AutopruneError(
            f"{key} names {', '.join(again)} more than once; name each once{remedy}"
        )


def unknown(what: str, name: object, choices: Iterable[str]) -> AutopruneError:
    """The error for a `name` that is none of `choices`: lists them, the near miss first.

    `what` says what the name stands for (``sampler``).
    """
    known = sorted(choices)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? Otherwise " if near else ""
    return AutopruneError(f"{what} {name!r} is not known; {hint}choose from {known}")
