"""What the tests of whole sweeps share."""

from collections.abc import Iterator

import pytest
import ray

from tests.tiny import DRIVERS


@pytest.fixture(autouse=True)
def _no_driver_is_left() -> Iterator[None]:
    """A test that failed leaves no sweep that takes the cores from the next."""
    yield
    while DRIVERS:
        DRIVERS.pop().end()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray of two slots that the sweeps of a module share: starting one takes seconds."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
