"""Hosts with addresses of their own on this machine: network namespaces on one bridge.

They share processes and the file system, as machines that mount one folder do, but for the places
that each has to itself.
"""

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_S = 120.0
STARTED = "Ray runtime started."
RAY_FOLDER = Path("/tmp/ray")
RAY = str(Path(sys.executable).parent / "ray")


def wanted() -> None:
    """Skip, with the reason, where namespaces cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2 (Debian: apt-get install iproute2)")
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Network:
    """A bridge of this machine, whose own address on it is `gateway`, and the hosts on it."""

    name: str
    prefix: str
    folder: Path
    environment: Mapping[str, str]
    hosts: list["Host"] = field(default_factory=list)

    @property
    def gateway(self) -> str:
        return f"{self.prefix}.254"

    def host(self, name: str, *own: Path) -> "Host":
        """One more host, with folders that it has to itself besides Ray's."""
        number = len(self.hosts) + 1
        made = Host(
            self, name, f"{self.name}-{number}", f"{self.prefix}.{number}", (RAY_FOLDER, *own)
        )
        made.connect()
        self.hosts.append(made)
        return made


@dataclass
class Host:
    """A namespace with one address and folders of its own, and what runs in it."""

    network: Network
    name: str
    namespace: str
    address: str
    own: Sequence[Path] = ()
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def connect(self) -> None:
        ip("netns", "add", self.namespace)
        here, there = f"{self.namespace}h", f"{self.namespace}n"
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", self.namespace)
        ip("link", "set", here, "master", self.network.name, "up")
        inside = ("-n", self.namespace)
        ip(*inside, "addr", "add", f"{self.address}/24", "dev", there)
        ip(*inside, "link", "set", there, "up")
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "route", "add", "default", "via", self.network.gateway)

    @property
    def log(self) -> Path:
        return self.network.folder / f"{self.name}.log"

    def command(self, words: Sequence[str]) -> list[str]:
        # ip gives what it runs a view of its own on what is mounted
        mounts = [shlex.join(["mount", "--bind", str(self._kept(p)), str(p)]) for p in self.own]
        script = " && ".join([*mounts, 'exec "$@"'])
        return ["ip", "netns", "exec", self.namespace, "sh", "-c", script, self.name, *words]

    def _kept(self, place: Path) -> Path:
        """Where this host's own folder is kept that it has at `place`."""
        kept = self.network.folder / self.name / place.name
        for folder in (kept, place):
            folder.mkdir(parents=True, exist_ok=True)
        return kept

    def start(self, words: Sequence[str], **variables: str) -> subprocess.Popen[bytes]:
        """A process of this host's, in a session of its own."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(words),
                stdout=log,
                stderr=log,
                cwd=self.network.folder,
                env={**self.network.environment, **variables},
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def run(
        self, words: Sequence[str], *, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        return subprocess.run(
            self.command(words),
            cwd=cwd,
            env={**self.network.environment, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    @property
    def pids(self) -> list[int]:
        """Every process in the namespace, whoever started it."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in done.stdout.split()]

    def kill(self) -> None:
        """End all that runs on it at once, as a power cut would."""
        until = time.monotonic() + 20
        while (pids := self.pids) and time.monotonic() < until:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)

    def head(self, *words: str, **variables: str) -> None:
        """Start the head of a Ray cluster here, with its dashboard on the host's address."""
        self._ray(
            "--head",
            "--port=6379",
            f"--dashboard-host={self.address}",
            "--include-dashboard=true",
            *words,
            **variables,
        )

    def join(self, head: "Host", *words: str, **variables: str) -> None:
        """Start a node of the cluster of `head` here."""
        self._ray(f"--address={head.address}:6379", *words, **variables)

    def _ray(self, *words: str, **variables: str) -> None:
        command = [RAY, "start", f"--node-ip-address={self.address}", "--block", *words]
        process = self.start(command, RAY_raylet_start_wait_time_s="120", **variables)
        began = self.log.read_text().count(STARTED)
        until = time.monotonic() + START_S
        while self.log.read_text().count(STARTED) == began:
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.5)


NAMES, NUMBERS = itertools.cycle("abcdefgh"), itertools.count()


@contextmanager
def network(folder: Path, environment: Mapping[str, str]) -> Iterator[Network]:
    """A network of its own, taken away with all that runs on it."""
    wanted()
    name = f"ap{os.getpid() % 10**6}{next(NAMES)}"
    prefix = f"10.{64 + os.getpid() % 64}.{(os.getpid() // 64 + next(NUMBERS)) % 256}"
    made = Network(name, prefix, folder, environment)
    with ExitStack() as stack:
        ip("link", "add", name, "type", "bridge")
        stack.callback(ip, "link", "delete", name)
        ip("addr", "add", f"{made.gateway}/24", "dev", name)
        ip("link", "set", name, "up")
        try:
            yield made
        finally:
            for host in made.hosts:
                host.kill()
                stack.callback(ip, "netns", "delete", host.namespace)
