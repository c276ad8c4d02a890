"""A real S3 server for tests: SeaweedFS on 127.0.0.1, on a fresh folder, ended with the tests that started it.

It may be killed and started again between, on the same folder and ports: an outage.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import s3fs

#: Of the owner of the server, who makes the bucket, and of the user, who may use that one alone.
OWNER, KEY, SECRET = "owner", "tester", "a-secret-of-the-tests"


class Server:
    """The process of a server, which comes and goes."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, on what the one before has left."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.arguments, stdout=log, stderr=log, cwd=self.folder)

    def kill(self) -> None:
        """Kill the process: a graceful stop takes half a minute."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def await_(self, probe: Callable[[], object]) -> None:
        """Wait until the server answers a probe."""
        assert self.process is not None
        for _ in range(120):
            if self.process.poll() is not None:
                break
            try:
                probe()
                return
            except Exception:  # whatever a server says that is not up yet
                time.sleep(0.5)
        raise RuntimeError(f"SeaweedFS did not come up: {(self.folder / 'log').read_text()[-2000:]}")


@dataclass(frozen=True)
class ObjectStore:
    """A server and a bucket of one's own on it."""

    endpoint: str
    bucket: str
    server: Server

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to read and write there."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def files(self) -> s3fs.S3FileSystem:
        """The server as a file system of its own, which keeps no listing."""
        return self._as(KEY)

    def _as(self, key: str) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(
            key=key, secret=SECRET, endpoint_url=self.endpoint, use_listings_cache=False, skip_instance_cache=True
        )

    def make_bucket(self) -> None:
        """Make the bucket, as its owner, and see that the server takes objects."""
        owner = self._as(OWNER)
        owner.mkdir(self.bucket)
        owner.pipe_file(f"{self.bucket}/probe", b"there")

    def restart(self) -> None:
        """Start the server again after it was killed, and wait until the bucket can be read (about 20 s)."""
        self.server.start()
        self.server.await_(lambda: self.files.cat_file(f"{self.bucket}/probe"))

    def url(self, *parts: str) -> str:
        """A place in the bucket."""
        return "/".join((f"s3://{self.bucket}", *parts))


def weed() -> str | None:
    """The server's program, where its package is installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens at, nor at those 10000 above, which the server takes for its own calls.

    Each process of the tests has a range of its own: of two servers at one port each would get half of the calls.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") or 0) % 4
    found: list[int] = []
    for port in random.SystemRandom().sample(range(12000 + 2000 * worker, 14000 + 2000 * worker), 2000):
        if len(found) == count:
            break
        with socket.socket() as low, socket.socket() as high, suppress(OSError):
            low.bind(("127.0.0.1", port))
            high.bind(("127.0.0.1", port + 10000))
            found.append(port)
    return found


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A server on a folder that is there and empty, with a bucket; it ends with the block."""
    program = weed()
    assert program is not None
    bucket = f"tests-{uuid.uuid4().hex[:8]}"
    allowed = {OWNER: ["Admin"], KEY: [f"{action}:{bucket}" for action in ("Read", "Write", "List")]}
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": SECRET}], "actions": actions}
        for key, actions in allowed.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    data = folder / "data"
    data.mkdir()
    master, volume, filer, s3 = _free_ports(4)
    arguments = [
        program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}",
        f"-volume.port={volume}", "-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}",
        f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=50",
        "-s3.port.iceberg=0", "-s3.port.lance=0",  # they have one port for all servers of a machine
    ]  # fmt: skip
    server = Server(arguments, folder)
    store = ObjectStore(f"http://127.0.0.1:{s3}", bucket, server)
    server.start()
    # fsspec keeps file systems by what they were asked for, of which the server in the environment is no part.
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        server.await_(store.make_bucket)
        yield store
    finally:
        server.kill()
        s3fs.S3FileSystem.clear_instance_cache()


def with_environment(store: ObjectStore) -> dict[str, str]:
    """The environment of a process that uses the server."""
    return {**os.environ, **store.environment}
