"""How the user's own modules come to the workers of a cluster."""

from pathlib import Path

import pytest

from autoprune.orchestration.executors.user_code import SENT_BY_A_JOB, runtime_env


def test_workers_get_no_environment_where_no_module_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray 2.60 starts no worker in one with an empty list of modules."""
    monkeypatch.delenv(SENT_BY_A_JOB, raising=False)
    assert runtime_env([str(tmp_path)]) == {}
