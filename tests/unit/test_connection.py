"""What is said of a tracking store, and what is not."""

import traceback

import pytest
from mlflow.exceptions import MlflowException

from autoprune.domain.errors import AutopruneError, shown, without_passwords
from autoprune.orchestration.tracking.connection import (
    answering,
    check,
    check_reached,
    complaint,
    recalled,
)
from autoprune.orchestration.tracking.pages import without_login


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://host:5000", "http://host:5000"),
        ("postgresql://user:secret@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:se@cr:et@host:1/db", "postgresql://user:***@host:1/db"),
        ("postgresql://user:se/cr/et@host:1/db", "postgresql://user:***@host:1/db"),
        ("http://host:5000/runs/a@b", "http://host:5000/runs/a@b"),
        ("http://user@host", "http://user@host"),
        ("http://:secret@host", "http://:***@host"),
        ("postgresql://host/db?user=a&password=secret", "postgresql://host/db?user=a&password=***"),
        ("mssql://host/db?odbc=x;PWD=secret;y=1", "mssql://host/db?odbc=x;PWD=***;y=1"),
    ],
)
def test_a_password_is_not_shown(uri: str, expected: str) -> None:
    assert shown(uri) == expected
    assert complaint(ValueError(f"no answer from {uri} at all")) == (
        f"no answer from {expected} at all"
    )


def test_no_part_of_a_password_is_told_as_a_port() -> None:
    with pytest.raises(AutopruneError, match="write %2F for a / in a password") as caught:
        check_reached("postgresql://user:se/cret@127.0.0.1/db")
    assert "'se'" not in str(caught.value)
    assert "cret" not in str(caught.value)


def test_an_error_and_what_it_came_from_lose_their_passwords() -> None:
    error = AutopruneError("http://u:secret@h failed")
    error.__cause__ = MlflowException("asked http://u:secret@h")
    error.__cause__.__context__ = OSError(1, "no route to http://u:secret@h")
    told = "".join(traceback.format_exception(without_passwords(error)))
    assert told.count("http://u:***@h") == 3
    assert "secret" not in told


def test_a_password_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    written = "http://u:***@h"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:secret@elsewhere")
    assert recalled(written) == written
    with pytest.raises(AutopruneError, match=r"was http://u:\*\*\*@h, and its password is written"):
        check(recalled(written))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:secret@h")
    assert recalled(written) == "http://u:secret@h"
    assert recalled("http://other") == "http://other"


def test_a_page_is_named_without_a_login() -> None:
    assert without_login("https://me:secret@host:8/mlflow") == "https://host:8/mlflow"
    assert without_login("http://host") == "http://host"


def test_what_a_store_answers_badly_is_said_with_its_address() -> None:
    with (
        pytest.raises(AutopruneError, match=r"store at http://u:\*\*\*@h failed \(gone\); mend it"),
        answering("http://u:p@h"),
    ):
        raise MlflowException("gone")
