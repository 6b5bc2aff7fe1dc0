"""Joining a Ray cluster, or starting one on this machine, as autoprune needs it."""

import gc
import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cloudpickle
import psutil
import ray
import requests
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.device import usable_cores
from autoprune.orchestration.executors.here import start_here
from autoprune.orchestration.executors.ray_settings import OPTIONS, our_signals, ray_as_needed
from autoprune.orchestration.executors.resources import Node
from autoprune.orchestration.executors.user_code import importable

ANSWER_S = 5.0
"""How long whoever is at an address may take to take a connection."""

VERSIONS = ("autoprune", "torch", "torch-pruning", "numpy")
"""The packages on which the trials of a sweep depend; Ray compares itself and Python."""

PATIENCE_S = 60.0
"""How long a node may take to answer."""

ALIKE = "install the same versions on all nodes, or run them from one image"

SAME_TOKEN = "give the same RAY_AUTH_MODE and RAY_AUTH_TOKEN (or ~/.ray/auth_token) here as there"
"""What lets a process into a cluster that asks for a token."""


@contextmanager
def cluster(
    address: str | None, *, cpus: int = 1, runtime_env: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Join the cluster at `address`, or start one of `cpus` here where that is None; then leave.

    One that is started listens on the loopback address only, and asks for a token; workers of one
    that is joined get `runtime_env`. Where this process is in one already, it uses that and does
    not leave it. Raises AutopruneError where nobody answers.
    """
    with ray_as_needed():
        if ray.is_initialized():
            yield
            return
        with our_signals():
            if address is None:
                start_here(cpus)
            else:
                try:
                    ray.init(address=address, runtime_env=runtime_env, **OPTIONS)
                except (ConnectionError, RuntimeError, ValueError) as error:
                    with suppress(OSError):
                        if answers(address):
                            raise _refused(address, error) from error
                    raise _unreachable(address, error) from error
        try:
            yield
        finally:
            _leave()


def _leave() -> None:
    """Leave the cluster, with nothing of it left for Python to clear away meanwhile.

    Ray 2.60 ends the process where another thread lets go of one of its objects just then.
    """
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def check_address(address: str | None) -> None:
    """Raise AutopruneError where nobody answers at the address; Ray 2.60 tries for minutes."""
    try:
        dashboard = (address or "").startswith(("http://", "https://")) or (
            answers(address) and is_dashboard(f"http://{address}")
        )
    except OSError as error:
        raise _unreachable(address or "", error) from error
    if dashboard:
        raise AutopruneError(
            f"executor.address={address!r} is a cluster's dashboard, where jobs go (`autoprune "
            "submit`); a sweep here joins at the port of the head, HEAD:6379, or `auto` on a node"
        )


def is_dashboard(url: str) -> bool:
    """Whether a web server answers at a URL, as a cluster's dashboard does, and its head does not.

    Raises OSError where whoever is there takes the question and says nothing.
    """
    try:
        requests.get(f"{url}/api/version", timeout=ANSWER_S, stream=True).close()
    except requests.Timeout:
        raise
    except requests.RequestException:
        return False
    return True


def answers(address: str | None) -> bool:
    """True where somebody listens at a host and port; False for an address of another form.

    Raises OSError where nobody listens.
    """
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdigit() or "/" in host:
        return False  # ``auto`` and Ray's other ways to say it
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OverflowError as error:
        raise OSError(f"a port lies between 0 and 65535, not at {port}") from error
    return True


def this_machine(*, cores: float = 0) -> Node:
    """What this machine offers: the cores this process may use, or `cores` if that is more."""
    offers = {
        "CPU": max(float(usable_cores()), cores),
        "GPU": float(torch.cuda.device_count()),
        "memory": float(psutil.virtual_memory().total),
    }
    return Node("this machine", offers)


def nodes() -> list[Node]:
    """The nodes of the cluster that this process is in, as far as they are alive."""
    return list(members().values())


def members() -> dict[str, Node]:
    """The same by the ids that Ray knows them by."""
    return {
        node["NodeID"]: Node(
            node["NodeManagerHostname"], _offers(node["Resources"]), node.get("Labels", {})
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }


def coming() -> list[Node]:
    """The kinds of node that the cluster's autoscaler may start; none where it has none."""
    config = ray._private.state.state.get_cluster_config()
    return [
        Node(
            f"{kind.name} (may be started)",
            _offers(kind.resources),
            dict(kind.labels),
            most=math.inf if kind.max_count < 0 else kind.max_count,
        )
        for kind in (config.node_group_configs if config is not None else ())
    ]


def _offers(resources: Mapping[str, float]) -> dict[str, float]:
    """What users ask for; Ray has resources of its own besides, such as one for each node."""
    own = ("node:", "object_store_memory")
    return {name: float(amount) for name, amount in resources.items() if not name.startswith(own)}


def on_nodes(
    function: Callable[..., Any],
    *arguments: Any,
    among: Callable[[Node], bool] = lambda _node: True,
) -> Iterator[tuple[str, Any]]:
    """What a function returns on every node that is alive, with the node's name.

    Ray 2.60 may take half a minute to notice that a node is lost; such a one is left out. Raises
    AutopruneError where one does not answer, or cannot run it.
    """
    asked = {
        start_on(key, function, *arguments): (key, node.name)
        for key, node in members().items()
        if among(node)
    }
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE_S)
    for answer in silent:
        key, name = asked[answer]
        if key in members():
            raise AutopruneError(
                f"node {name} of the cluster has not answered for {PATIENCE_S:.0f} s; look at it "
                "with `ray status`, and at its logs"
            )
    for answer in done:
        key, name = asked[answer]
        try:
            there = ray.get(answer)
        except RayError as error:
            if key in members():
                raise cannot_run(name, error) from error
        else:
            yield name, there


def check_versions() -> None:
    """Raise AutopruneError where a node of the cluster has other versions than this process."""
    for node, there in on_nodes(installed):
        check_same(node, there)


def check_same(node: str, there: Mapping[str, str]) -> None:
    """Raise AutopruneError where a node has other versions (`installed`) than this process."""
    own = installed()
    other = [
        f"{name} {there[name] or 'not at all'} there, {own[name]} here"
        for name in VERSIONS
        if there[name] != own[name]
    ]
    if other:
        raise AutopruneError(
            f"node {node} of the cluster does not have what this process has: "
            f"{'; '.join(other)}; {ALIKE}"
        )


def cannot_run(node: str, error: RayError) -> AutopruneError:
    """What to say of a node that failed in a call of ours."""
    reason = str(error).strip().splitlines()[-1]
    return AutopruneError(f"node {node} of the cluster cannot run autoprune ({reason}); {ALIKE}")


def installed() -> dict[str, str]:
    """The versions of `VERSIONS` in this process; empty where one is not installed."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def start_on(
    key: str, function: Callable[..., Any], *arguments: Any, code_paths: Sequence[str] = ()
) -> Any:
    """Call a function on a node, of which it takes nothing; the reference to what it returns.

    The function is imported there; `code_paths` are put before the import path first.
    """
    place = NodeAffinitySchedulingStrategy(key, soft=False)
    call = cloudpickle.dumps((function, arguments))
    return _called.options(scheduling_strategy=place).remote(call, tuple(code_paths))


@ray.remote(num_cpus=0, max_retries=0)
def _called(call: bytes, code_paths: Sequence[str]) -> Any:
    importable(code_paths)
    function, arguments = cloudpickle.loads(call)
    return function(*arguments)


def _unreachable(address: str, error: Exception) -> AutopruneError:
    return AutopruneError(
        f"no Ray cluster answers at executor.address={address!r} ({error}); start "
        "one with `ray start --head`, or leave executor.address out for a local one"
    )


def _refused(address: str, error: Exception) -> AutopruneError:
    reason = ", ".join(line.strip() for line in str(error).splitlines() if line.strip())
    remedy = f"where it asks for a token, {SAME_TOKEN}, or else compare the versions of Ray"
    if reason.startswith("Version mismatch"):
        remedy = "install the same Ray and Python here as there"
    return AutopruneError(
        f"the Ray cluster at executor.address={address!r} answers and does not let this process in "
        f"({reason}); {remedy}"
    )
