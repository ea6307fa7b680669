"""A real Ray cluster on this machine: several raylets on one host, or hosts of their own in network namespaces.

A machine is what `ray start` starts, and whatever that starts: all of it carries the machine's mark in its environment,
by which it is found and killed. Nothing is ever ended by its name.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.sweep_under_test import check, until

_MARK = "CLUSTER_MACHINE"
_UP_S = 120.0
_RAY = {
    # A machine that is lost is found to be in seconds.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_memory_monitor_refresh_ms": "0",  # others use this machine's memory, too
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_KNOCK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"
_ASK = """
import json, logging, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
for _ in sys.stdin:
    nodes = [[n["NodeID"], n["NodeName"], n["NodeManagerAddress"], n["Labels"], n["Alive"]] for n in ray.nodes()]
    told = {"nodes": nodes, "there": ray.cluster_resources(), "free": ray.available_resources()}
    print("TOLD" + json.dumps(told), flush=True)
"""


@dataclass
class Machine:
    """One node of the cluster. prefix: the command by which a process gets onto this host."""

    name: str
    address: str
    place: Path
    prefix: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def mark(self) -> str:
        return f"{self.place}/{self.name}"

    def start(self, arguments: list[str], environment: dict[str, str]) -> None:
        """`ray start`, until it is killed."""
        temporary = self.place / self.name
        temporary.mkdir(parents=True, exist_ok=True)
        command = [*self.prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
        command += [f"--node-ip-address={self.address}", f"--temp-dir={temporary}", "--object-store-memory=80000000"]
        command += ["--disable-usage-stats", f"--labels=machine={self.name}", "--include-log-monitor=false"]
        own = {**environment, **_RAY, _MARK: self.mark, "TMPDIR": str(temporary)}
        with open(self.place / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.place, env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """All that runs on it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL to the raylet and all the rest, until nothing is left."""
        while found := self.processes():
            for process in sorted(found, key=lambda each: each.name() != "raylet"):
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
        if self.process is not None:
            self.process.wait(30)
            self.process = None


@dataclass
class Cluster:
    """Its head, which by itself runs no trial, and its other machines, of one CPU each."""

    place: Path
    environment: dict[str, str] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    port: int = 6379
    names: dict[str, str] = field(default_factory=dict)  # of machines that were seen, by Ray's name for them
    observer: "subprocess.Popen[str] | None" = None  # on the head, connected to Ray
    kind = "raylets on one host"

    def machine(self, name: str) -> Machine:
        """A machine that is not started yet."""
        import ray  # which takes the loopback for this address

        self.machines[name] = Machine(name, ray.util.get_node_ip_address(), self.place)
        return self.machines[name]

    @property
    def head(self) -> Machine:
        return self.machines["head"]

    @property
    def address(self) -> str:
        return f"{self.head.address}:{self.port}"

    @contextmanager
    def up(self, *others: str) -> Iterator["Cluster"]:
        """The cluster for the duration of a block. Whatever ends that, nothing of it is left."""
        self.place.mkdir(parents=True, exist_ok=True)
        (self.place / "token").write_text(secrets.token_hex(32))
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.place / "token")}
        try:
            self._prepare()
            self.machine("head").start(
                ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"], self.environment
            )
            until(self._answers, _UP_S, "the head of the cluster")
            for name in others:
                self.join(name)
            self.wait(lambda told: told["there"].get("CPU", 0) == len(others), f"{len(others)} machines")
            yield self
        finally:
            self.end()

    def _prepare(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def _answers(self) -> bool:
        check(self.head.process is not None and self.head.process.poll() is None, "the head did not start")
        command = [*self.head.prefix, sys.executable, "-c", _KNOCK, self.head.address, str(self.port)]
        done = subprocess.run(command, capture_output=True)
        return done.returncode == 0

    def join(self, name: str) -> None:
        """A machine of one CPU comes, or comes back."""
        machine = self.machines.get(name) or self.machine(name)
        machine.start([f"--address={self.address}", "--num-cpus=1"], self.environment)

    def ask(self) -> dict[str, Any]:
        """Return the nodes and resources that Ray tells of. Raises Broken after `_UP_S` seconds without an answer."""
        self.observer = self.observer or self._connected()
        stdin, stdout = self.observer.stdin, self.observer.stdout
        assert stdin is not None and stdout is not None
        limit = threading.Timer(_UP_S, self.observer.kill)
        limit.start()
        with suppress(BrokenPipeError):
            stdin.write("\n")
            stdin.flush()
        line = next((line for line in stdout if line.startswith("TOLD")), "")
        limit.cancel()
        if not line:
            self._disconnect()
        check(line, f"the cluster does not answer: {self._log.read_text()[-300:]}")
        told: dict[str, Any] = json.loads(line.removeprefix("TOLD"))
        self.names |= {node: labels["machine"] for node, _, _, labels, alive in told["nodes"] if alive}
        return told

    @property
    def _log(self) -> Path:
        return self.place / "observer.log"

    def _connected(self) -> "subprocess.Popen[str]":
        command = [*self.head.prefix, sys.executable, "-c", _ASK, self.address]
        with open(self._log, "wb") as log:
            return subprocess.Popen(
                command, env={**self.environment, **_RAY}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def _disconnect(self) -> None:
        if self.observer is not None:
            self.observer.kill()
            self.observer.communicate()  # closes its pipes
            self.observer = None

    def wait(self, done: Callable[[dict[str, Any]], bool], what: str, seconds: float = _UP_S) -> None:
        until(lambda: done(self.ask()), seconds, what)

    def came(self, name: str) -> None:
        """Wait until a machine that was started is there."""
        before = set(self.names)
        self.wait(lambda _: any(self.names[node] == name for node in set(self.names) - before), f"machine {name}")

    def node(self, name: str) -> str:
        """Ray's name for the newest machine of a name."""
        return [node for node, each in self.names.items() if each == name][-1]

    def drain(self, name: str, seconds: int) -> None:
        """Tell Ray that a machine goes away."""
        command = [*self.head.prefix, sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
        command += [f"--address={self.address}", f"--node-id={self.node(name)}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"]
        command += [f"--deadline-remaining-seconds={seconds}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=self.environment)
        check(done.returncode == 0, f"ray drain-node: {done.stdout}{done.stderr}")

    def end(self) -> None:
        self._disconnect()
        for machine in self.machines.values():
            machine.kill()


@dataclass
class Hosts(Cluster):
    """The same, with every machine in a network namespace of its own, under a host name of its own."""

    number: int = field(default_factory=os.getpid)
    kind = "hosts in network namespaces"

    @staticmethod
    def missing() -> str | None:
        """Why there can be none here."""
        if os.geteuid() != 0:
            return "only root may make network namespaces"
        probe = f"hso-probe-{os.getpid()}"
        try:
            _ip("netns", "add", probe)
            _ip("netns", "delete", probe)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no network namespaces here ({getattr(error, 'stderr', '') or error})".strip()
        return None

    @property
    def bridge(self) -> str:
        return f"hso{self.number}"

    def _space(self, name: str) -> str:
        return f"hso{self.number}-{name}"

    def _cable(self, name: str) -> str:
        return f"h{self.number}{name}"  # 15 characters at most

    def _prepare(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")

    def machine(self, name: str) -> Machine:
        space, cable, address = self._space(name), self._cable(name), f"10.77.0.{len(self.machines) + 1}"
        # Its host name stands for no address, or for 127.0.1.1: nothing may depend on that.
        prefix = ("ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', space)
        self.machines[name] = Machine(name, address, self.place, prefix)
        _ip("netns", "add", space)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", cable, "master", self.bridge, "up")
        for each in (("link", "set", "lo", "up"), ("link", "set", "eth0", "up"), ("addr", "add", f"{address}/24", "dev", "eth0")):  # fmt: skip # noqa: E501
            _ip("-n", space, *each)
        return self.machines[name]

    def cut(self, name: str) -> None:
        """Nothing gets to a machine any more, nor away from it."""
        _ip("link", "set", self._cable(name), "down")

    def mend(self, name: str) -> None:
        _ip("link", "set", self._cable(name), "up")

    def end(self) -> None:
        super().end()
        for name in self.machines:
            with suppress(subprocess.CalledProcessError):
                for pid in _ip("netns", "pids", self._space(name)).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                _ip("netns", "delete", self._space(name))
            with suppress(subprocess.CalledProcessError):  # goes with its other end, in a while
                _ip("link", "delete", self._cable(name))
        with suppress(subprocess.CalledProcessError):
            _ip("link", "delete", self.bridge)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
