import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from autoprune.measurement import load
from autoprune.measurement.load import NodeWatch


def test_a_busy_neighbour_is_seen():
    watch = NodeWatch()
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        found = watch.read()
    finally:
        neighbour.kill()
        neighbour.wait()
    assert found.others > 0.2
    assert 0.0 <= found.steal <= 1.0


def test_what_this_process_does_is_not_others():
    def seconds():
        """Of all processes, of this one, and of the clock."""
        busy_s = load._busy_s(psutil.cpu_times())
        return np.array([busy_s, time.process_time(), time.perf_counter()])

    before, watch = seconds(), NodeWatch()
    while time.perf_counter() < before[-1] + 0.5:
        pass
    found = watch.read()
    everyone_s, own_s, span_s = seconds() - before
    assert own_s > 0.1
    assert found.others == pytest.approx(max(0.0, (everyone_s - own_s) / span_s), abs=0.15)
