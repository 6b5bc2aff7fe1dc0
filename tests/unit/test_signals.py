"""What the first signal says, and to whom."""

import signal

import pytest

from autoprune.orchestration.interrupt import Interrupt, OnInterrupt


@pytest.mark.parametrize("policy", OnInterrupt)
def test_the_first_signal_calls_the_hook_and_the_second_ends(policy: OnInterrupt) -> None:
    heard: list[OnInterrupt] = []
    interrupt = Interrupt(policy, hook=heard.append)
    with interrupt.listening():
        signal.raise_signal(signal.SIGINT)
        assert heard == [policy]
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert heard == [policy]
