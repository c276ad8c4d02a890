"""The services of infra/local listen on the loopback interface only; stopping them ends no other process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.support.manifests import INFRA


def test_local_services_listen_only_on_loopback() -> None:
    text = (INFRA / "local/up.sh").read_text()
    for option in ("-ip.bind=127.0.0.1", '--node-ip-address="127.0.0.', '--dashboard-host="$head"', "head=127.0.0.2"):
        assert option in text
    assert "RAY_AUTH_MODE=token" in text
    assert json.loads((INFRA / "local/s3.json.example").read_text())["identities"][0]["actions"] == ["Admin"]


def test_down_with_nothing_started_exits_0(tmp_path: Path) -> None:
    environment = {**os.environ, "MIBF_LOCAL": str(tmp_path)}
    done = subprocess.run([str(INFRA / "local/down.sh")], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_down_stops_only_processes_that_up_started(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    other = subprocess.Popen(["sleep", "60"])
    try:
        started = subprocess.run(["ps", "-o", "lstart=", "-p", str(sleeper.pid)], capture_output=True, text=True, check=True)
        (tmp_path / "store.pid").write_text(f"{sleeper.pid} {started.stdout}")
        # A process ID that has been reused by another process.
        (tmp_path / "ray-head.pid").write_text(f"{other.pid} Thu Jan  1 00:00:00 1970\n")
        environment = {**os.environ, "MIBF_LOCAL": str(tmp_path)}
        process = subprocess.Popen([str(INFRA / "local/down.sh")], env=environment, stdout=subprocess.PIPE, text=True)
        assert sleeper.wait(timeout=30) == -15
        output, _ = process.communicate(timeout=60)
        assert output == "stopped store\n"
        assert other.poll() is None
        assert not list(tmp_path.glob("*.pid"))
    finally:
        for process in (sleeper, other):
            process.kill()
            process.wait()
