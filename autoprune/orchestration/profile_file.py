"""A network's profile as a file."""

import json
from pathlib import Path

from autoprune.domain.errors import AutopruneError
from autoprune.domain.profile import Profile
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.untrusted import UntrustedError, read_json


def write_profile(profile: Profile, file: Path) -> None:
    """Write it whole or not at all."""
    replace_text(file, json.dumps(profile.to_json()))


def read_profile(file: Path, *, without: str) -> Profile | None:
    """The profile in a file; None where there is no such file.

    Raises AutopruneError where it is damaged; `without` says what happens once it is deleted.
    """
    if not file.is_file():
        return None
    try:
        return Profile.from_json(read_json(file))
    except UntrustedError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise AutopruneError(
            f"{file} is damaged ({type(error).__name__}: {error}); restore it, or delete it: "
            f"{without}"
        ) from error
