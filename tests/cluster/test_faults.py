"""Every row of the fault matrix with short outages, and a soak of a minute."""

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from tests.audit import audit, runs_of
from tests.benchmarks.soak import soaked
from tests.chaos import Scene
from tests.harm import SLOTS, Fault, faults, may_mount, row_of, scene_in

pytestmark = pytest.mark.chaos  # a driver that imports everything, again for every resume
OUTAGE_S = 4.0
LOST = {
    "worker killed": {"worker lost"},
    "node lost": {"worker lost"},
    "out of memory": {"out of memory"},
    "node preempted": {"preempted"},
}
"""What trials are lost to and run again after, by fault; Ray may tell of more than one."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene_in(tmp_path_factory.mktemp("scene")) as found:
        yield found


@pytest.mark.parametrize("fault", faults(OUTAGE_S), ids=lambda fault: fault.name)
def test_a_sweep_survives(scene: Scene, fault: Fault) -> None:
    if fault.small_disk and not may_mount():
        pytest.skip("it takes root to mount a file system")
    if "PostgreSQL" in fault.name and scene.database is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    found = row_of(replace(fault, times=min(fault.times, 2)), scene).audit
    assert found.clean, found
    assert found.failed <= fault.failed
    assert set(found.causes) >= LOST.get(fault.name, set())


def test_a_sweep_survives_a_rain_of_faults(scene: Scene) -> None:
    scene.trials = 24
    found = soaked(scene, minutes=1.0, seed=1)
    assert found["clean"], found
    assert sum(found["strikes"].values()) >= 5


def test_the_audit_finds_what_is_lost_doubled_and_told_otherwise(scene: Scene) -> None:
    """An audit that finds nothing says something only if it can find what there is."""
    scene.nodes.be(SLOTS)
    scene.trials = 3
    scene.begin()
    scene.finish()
    assert scene.audit().clean
    folder, client = scene.sweep, MlflowClient(scene.mlflow.uri)
    assert folder is not None
    children = [run for run in runs_of(client, folder.name) if "trial" in run.data.tags]
    first, second = (
        next(run for run in children if run.data.tags["trial"] == number) for number in "01"
    )
    client.create_run(first.info.experiment_id, tags=first.data.tags)
    client.set_tag(second.info.run_id, "host", "elsewhere")
    shutil.rmtree(folder / "trials")
    found = audit(folder, scene.mlflow.uri, range(4))
    assert (found.lost, found.twice) == ((3,), (0,))
    assert any("trial 1: host is 'elsewhere'" in what for what in found.differs)
    assert found.networks
