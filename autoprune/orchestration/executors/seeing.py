"""Whether the nodes of a cluster see the place where trials save."""

from collections.abc import Mapping

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.executors.cluster import on_nodes
from autoprune.orchestration.executors.resources import Demand
from autoprune.orchestration.store import LOGIN, Store, StoreError


def blind_nodes(place: Store, demand: Demand) -> dict[str, str]:
    """What keeps nodes that hold trials from saving at `place`: the reason, by the node's name.

    For a process that is in the cluster. Raises StoreError where it cannot write there itself.
    """
    with place.trace() as (name, data):
        answers = on_nodes(look, place, name, data, among=lambda node: demand.fits(node) > 0)
        return {node: reason for node, reason in answers if reason}


def check_seen(place: Store, demand: Demand) -> None:
    """Raise AutopruneError, with the remedy, where a node that holds trials cannot save there."""
    refuse_blind(blind_nodes(place, demand), place)


def refuse_blind(blind: Mapping[str, str], place: Store) -> None:
    """Raise AutopruneError, with the remedy, where `look` has a reason for a node."""
    if not blind:
        return
    told = "; ".join(f"node {node} {reason}" for node, reason in blind.items())
    if place.is_path:
        remedy = (
            "mount that folder at the same path on all nodes, or set executor.storage to a folder "
            "or URL that all of them reach, such as s3://bucket/sweeps"
        )
    else:
        remedy = f"the nodes need its package, a way to it, and a login of their own in {LOGIN}"
    raise AutopruneError(f"trials save at {place}, and {told}; {remedy}")


def look(place: Store, name: str, data: bytes) -> str:
    """What keeps the node that this runs on from saving at a place; empty where nothing does.

    `name` and `data` are of the driver's trace there.
    """
    try:
        if place.read(name) != data:
            return "does not see what this process writes there"
        place.check()
    except StoreError as error:
        return str(error)
    return ""
