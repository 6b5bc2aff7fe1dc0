"""The memory that serving a network takes, measured in a fresh process."""

import ctypes
import gc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.measurement.cost import MEGABYTE
from autoprune.measurement.runtimes import Runtime
from autoprune.measurement.runtimes.protocol import torch_threads
from autoprune.orchestration.fresh import FreshProcessError, in_fresh_process
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
    try:
        found: float | None = in_fresh_process(
            grown_mb, runtime, model, inputs, code_paths=code_paths
        )
    except FreshProcessError as error:
        raise AutopruneError(f"its process ended early ({error}); choose memory=false") from error
    except Exception as error:  # pickling: whatever a network's attributes run into
        raise AutopruneError(
            f"the network cannot be sent to a process ({first_line(error)}); choose memory=false"
        ) from error
    if found is None:
        raise AutopruneError(
            "this system does not tell what memory a process takes (Linux does); choose "
            "memory=false"
        )
    return found


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
