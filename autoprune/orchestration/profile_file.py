"""What is known of a network before its sweep begins, as files: its profile and its ranking."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from autoprune.domain.errors import AutopruneError
from autoprune.domain.profile import Profile
from autoprune.domain.ranking import Ranking
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.untrusted import UntrustedError, read_json

Known = TypeVar("Known", Profile, Ranking)


def write_known(known: Profile | Ranking, file: Path) -> None:
    """Write it whole or not at all."""
    replace_text(file, json.dumps(known.to_json()))


def read_profile(file: Path, *, without: str) -> Profile | None:
    """The profile in a file; None where there is no such file.

    Raises AutopruneError where it is damaged; `without` says what happens once it is deleted.
    """
    return _read(file, Profile.from_json, remedy=f"restore it, or delete it: {without}")


def read_ranking(file: Path) -> Ranking | None:
    """The ranking in a file; None where there is no such file.

    Raises AutopruneError where it is damaged.
    """
    return _read(file, Ranking.from_json, remedy="restore it, or start a new sweep")


def _read(file: Path, parse: Callable[[Any], Known], *, remedy: str) -> Known | None:
    if not file.is_file():
        return None
    try:
        return parse(read_json(file))
    except UntrustedError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AutopruneError(
            f"{file} is damaged ({type(error).__name__}: {error}); {remedy}"
        ) from error
