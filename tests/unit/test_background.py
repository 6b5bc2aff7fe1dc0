import gc
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest
import scipy.linalg  # noqa: F401  # its BLAS is loaded with it
from threadpoolctl import threadpool_info, threadpool_limits

from autoprune.orchestration.background import Background, short_turns


def test_calls_are_carried_out_one_after_the_other() -> None:
    background, done = Background("test"), list[int]()
    futures = [background.submit(done.append, number) for number in range(50)]
    assert [future.result(timeout=10) for future in futures] == [None] * 50
    assert done == list(range(50))
    background.close(wait=True)


def test_what_a_call_raises_is_its_result_and_the_next_one_runs() -> None:
    background = Background("test")
    with pytest.raises(ZeroDivisionError):
        background.submit(lambda: 1 / 0).result(timeout=10)
    assert background.submit(max, 1, 2).result(timeout=10) == 2
    assert background.submit(max, (), default=3).result(timeout=10) == 3
    background.close(wait=True)


def test_closing_waits_for_all_calls_or_cancels_them() -> None:
    background, begun, go = Background("test"), threading.Event(), threading.Event()

    def first() -> bool:
        begun.set()
        return go.wait(10)

    running, second = background.submit(first), background.submit(max, 1, 2)
    assert begun.wait(10)
    background.close(wait=False)
    go.set()
    assert running.result(timeout=10), "what runs comes to its end"
    with pytest.raises(CancelledError):
        second.result(timeout=10)

    background, go = Background("test"), threading.Event()
    futures = [background.submit(go.wait), background.submit(max, 1, 2)]
    threading.Timer(0.05, go.set).start()
    background.close(wait=True)
    assert all(future.done() for future in futures)


def test_a_call_that_never_ends_holds_up_no_exit() -> None:
    code = """
import threading
from autoprune.orchestration.background import Background
background = Background("test")
background.submit(threading.Event().wait)
background.close(wait=False)
print("the end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("the end\n", 0), done.stderr


def test_the_loop_gets_its_turn_sooner_and_all_is_as_it_was_afterwards() -> None:
    def state() -> tuple[float, int, list[int]]:
        pools = threadpool_info()
        return sys.getswitchinterval(), gc.get_freeze_count(), [p["num_threads"] for p in pools]

    with threadpool_limits(2, user_api="blas"):
        before = state()
        with short_turns():
            interval, frozen, _ = state()
            assert interval < before[0]
            assert frozen > before[1]
            blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
            assert set(blas) == {1}, "NumPy's and SciPy's, which may be one"
        assert state() == before
