"""URLs of the Planetary Computer's storage are signed when they are requested, and nowhere else."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import requests

from mibf.errors import InputError
from pipeline.io import storage
from pipeline.io.gdal import gdal_path
from pipeline.io.requests import signing

FILE = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/12/S/B04.tif"


@contextmanager
def token_server(status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """Serve tokens for one container, as the service does; yields its URL and the paths that it is asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status if "sentinel2" in self.path else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"msft:expiry": "2999-01-01T00:00:00Z", "token": "st=2024&sig=SECRET"}).encode())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A library of that name which asks the server at the URL that the test appends."""
    url: list[str] = []

    def get_token(account: str, container: str, retry_total: int) -> Any:
        assert retry_total == signing.RETRIES
        response = requests.get(f"{url[0]}/{account}/{container}", timeout=5)
        response.raise_for_status()
        return SimpleNamespace(sign=lambda href: SimpleNamespace(href=f"{href}?{response.json()['token']}"))

    module = ModuleType("planetary_computer.sas")
    module.get_token = get_token  # type: ignore[attr-defined]  # that of the library
    monkeypatch.setitem(sys.modules, "planetary_computer", ModuleType("planetary_computer"))
    monkeypatch.setitem(sys.modules, "planetary_computer.sas", module)
    monkeypatch.setattr(signing, "has_library", lambda: True)
    monkeypatch.setattr(signing, "_others", set())
    return url


def test_file_is_signed_as_it_is_requested(library: list[str]) -> None:
    with token_server() as (url, asked):
        library.append(url)
        assert gdal_path(FILE) == f"/vsicurl/{FILE}?st=2024&sig=SECRET"
        assert storage.open_url(FILE)[1] == f"{FILE}?st=2024&sig=SECRET"
        assert set(asked) == {"/sentinel2l2a01/sentinel2-l2"}
    assert storage.redact_url(FILE) == FILE


@pytest.mark.parametrize(
    "url",
    [
        f"{FILE}?sig=OTHER",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com/B04.tif",
        "https://blob.core.windows.net.example.org/a/b.tif",
        "https://account.blob.core.windows.net/",
        "/data/B04.tif",
    ],
)
def test_other_urls_stay(url: str, library: list[str]) -> None:
    library.append("http://127.0.0.1:1")
    assert signing.signed(url) == url


def test_container_of_others_is_asked_about_once_and_stays(library: list[str]) -> None:
    with token_server() as (url, asked):
        library.append(url)
        for name in ("a.tif", "b.tif"):
            own = f"https://mine.blob.core.windows.net/maps/{name}"
            assert signing.signed(own) == own
        assert asked == ["/mine/maps"]


def test_without_the_library_nothing_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "has_library", lambda: False)
    assert gdal_path(FILE) == f"/vsicurl/{FILE}"


def test_refused_and_unreachable_services_are_named(library: list[str]) -> None:
    with token_server(status=403) as (url, _):
        library.append(url)
        with pytest.raises(InputError, match=r"gives no token \(status 403\)"):
            signing.signed(FILE)
    library[:] = ["http://127.0.0.1:1"]
    with pytest.raises(InputError, match=r"cannot be reached \(ConnectionError\)"):
        signing.signed(FILE)


def test_library_itself_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("planetary_computer", reason="the library planetary-computer is not installed")
    from planetary_computer.settings import Settings

    with token_server() as (url, asked):
        monkeypatch.setenv("PC_SDK_SAS_URL", url)
        Settings.get.cache_clear()
        assert [signing.signed(FILE) for _ in range(2)] == [f"{FILE}?st=2024&sig=SECRET"] * 2
        assert asked == ["/sentinel2l2a01/sentinel2-l2"], "the token is kept until it expires"
    Settings.get.cache_clear()


@pytest.mark.parametrize(("payer", "expected"), [("requester", True), ("", None)])
def test_requester_pays_for_both_readers(payer: str, expected: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL reads the variable itself; files are also looked up by fsspec."""
    monkeypatch.setenv("AWS_REQUEST_PAYER", payer)
    assert storage.store_options("s3://usgs-landsat/a.tif").get("requester_pays") == expected
    assert "requester_pays" not in storage.store_options("gs://bucket/a.tif")
    assert storage.store_options("https://host/a.tif") == {}
