"""The background writer's promises, with writes that fail on cue."""

import threading
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

from autoprune.orchestration.tracking.entries import flatten, key
from autoprune.orchestration.tracking.writer import Retry, Writer


class AwayError(Exception):
    pass


def make_writer(
    *, alive: bool = False, company_s: float = 0.0, refresh_s: float = 0.0, share: float = 0.5
) -> Writer:
    def transient(error: Exception) -> bool:
        return isinstance(error, AwayError)

    retry = Retry(transient, lambda: alive, first_s=0.001)
    return Writer(retry, company_s=company_s, refresh_s=refresh_s, share=share)


def test_writes_happen_in_order_and_a_failing_one_is_repeated() -> None:
    done: list[int] = []
    failures = iter([True, True, False])

    def shaky() -> None:
        if next(failures):
            raise AwayError
        done.append(1)

    writer = make_writer()
    writer.put("zero", lambda: done.append(0))
    writer.put("one", shaky)
    writer.put("two", lambda: done.append(2))
    assert writer.close(30) == ()
    assert done == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError("wrong"), AwayError("strange")])
def test_a_write_that_never_works_on_a_store_that_answers_is_dropped(error: Exception) -> None:
    done: list[str] = []

    def broken() -> None:
        raise error

    writer = make_writer(alive=True)
    writer.put("broken", broken)
    writer.put("next", lambda: done.append("next"))
    assert writer.close(30) == (f"broken ({error})",)
    assert done == ["next"]


def test_no_error_is_final_while_the_store_does_not_answer() -> None:
    """A server whose database has gone answers 400 to some of what it is asked (MLflow 3.17)."""
    done: list[str] = []
    errors = iter([ValueError("closed"), ValueError("closed"), ValueError("closed"), None])
    answers = iter([False, False])

    def refused() -> None:
        error = next(errors)
        if error is not None:
            raise error
        done.append("refused")

    writer = Writer(Retry(lambda _: False, lambda: next(answers), first_s=0.001), company_s=0.0)
    writer.put("refused", refused)
    writer.put("next", lambda: done.append("next"))
    assert writer.close(30) == ()
    assert done == ["refused", "next"]


def test_what_was_put_aside_is_tried_again_in_its_order() -> None:
    done: list[str] = []
    mended = threading.Event()

    def wrong(what: str) -> None:
        if not mended.is_set():
            raise ValueError(what)
        done.append(what)

    writer = make_writer(alive=True)
    writer.put("one", lambda: wrong("one"))
    writer.put("two", lambda: wrong("two"))
    writer.put("mend", mended.set)
    writer.put("three", lambda: done.append("three"))
    writer.again()
    writer.put("last", lambda: done.append("last"))
    assert writer.close(30) == ()
    assert done == ["three", "one", "two", "last"]


def test_a_store_that_takes_long_but_takes_is_waited_for() -> None:
    done: list[int] = []
    writer = make_writer()
    for number in range(6):
        writer.put(f"{number}", lambda number=number: (time.sleep(0.2), done.append(number)))
    assert writer.close(0.5) == ()
    assert done == list(range(6))


def test_what_is_left_at_the_limit_is_named() -> None:
    tried = threading.Event()

    def away() -> None:
        tried.set()
        raise AwayError

    writer = make_writer()
    writer.put("first", away)
    assert tried.wait(30)
    writer.put("second", lambda: None)
    writer.refresh("reports", lambda: None)
    assert writer.close(0.05) == ("first", "second", "reports")


def test_only_the_latest_refresh_is_written_and_the_last_always() -> None:
    done: list[int] = []
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        holding.set()
        assert release.wait(30)

    writer = make_writer(refresh_s=3600.0)
    writer.refresh("reports", hold)
    assert holding.wait(30)
    for number in range(5):
        writer.refresh("reports", lambda number=number: done.append(number))
    assert writer.behind == 1
    release.set()
    assert writer.close(30) == ()
    assert done == [4]


def test_entries_of_one_key_that_wait_go_out_together_in_order() -> None:
    done: list[object] = []
    holding, release = threading.Event(), threading.Event()

    def hold(entries: Sequence[int]) -> None:
        done.append(("a", list(entries)))
        holding.set()
        assert release.wait(30)

    writer = make_writer()
    writer.gather("a 0", 0, hold, key="a")
    assert holding.wait(30)
    for number in range(1, 4):
        writer.gather(f"a {number}", number, lambda found: done.append(("a", [*found])), key="a")
        writer.put(f"between {number}", lambda number=number: done.append(number))
        writer.gather(f"b {number}", number, lambda found: done.append(("b", [*found])), key="b")
    assert writer.behind == 10
    release.set()
    assert writer.close(30) == ()
    # what is under way takes no more; the others stand where the first of them did
    assert done == [("a", [0]), ("a", [1, 2, 3]), 1, ("b", [1, 2, 3]), 2, 3]


def test_entries_wait_for_company_though_the_store_is_idle() -> None:
    done: list[list[int]] = []
    written = threading.Event()

    def write(entries: Sequence[int]) -> None:
        done.append([*entries])
        written.set()

    writer = make_writer(company_s=1.0)
    for number in range(3):
        writer.gather(f"a {number}", number, write, key="a")
    assert written.wait(30)
    assert done == [[0, 1, 2]]
    assert writer.close(30) == ()


def test_the_end_does_not_wait_for_company() -> None:
    done: list[int] = []
    writer = make_writer(company_s=3600.0)
    writer.gather("a", 1, done.extend, key="a")
    assert writer.close(30) == ()
    assert done == [1]


def test_an_entry_that_can_never_be_written_takes_no_other_with_it() -> None:
    done: list[int] = []
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        holding.set()
        assert release.wait(30)

    def write(entries: Sequence[int]) -> None:
        if 1 in entries:
            raise ValueError("wrong")
        done.extend(entries)

    writer = make_writer(alive=True)
    writer.put("hold", hold)
    assert holding.wait(30)
    for number in range(3):
        writer.gather(f"a {number}", number, write, key="a")
    writer.put("last", lambda: done.append(9))
    release.set()
    assert writer.close(30) == ("a 1 (wrong)",)
    assert done == [0, 2, 9]


def test_a_batch_that_fails_is_repeated_as_it_was() -> None:
    tried: list[list[int]] = []
    failed, release = threading.Event(), threading.Event()

    def shaky(entries: Sequence[int]) -> None:
        tried.append(list(entries))
        if len(tried) == 1:
            failed.set()
            assert release.wait(30)
            raise AwayError

    writer = make_writer()
    writer.gather("a 0", 0, shaky, key="a")
    assert failed.wait(30)
    writer.gather("a 1", 1, shaky, key="a")
    writer.gather("a 2", 2, shaky, key="a")
    release.set()
    assert writer.close(30) == ()
    assert tried == [[0], [0], [1, 2]]


def test_entries_left_at_the_limit_are_named_one_by_one() -> None:
    tried = threading.Event()

    def away(_entries: Sequence[int]) -> None:
        tried.set()
        raise AwayError

    writer = make_writer()
    writer.gather("trial 0, prune", 0, away, key=0)
    assert tried.wait(30)
    writer.gather("trial 0, measure", 1, away, key=0)
    writer.gather("trial 0, outcome", 2, away, key=0)
    assert writer.close(0.05) == ("trial 0, prune", "trial 0, measure", "trial 0, outcome")


def test_a_refresh_that_takes_long_comes_less_often() -> None:
    began: list[float] = []

    def slow() -> None:
        began.append(time.monotonic())
        time.sleep(0.05)

    writer = make_writer(share=0.2)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        writer.refresh("reports", slow)
        time.sleep(0.005)
    assert writer.close(30) == ()
    pauses = [after - before for before, after in pairwise(began[:-1])]
    assert pauses
    assert min(pauses) >= 0.25  # the last one comes at the end, whenever that is


def test_settings_are_flattened_to_names_that_mlflow_takes() -> None:
    found = flatten({"a": {"b": 1, "c": {}}, "list": [1, "x"], "text": "x", "odd$name": None})
    assert found == {"a.b": "1", "a.c": "{}", "list": '[1, "x"]', "text": "x", "odd_name": "null"}
    assert len(key("x" * 999)) == 250
