"""Real Ray cluster for tests: a head without CPUs and worker nodes on loopback addresses, with token authentication.

Each node is a separate process group, so a test can kill it completely, as if its machine failed.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

#: Size of each node's Ray object store, in bytes.
OBJECT_STORE = 80 << 20


def free_ports(count: int) -> list[int]:
    """Return distinct free ports of 127.0.0.1."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def await_(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Wait until a condition is true; exceptions that it raises count as false."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(Exception):
            if condition():
                return
        time.sleep(0.5)
    raise AssertionError(f"{what}: not ready within {seconds:g} s")


class Node:
    """One node: Ray's own processes and the workers that they start."""

    def __init__(
        self, arguments: list[str], *, log: Path, environment: Mapping[str, str], address: str, metrics: int
    ) -> None:
        self.address, self.metrics_port, self.log = address, metrics, log
        self._arguments, self._environment = arguments, environment
        self.process = self._launched()

    def await_start(self) -> None:
        """Wait until the node has started; fail at once if its process exits.

        Ray gives a node 30 s, which a loaded machine may exceed; the node is then started again, twice at most.
        """
        for _ in range(2):
            if not self._ended_at_start() or "timed out during startup" not in self.log.read_text():
                break
            self.kill()
            self.process = self._launched()
        self._ended_at_start()
        assert self.process.poll() is None, self.log.read_text()[-3000:]

    def _ended_at_start(self) -> bool:
        """Wait until the node's process has ended or reports that the node has started; return whether it has ended."""
        await_(lambda: self.process.poll() is not None or "started." in self.log.read_text(), seconds=240, what="a node")
        return self.process.poll() is not None

    def _launched(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as to:
            return subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=to,
                env=self._environment,
                start_new_session=True,
            )

    def metrics(self) -> str:
        """Return the node's Prometheus metrics, or an empty string if it cannot be reached or ends while it answers."""
        try:
            with urllib.request.urlopen(f"http://{self.address}:{self.metrics_port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except (OSError, http.client.HTTPException):
            return ""

    def processes(self) -> list[psutil.Process]:
        """Return all live processes of the node; some are in other process groups."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kill all processes of the node, as if the machine were switched off."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()


class Cluster:
    """A head and worker nodes that can be added and killed."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, pool: int = 0) -> None:
        folder.mkdir()
        self.folder = folder
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.port, self.dashboard_port, client = free_ports(3)
        self.client_environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {
            **os.environ,
            **environment,
            **self.client_environment,
            "PATH": path,
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_metrics_report_interval_ms": "1000",
        }
        self._temporary = tempfile.mkdtemp(prefix="ray-")  # the length of socket paths is limited
        self.nodes: list[Node] = []
        self._started = 0
        self.head = self._start(
            "--head",
            f"--port={self.port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={self._temporary}",
            *([] if not pool else [f"--autoscaling-config={self._pool_config(pool)}"]),
            cpus=0,
        )

    def _pool_config(self, nodes: int) -> Path:
        """Write the configuration of Ray's autoscaler for a pool of GPU nodes that starts at zero, on this machine."""
        gpu = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": OBJECT_STORE}, "node_config": {}}
        commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        config = {
            "cluster_name": "pool",
            "max_workers": nodes,
            "idle_timeout_minutes": 5,
            "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.2:{self.port}"},
            "auth": {},
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "gpu": gpu | {"min_workers": 0, "max_workers": nodes},
            },
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "upscaling_speed": 1.0,
        } | {f"{name}_commands": [] for name in commands}
        path = self.folder / "pool.json"
        path.write_text(json.dumps(config))
        self.environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        return path

    def await_head(self) -> None:
        """Wait until the job server responds."""
        self.head.await_start()
        await_(lambda: bool(self.asked("/api/version")), seconds=240, what="the cluster's dashboard")

    @property
    def address(self) -> str:
        """URL of the job server."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def add(self, *, cpus: int) -> Node:
        """Start a node and wait until it is up."""
        self.nodes.append(self._start(f"--address={self.head.address}:{self.port}", cpus=cpus))
        self.nodes[-1].await_start()
        return self.nodes[-1]

    def kill(self, node: Node) -> None:
        """Kill a node."""
        node.kill()
        self.nodes.remove(node)

    def end(self) -> None:
        """Kill all processes of all nodes."""
        for node in [*self.nodes, self.head]:
            node.kill()
        self.nodes = []
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _start(self, *arguments: str, cpus: int) -> Node:
        self._started += 1
        # One address per node, as on real machines; Ray would replace 127.0.0.1 itself by the external address.
        address = f"127.0.0.{self._started + 1}"
        metrics, agent, agent_grpc, environments = free_ports(4)
        ray = str(Path(sys.executable).parent / "ray")
        started = [
            ray, "start", *arguments, f"--node-ip-address={address}", f"--num-cpus={cpus}", "--num-gpus=0",
            f"--object-store-memory={OBJECT_STORE}", f"--metrics-export-port={metrics}",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--runtime-env-agent-port={environments}", "--min-worker-port=0", "--max-worker-port=0",
            "--disable-usage-stats", "--block",
        ]  # fmt: skip  # a command line
        log = self.folder / f"node-{self._started}.log"
        return Node(started, log=log, environment=self.environment, address=address, metrics=metrics)

    def asked(self, path: str) -> str:
        """Return the job server's response to a GET request."""
        headers = {"Authorization": f"Bearer {self.token.read_text()}"}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers), timeout=10) as answer:
            return str(answer.read().decode())

    def logs(self) -> list[Path]:
        """Return all files that the cluster's processes have written."""
        return [path for folder in (self.folder, Path(self._temporary)) for path in folder.rglob("*.*") if path.is_file()]


@contextmanager
def cluster(
    folder: Path, *, nodes: int, cpus: int, pool: int = 0, environment: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Start a cluster that ends with the block; `folder` is created for its logs and its token.

    With `pool`, Ray's autoscaler adds up to so many nodes with a CPU and a logical GPU each.
    """
    made = Cluster(folder, environment or {}, pool=pool)
    try:
        made.await_head()
        for _ in range(nodes):
            made.add(cpus=cpus)
        yield made
    finally:
        made.end()
