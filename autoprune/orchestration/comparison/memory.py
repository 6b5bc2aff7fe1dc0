"""The memory that serving a network takes, measured in a fresh process that runs this module."""

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cloudpickle
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.measurement.cost import MEGABYTE
from autoprune.measurement.runtimes import Runtime
from autoprune.measurement.runtimes.protocol import torch_threads
from autoprune.tasks.protocol import Inputs

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
CALLS = 3


def peak_mb(
    runtime: Runtime, model: nn.Module, inputs: Inputs, *, code_paths: Sequence[str] = ()
) -> float:
    """The most memory that serving `model` on `inputs` takes beyond the bare runtime.

    In units of 10^6 bytes: weights as the runtime keeps them, and intermediate results. On the
    CPU the resident memory of a process, on CUDA what torch allocates there. Raises AutopruneError
    where the process fails, the network cannot be sent to it, or the system does not tell.
    """
    with tempfile.TemporaryDirectory() as folder:
        order, answer = Path(folder) / "order.pkl", Path(folder) / "answer.json"
        order.write_bytes(_packed(runtime, model, inputs))
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(order), str(answer), *code_paths],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not answer.is_file():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise AutopruneError(f"its process ended early ({last[0][:300]}); choose memory=false")
        found: float | None = json.loads(answer.read_text())
    if found is None:
        raise AutopruneError(
            "this system does not tell what memory a process takes (Linux does); choose "
            "memory=false"
        )
    return found


def _packed(*things: object) -> bytes:
    try:
        packed: bytes = cloudpickle.dumps(things)
    except Exception as error:  # whatever a network's attributes run into
        raise AutopruneError(
            f"the network cannot be sent to a process ({first_line(error)}); choose memory=false"
        ) from error
    return packed


def grown_mb(runtime: Runtime, model: nn.Module, inputs: Inputs) -> float | None:
    """`peak_mb` of this process, which nothing else may use meanwhile.

    The network is prepared twice: what the first time leaves behind belongs to the libraries.
    """
    with torch_threads(runtime.threads):
        runtime.prepare(model, inputs)()
        _settle()
        if runtime.device.startswith("cuda"):
            return _grown_on_cuda(runtime, model, inputs)
        before = _resident("VmRSS")
        infer = runtime.prepare(model, inputs)
        _settle()
        if before is None or not _reset_peak():
            return None
        for _ in range(CALLS):
            infer()
        peak = _resident("VmHWM")
    return None if peak is None else max(0.0, peak - before)


def _grown_on_cuda(runtime: Runtime, model: nn.Module, inputs: Inputs) -> float | None:
    before = torch.cuda.memory_allocated(runtime.device)
    infer = runtime.prepare(model, inputs)
    torch.cuda.reset_peak_memory_stats(runtime.device)
    for _ in range(CALLS):
        infer()
    grown = (torch.cuda.max_memory_allocated(runtime.device) - before) / MEGABYTE
    # what another library allocates on the device torch does not see
    return grown or None


def _settle() -> None:
    """Give back to the system what is no longer used."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _resident(which: str) -> float | None:
    """Resident memory now (``VmRSS``) or at most so far (``VmHWM``), in units of 10^6 bytes."""
    if not STATUS.exists():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) * 1024 / MEGABYTE
    return None


def _reset_peak() -> bool:
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _main(order: str, answer: str, *code_paths: str) -> None:
    sys.path[:0] = code_paths
    runtime, model, inputs = cloudpickle.loads(Path(order).read_bytes())
    Path(answer).write_text(json.dumps(grown_mb(runtime, model, inputs)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
