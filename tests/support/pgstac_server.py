"""A real STAC API for tests: stac-fastapi-pgstac on PostgreSQL with PostGIS, on 127.0.0.1, with a new data folder.

PostgreSQL is Debian's, or another one below `BINARIES`; its system-wide service is not used. It refuses to run as
root, for whom another user runs it.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

#: Folders of PostgreSQL's programs, and of extensions, a folder per version.
BINARIES, EXTENSIONS = "/usr/lib/postgresql/*/bin", "/usr/share/postgresql/{}/extension"
#: Users who may run PostgreSQL for root, the first that the machine has.
USERS = ("postgres", "daemon")
#: Python packages of the API, and seconds that a server may take to start.
PACKAGES, LIMIT = ("stac_fastapi.pgstac", "pypgstac", "psycopg", "uvicorn"), 60.0


def missing() -> str | None:
    """Say what the machine lacks for the server; None if nothing."""
    if _programs() is None:
        return "PostgreSQL with PostGIS (Debian's package postgresql-postgis) is not installed"
    for name in PACKAGES:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"the Python package {name} is not installed"
    return None


def _programs() -> Path | None:
    """The folder of programs of the newest PostgreSQL that has PostGIS."""
    folders = [path for path in Path("/").glob(BINARIES.lstrip("/")) if (path / "initdb").exists()]
    having = [path for path in folders if Path(EXTENSIONS.format(path.parent.name), "postgis.control").exists()]
    return max(having, key=lambda path: float(path.parent.name), default=None)


def free_port() -> int:
    """Find a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Database:
    """A running PostgreSQL with the schema of pgstac."""

    port: int
    password: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of clients: libpq's, and those of the API."""
        values = {"HOST": "127.0.0.1", "PORT": str(self.port), "USER": "stac", "PASSWORD": self.password}
        return {**os.environ, **{f"PG{name}": value for name, value in values.items()}, "PGDATABASE": "postgres"}


@contextmanager
def database() -> Iterator[Database]:
    """Run PostgreSQL in a folder of its own; both are gone when the block ends."""
    programs = _programs()
    assert programs is not None
    # Below pytest's own folders no other user may look.
    folder = Path(tempfile.mkdtemp(prefix="mibf-pg-"))
    owner = _owner()
    made = Database(free_port(), secrets.token_hex(16), folder)
    try:
        (folder / "password").write_text(made.password)
        if owner:
            for path in (folder, folder / "password"):
                shutil.chown(path, owner["user"], owner["group"])
        initdb = [
            programs / "initdb", "--pgdata", folder / "data", "--username=stac", f"--pwfile={folder / 'password'}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync",
        ]  # fmt: skip  # a command line
        subprocess.run(initdb, check=True, cwd=folder, capture_output=True, **owner)
        options = {
            "listen_addresses": "127.0.0.1", "port": made.port, "unix_socket_directories": folder, "fsync": "off",
            "full_page_writes": "off", "shared_buffers": "64MB", "timezone": "UTC",
        }  # fmt: skip  # a command line
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", folder / "data", *(f"-c{name}={value}" for name, value in options.items())],
                cwd=folder, stdout=log, stderr=log, **owner,
            )  # fmt: skip  # a command line
        try:
            _await(process, folder / "log", lambda: socket.create_connection(("127.0.0.1", made.port), 1).close())
            migrate = [sys.executable, "-c", "from pypgstac.pypgstac import cli; cli()", "migrate"]
            subprocess.run(migrate, check=True, env=made.environment, capture_output=True)
            yield made
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, with its own processes
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder)


def _owner() -> dict[str, Any]:
    """Arguments of `subprocess` for the user who runs PostgreSQL; none if that is the user of the tests."""
    if os.geteuid() != 0:
        return {}
    for name in USERS:
        with suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise RuntimeError(f"PostgreSQL cannot run as {getpass.getuser()}, and there is no user {' or '.join(USERS)}")


def _await(process: subprocess.Popen[bytes], log: Path, probe: Any) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < until:
        try:
            probe()
            return
        except (OSError, requests.RequestException):
            time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


@dataclass
class PgStac:
    """The API: its address and its process."""

    url: str
    process: subprocess.Popen[bytes]

    def send(self, method: str, path: str, value: Any = None) -> None:
        """Change what it has: collections and items, by its transactions."""
        answer = requests.request(method, f"{self.url}/{path}", json=value, timeout=60)
        assert answer.ok, answer.text

    def replace(self, collection: str, items: Sequence[dict[str, Any]]) -> None:
        """Make a collection of these items."""
        requests.delete(f"{self.url}/collections/{collection}", timeout=60)
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        described = {
            "type": "Collection", "stac_version": "1.0.0", "id": collection, "description": collection, "links": [],
            "license": "other", "extent": extent,
        }  # fmt: skip  # values in rows that belong together
        self.send("POST", "collections", described)
        self.send("POST", f"collections/{collection}/items", {"type": "FeatureCollection", "features": list(items)})

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


@contextmanager
def pgstac(database: Database) -> Iterator[PgStac]:
    """Run the API on a database; it is killed when the block ends."""
    port = free_port()
    log = database.folder / f"api-{port}"
    environment = {**database.environment, "ENABLE_TRANSACTIONS_EXTENSIONS": "true"}
    arguments = ["--factory", "stac_fastapi.pgstac.app:create_app", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *arguments], env=environment, stdout=stream, stderr=stream
        )
    server = PgStac(f"http://127.0.0.1:{port}", process)
    try:
        _await(process, log, lambda: requests.get(f"{server.url}/_mgmt/ping", timeout=1).raise_for_status())
        yield server
    finally:
        server.kill()
