"""An object store, or a proxy in front of it, that accepts requests and never answers: one message, and within minutes.

The timeout of an answer is shortened; the number of requests shows how often the real one is waited for.
"""

from __future__ import annotations

import pytest
import s3fs

from tests.support import commands
from tests.support.s3_server import GDAL_VARIABLES
from tests.support.scenes import SmallScene
from tests.support.tcp_proxy import Faults, tcp_proxy


@pytest.mark.parametrize(
    ("command", "message"),
    [("map", "manifests/prepare.json: cannot be reached"), ("prepare", "workspace s3://bucket/work cannot be written to")],
    ids=["reading", "writing"],
)
def test_silent_store_exits_2(scene: SmallScene, monkeypatch: pytest.MonkeyPatch, command: str, message: str) -> None:
    config = scene.write_config(workspace="s3://bucket/work")
    with tcp_proxy(1, Faults(silent=1)) as proxy:
        values = {"AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        for name, value in {**dict.fromkeys(GDAL_VARIABLES, ""), **values, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # without pauses; by default 3
        assert s3fs.S3FileSystem.read_timeout == 15, "four minutes in total"
        monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.1)
        s3fs.S3FileSystem.clear_instance_cache()
        done = commands.mibf(command, str(config))
        s3fs.S3FileSystem.clear_instance_cache()
    assert done.status == 2
    assert message in done.stderr
    assert "Read timeout" in done.stderr
    assert proxy.met["silent"] <= 5
