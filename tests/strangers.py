"""What somebody gets from a port who was not given a token."""

import http.client
from dataclasses import dataclass

import grpc

from tests.hosts import Host

PAGES = ("/api/version", "/api/jobs/", "/nodes", "/api/v0/actors", "/logs", "/metrics", "/events")
CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.RayletDriver/Init",
    "/ray.rpc.ReporterService/GetTraceback",
)
ANSWER_S = 10.0


@dataclass(frozen=True)
class Answer:
    """What a port that others reach answered: pages by their status, calls by their code.

    `exporter` tells that it serves figures for Prometheus, whatever it is asked for.
    """

    host: str
    port: int
    pages: dict[str, int]
    calls: dict[str, str]
    exporter: bool


def knock(host: Host) -> list[Answer]:
    """Ask all that listens on a host, and not on its loopback alone."""
    found = []
    for line in host.run(["ss", "-Hltn"]).stdout.splitlines():
        address, port = line.split()[3].rsplit(":", 1)
        if "127.0.0.1" not in address and address != "[::1]":
            found.append(_asked(host, int(port)))
    return found


def _asked(host: Host, port: int) -> Answer:
    pages, exporter = {}, True
    for page in PAGES:
        connection = http.client.HTTPConnection(host.address, port, timeout=ANSWER_S)
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            pages[page] = answer.status
            exporter = exporter and answer.read(6) == b"# HELP"
        except (OSError, http.client.HTTPException):  # it does not speak HTTP
            exporter = False
            break
        finally:
            connection.close()
    calls = {} if pages else {call: _called(f"{host.address}:{port}", call) for call in CALLS}
    return Answer(host.name, port, pages, calls, exporter)


def _called(address: str, method: str) -> str:
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
