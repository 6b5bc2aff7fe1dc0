"""How far the clocks of two machines are apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from autoprune.orchestration.doctor.findings import Verdict, ok, warning

APART_S = 1.0
"""How far clocks may be apart: times of trials are compared across machines."""

EXCHANGES = 8
"""How often a clock is asked: the quickest answer says most."""


@dataclass(frozen=True, slots=True)
class Offset:
    """How far another clock is ahead, give or take `error_s`."""

    ahead_s: float
    error_s: float

    @property
    def apart(self) -> bool:
        """Whether it is surely further than clocks may be."""
        return abs(self.ahead_s) - self.error_s > APART_S


def offset_of(exchanges: Sequence[tuple[float, float, float]]) -> Offset:
    """The offset by the quickest of some exchanges: when asked here, the time there, when answered.

    The answer was given between the two times here, whichever way took longer (NTP, RFC 5905).
    """
    asked, there, answered = min(exchanges, key=lambda exchange: exchange[2] - exchange[0])
    return Offset(there - (asked + answered) / 2, (answered - asked) / 2)


def of_date(header: str, asked: float, answered: float) -> Offset:
    """The offset by the ``Date`` of an HTTP answer, which tells whole seconds."""
    found = offset_of([(asked, parsedate_to_datetime(header).timestamp() + 0.5, answered)])
    return Offset(found.ahead_s, found.error_s + 0.5)


def clock_verdict(offset: Offset, whose: str = "its") -> Verdict:
    """Whether a clock goes with the driver's."""
    way = "ahead of" if offset.ahead_s > 0 else "behind"
    told = (
        f"{whose} clock is {abs(offset.ahead_s):.2g} s {way} the driver's, give or take "
        f"{offset.error_s:.1g} s"
    )
    if offset.apart:
        return warning(told, "have both machines' clocks set by NTP (chrony, systemd-timesyncd)")
    return ok(told)
