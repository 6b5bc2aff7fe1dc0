"""What commands say while a baseline is trained and a network profiled."""

from autoprune.cli.call import Call
from autoprune.orchestration.baseline import EpochReport
from autoprune.orchestration.profiling import PointReport
from autoprune.orchestration.reports.profile import point_line


def epoch_lines(call: Call, main: str) -> EpochReport:
    """A line for every epoch of the baseline's training, with its metric `main`."""
    return lambda epoch, value: call.progress(f"baseline epoch {epoch}  {main} {value:.4f}")


def point_lines(call: Call, main: str) -> PointReport:
    """A line for every point of a profile, with its metric `main`."""
    return lambda point, done, of: call.progress(point_line(point, main, done, of))
