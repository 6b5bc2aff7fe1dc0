"""What a sweep on one machine and `autoprune dashboard` listen on, and whom they answer."""

import ipaddress
import os
import pkgutil
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import grpc
import psutil
import pytest
import ray.core.generated
import requests

from autoprune.cli import main
from autoprune.orchestration.executors.here import _keep_token_private
from tests.tiny import WORDS, Driver, sweep_folder, told

TOKEN = "0123456789abcdef" * 4
PATIENCE_S = 120.0
PRIVATE = Path(tempfile.gettempdir()) / f"autoprune-{os.getuid()}"
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
SWEEP = ["sweep", *WORDS, "name=tiny", "output=out", "budget.trials=500", "recovery.fit.epochs=20"]


def until(happened: Callable[[], object], driver: Driver) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert driver.process.poll() is None, driver.said
        assert time.monotonic() < end, driver.said
        time.sleep(0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """Where the sweep and the dashboard run."""
    made = tmp_path_factory.mktemp("sockets")
    (made / "out").mkdir()
    shutil.copy(mlflow_template, made / "out" / "mlflow.db")
    return made


def listening(driver: Driver) -> dict[tuple[str, int], str]:
    """The addresses on which a command and its processes listen, with the command of each."""
    found = {}
    for process in [psutil.Process(driver.process.pid), *driver.family()]:
        try:
            for one in process.net_connections(kind="inet"):
                if one.status == psutil.CONN_LISTEN or one.type == socket.SOCK_DGRAM:
                    found[one.laddr.ip, one.laddr.port] = " ".join(process.cmdline()[:3])
        except psutil.NoSuchProcess:
            continue
    return found


def on_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def calls() -> Iterator[str]:
    """The path of every call that Ray's servers know, as far as they have one answer each."""
    for module in pkgutil.iter_modules(ray.core.generated.__path__, "ray.core.generated."):
        if module.name.endswith("_pb2"):
            services = import_module(module.name).DESCRIPTOR.services_by_name
            for service in services.values():
                for method in service.methods:
                    if not method.client_streaming and not method.server_streaming:
                        yield f"/{service.full_name}/{method.name}"
    yield from ("/ray.rpc.ObjectManagerService/Push", "/ray.rpc.ObjectManagerService/Pull")


def answer(channel: grpc.Channel, path: str, token: str | None) -> grpc.StatusCode:
    headers = [] if token is None else [("authorization", f"Bearer {token}")]
    try:
        channel.unary_unary(path)(b"", metadata=headers, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def page_at(port: int) -> requests.Response | None:
    """What a stranger gets who speaks HTTP."""
    try:
        return requests.get(f"http://127.0.0.1:{port}/", timeout=5)
    except requests.RequestException:
        return None


def assert_strangers_are_refused(addresses: dict[tuple[str, int], str]) -> None:
    """Of Ray's servers every one refuses a stranger, and the control service lets its users in.

    Except that two tell of Ray's own load, and that it is known whether a server is well.
    """
    let_in, figures = [], []
    for (_, port), who in addresses.items():
        if (page := page_at(port)) is not None:
            if page.text.startswith("# HELP"):
                figures.append(who)
            else:
                assert page.status_code == 401, (who, page.status_code, page.text[:200])
            continue
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for token in (None, "fedcba9876543210" * 4):
                answers = {path: answer(channel, path, token) for path in calls()}
                assert not {p: a for p, a in answers.items() if a not in REFUSED}, who
                assert grpc.StatusCode.UNAUTHENTICATED in answers.values(), who
            let_in.append(answer(channel, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", TOKEN))
    assert grpc.StatusCode.OK in let_in
    assert len(let_in) > 5
    assert all("monitor.py" in who or "dashboard.py" in who for who in figures), figures


@pytest.mark.slow  # calls everything that Ray serves
def test_a_sweep_listens_on_loopback_alone_and_answers_nobody_without_its_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    driver = Driver(SWEEP, folder)
    until(lambda: (found := sweep_folder(folder / "out")) and told(found), driver)
    addresses = listening(driver)
    for ip, port in addresses:
        assert on_loopback(ip), (ip, port, addresses[ip, port])
    assert_strangers_are_refused(addresses)
    assert PRIVATE.stat().st_mode & 0o077 == 0, "Ray's sockets are out of others' reach"
    assert len(list(PRIVATE.glob(f"ray/session_*_{driver.process.pid}/sockets/*"))) == 2
    assert driver.process.poll() is None, driver.said
    driver.end()


def test_the_dashboard_listens_on_loopback_alone(folder: Path) -> None:
    sweep = ["sweep", *WORDS, "name=shown", "executor=inline", "budget.trials=1"]
    assert main([*sweep, f"output={folder / 'out'}"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = Driver(["dashboard", "output=out", f"port={port}"], folder)
    until(lambda: "http://" in driver.said, driver)
    assert set(listening(driver)) == {("127.0.0.1", port)}
    driver.end()


@pytest.mark.parametrize("before", [None, "a token that everybody may read"])
def test_rays_token_is_for_its_user_alone(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    if before is not None:
        token.parent.mkdir()
        token.write_text(before)
        token.chmod(0o644)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: _keep_token_private(), range(8)))
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == before or (before is None and len(token.read_text()) == 64)
    assert list(token.parent.iterdir()) == [token]
