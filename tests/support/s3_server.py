"""A real S3 server for tests: SeaweedFS on 127.0.0.1 with a new data folder, stopped when the tests that use it end.

Tests can kill it and restart it with the same folder and ports to simulate an outage.
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
from functools import cached_property
from pathlib import Path

import pytest
import s3fs

#: Environment variables that `configure_gdal` sets for the server of AWS_ENDPOINT_URL.
GDAL_VARIABLES = ("AWS_S3_ENDPOINT", "AWS_HTTPS", "AWS_VIRTUAL_HOSTING")
#: Access key of the server's owner, who creates the bucket; access key and secret of the user, who may use only that bucket.
OWNER, KEY, SECRET = "owner", "tester", "a-secret-of-the-tests"


class Server:
    """A server process that can be started and killed repeatedly."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process on the data that the previous one left."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.arguments, stdout=log, stderr=log, cwd=self.folder)

    def kill(self) -> None:
        """Kill the process; a graceful stop takes half a minute."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def await_(self, probe: Callable[[], object]) -> None:
        """Wait until a probe of the server succeeds."""
        assert self.process is not None
        for _ in range(120):
            if self.process.poll() is not None:
                break
            try:
                probe()
                return
            except Exception:  # any error that a starting server may return
                time.sleep(0.5)
        raise RuntimeError(f"SeaweedFS did not start: {(self.folder / 'log').read_text()[-2000:]}")


@dataclass(frozen=True)
class ObjectStore:
    """A server and a private bucket on it."""

    endpoint: str
    bucket: str
    server: Server

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that a process needs to use the bucket."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @cached_property
    def files(self) -> s3fs.S3FileSystem:
        """A file system of the server, without a listings cache."""
        return self._filesystem_as(KEY)

    def _filesystem_as(self, key: str) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(
            key=key, secret=SECRET, endpoint_url=self.endpoint, use_listings_cache=False, skip_instance_cache=True
        )

    @contextmanager
    def used(self, **environment: str) -> Iterator[None]:
        """Give this process access to the bucket inside the block; `environment` changes the variables set for that."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**dict.fromkeys(GDAL_VARIABLES, ""), **self.environment, **environment}.items():
                patch.setenv(name, value)
            for name in GDAL_VARIABLES:
                patch.delenv(name)
            # fsspec caches file systems by their arguments, which do not include the environment.
            s3fs.S3FileSystem.clear_instance_cache()
            try:
                yield
            finally:
                s3fs.S3FileSystem.clear_instance_cache()

    def make_bucket(self) -> None:
        """Create the bucket as the owner and check that the server accepts objects."""
        owner = self._filesystem_as(OWNER)
        owner.mkdir(self.bucket)
        owner.pipe_file(f"{self.bucket}/probe", b"probe")

    def restart(self) -> None:
        """Restart the server after it was killed and wait until the bucket is readable (about 20 s)."""
        self.server.start()
        self.server.await_(lambda: self.files.cat_file(f"{self.bucket}/probe"))

    def url(self, *parts: str) -> str:
        """Return the URL of a path in the bucket."""
        return "/".join((f"s3://{self.bucket}", *parts))


def weed() -> str | None:
    """Return the path of the SeaweedFS executable, or None if it is not installed."""
    candidate = Path(sys.executable).parent / "weed"
    return str(candidate) if candidate.exists() else shutil.which("weed")


def _free_ports(count: int) -> list[int]:
    """Find ports of 127.0.0.1 that are free together with port + 10000, which the server uses for gRPC.

    Each test process has its own range: two servers on the same port would each receive half of the requests.
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
    """Run a server with a bucket in an existing empty folder; it is killed when the block ends."""
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
        "-s3.port.iceberg=0", "-s3.port.lance=0",  # their default ports are the same for every server on the machine
    ]  # fmt: skip  # a command line
    server = Server(arguments, folder)
    store = ObjectStore(f"http://127.0.0.1:{s3}", bucket, server)
    server.start()
    try:
        server.await_(store.make_bucket)
        yield store
    finally:
        server.kill()


def with_environment(store: ObjectStore) -> dict[str, str]:
    """Return the environment of a process that uses the server."""
    return {**os.environ, **store.environment}
