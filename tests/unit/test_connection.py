"""What is said of a tracking store, and what is not."""

import pytest
from mlflow.exceptions import MlflowException

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.tracking.connection import answering, complaint
from autoprune.orchestration.urls import shown


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://host:5000", "http://host:5000"),
        ("postgresql://user:secret@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:se@cr:et@host:1/db", "postgresql://user:***@host:1/db"),
        ("http://user@host", "http://user@host"),
    ],
)
def test_a_password_is_not_shown(uri: str, expected: str) -> None:
    assert shown(uri) == expected
    assert complaint(ValueError(f"no answer from {uri} at all")) == (
        f"no answer from {expected} at all"
    )


def test_what_a_store_answers_badly_is_said_with_its_address() -> None:
    with (
        pytest.raises(AutopruneError, match=r"store at http://u:\*\*\*@h failed \(gone\); mend it"),
        answering("http://u:p@h"),
    ):
        raise MlflowException("gone")
