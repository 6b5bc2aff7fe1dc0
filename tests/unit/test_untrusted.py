"""Files that may be a stranger's: what is read of them, and what is refused unread."""

import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.orchestration.untrusted import (
    UntrustedError,
    check_archive,
    check_file,
    check_part,
    read_bytes,
    read_json,
)
from tests.hostile import (
    DEEP,
    IN_PLACE_OF_A_FILE,
    bomb,
    claiming,
    in_time,
    link_record,
    overlapping,
    packed,
)

RECORDS = {"archive/data.pkl": b"pickled", "archive/data/0": bytes(400), "archive/version": b"3"}


@pytest.mark.parametrize("kind", IN_PLACE_OF_A_FILE)
def test_what_is_no_plain_file_of_the_folder_is_refused_and_never_waited_for(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.json"
    IN_PLACE_OF_A_FILE[kind](path)
    for read in (read_json, lambda p: read_bytes(p, most=1000)):
        with pytest.raises(UntrustedError, match=r"recipe\.json (is|has) "):
            in_time(lambda read=read: read(path))


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    with pytest.raises(UntrustedError, match=r"some has 5 bytes, 4 at most are read here"):
        read_bytes(path, most=4)
    with pytest.raises(UntrustedError, match="has 5 bytes, 4 at most"):
        check_file(path, most=4)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none", most=4)


def test_a_file_that_says_that_it_is_empty_is_bounded_too() -> None:
    with pytest.raises(UntrustedError, match="10 at most"):
        read_bytes(Path("/proc/self/status"), most=10)


@pytest.mark.parametrize("text", [DEEP, DEEP.replace("[", '{"a":').replace("]", "}"), "[1, 2", ""])
def test_json_that_is_none_or_nests_without_end_is_a_value_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(text)
    with pytest.raises(ValueError, match=r"nested too deep|Expecting"):
        read_json(tmp_path / "deep.json")


def test_no_link_is_followed_on_the_way_to_a_file_and_the_users_own_is(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "data").mkdir(parents=True)
    (real / "data" / "model.pt2").touch()
    named = tmp_path / "named"
    named.symlink_to(real)
    assert check_part(named, "data/model.pt2") == named / "data" / "model.pt2"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data").symlink_to(real / "data")
    with pytest.raises(UntrustedError, match=r"other/data is a symbolic link"):
        check_part(tmp_path / "other", "data/model.pt2")


def archive(folder: Path, content: bytes) -> Path:
    path = folder / "archive.pt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("named", [True, False])
def test_what_torch_saves_is_an_archive(tmp_path: Path, named: bool) -> None:
    buffer = io.BytesIO()
    tensors = {"a": torch.zeros(3), "b": torch.ones(1000, 10)}
    torch.save(tensors, tmp_path / "x.pt" if named else buffer)
    if not named:
        (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    check_archive(tmp_path / "x.pt")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}(/[a-z0-9_]{1,8}){0,3}", fullmatch=True),
        st.binary(max_size=200),
        max_size=12,
    )
)
def test_whatever_lies_plainly_in_an_archive_passes(
    tmp_path_factory: pytest.TempPathFactory, records: dict[str, bytes]
) -> None:
    check_archive(archive(tmp_path_factory.mktemp("law"), packed(records)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bomb("archive/data/0"), r"unpacks to more than its own \d+ bytes"),
        (lambda: packed({"a": b"abc"}, compression=zipfile.ZIP_DEFLATED), "the packed record 'a'"),
        (lambda: overlapping("archive/data/", 9), "unpacks to more than its own"),
        (lambda: claiming(10**9), "lists 1000000000 records in 46000000000 bytes"),
        (lambda: packed({**RECORDS, "../../x": b"x"}), r"a record outside of it, '\.\./\.\./x'"),
        (lambda: packed({**RECORDS, "/etc/x": b"x"}), r"a record outside of it, '/etc/x'"),
        (
            lambda: packed({**RECORDS, "a\\..\\..\\x": b"x"}),
            "a record outside of it.*; save it again",
        ),
        (
            lambda: link_record("archive/data/0", "/etc/passwd"),
            "the link 'archive/data/0'; save it again with torch",
        ),
        (lambda: packed({**RECORDS, "s/m.pt": bomb("m/data/0")}), r"s/m\.pt unpacks to more"),
        (lambda: packed(RECORDS) + b"\0", "does not end as an archive of torch does"),
        (lambda: packed(RECORDS)[:-2] + b"\1\0x", "does not end as an archive of torch does"),
    ],
    ids=[
        *("bomb", "packed", "overlapping", "claims", "parents", "absolute", "backslashes", "link"),
        *("bomb inside", "trailing", "comment"),
    ],
)
def test_an_archive_that_is_none_of_torchs_is_refused_unpacked(
    make: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    path = archive(tmp_path, make())
    began = time.perf_counter()
    with pytest.raises((UntrustedError, zipfile.BadZipFile), match=message):
        check_archive(path)
    assert time.perf_counter() - began < 5


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as two:
        two.writestr("a/data.pkl", b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            two.writestr("a/data.pkl", b"two")
    with pytest.raises(UntrustedError, match="two records of one name"):
        check_archive(archive(tmp_path, buffer.getvalue()))
