"""Whether the cluster of a sweep is still there.

Where its control service or this machine's part of it dies, whoever calls Ray 2.60 waits for it,
and a minute later Ray ends the process.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray

LOOK_S = 2.0
"""How often each part is tried, and how long it may take to answer."""

SILENT_S = 10.0
"""How long a part may not answer before it counts as gone."""

LEAVE_S = 20.0
"""How long this process may then take to wind down by itself."""

Place = tuple[str, int]


def parts_of_the_cluster() -> dict[str, Place]:
    """Where the parts without which this process can do nothing listen, by what they are."""
    here = ray.get_runtime_context()
    host, _, port = here.gcs_address.rpartition(":")
    found = {"its control service": (host.strip("[]"), int(port))}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["NodeID"] == here.get_node_id():
            place = (node["NodeManagerAddress"], node["NodeManagerPort"])
            found["the node of this process"] = place
    return found


@contextmanager
def lifeline(
    parts: Mapping[str, Place], gone: Callable[[str], None], stuck: Callable[[], None]
) -> Iterator[None]:
    """Call `gone` from a thread, with the name of a part that has not answered for `SILENT_S`.

    Where what runs inside has not come to its end `LEAVE_S` later, it hangs in Ray, and `stuck` is
    called.
    """
    over = threading.Event()

    def look() -> None:
        heard = dict.fromkeys(parts, time.monotonic())
        while not over.wait(LOOK_S):
            for name, place in parts.items():
                if _there(place):
                    heard[name] = time.monotonic()
                elif time.monotonic() - heard[name] >= SILENT_S:
                    gone(name)
                    if not over.wait(LEAVE_S):
                        stuck()
                    return

    thread = threading.Thread(target=look, name="autoprune-lifeline", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _there(place: Place) -> bool:
    try:
        socket.create_connection(place, timeout=LOOK_S).close()
    except OSError:
        return False
    return True
