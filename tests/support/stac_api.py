"""A small STAC API for tests: item search with pages, in a thread."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

#: Faults of the API, and what the search says of each, with a limit of five items.
FAULTS = {
    "html": "does not answer as STAC",
    "error": "the API answers with an error (status 500",
    "slow": "cannot be reached",
    "endless": "there are more than 5 items; limit the search",
}
CONFORMANCE = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/item-search#filter",
]


class StacApi(http.server.ThreadingHTTPServer):
    """The server: its items, the size of its pages, how it misbehaves, and what it was asked."""

    def __init__(self, items: Sequence[dict[str, Any]], *, page: int, fault: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.items, self.page, self.fault = list(items), page, fault
        self.searches: list[dict[str, Any]] = []
        self.message = "the database is away"  #: of the fault "error"
        self.token: str | None = None  #: the only bearer token that it accepts
        self.elsewhere: str | None = None  #: URL of a server that searches are redirected to
        self.authorizations: list[str | None] = []  #: of all requests

    @property
    def url(self) -> str:
        """Its landing page."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StacApi

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._turned_away():
            return
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path == "/search":
            values: dict[str, Any] = {name: each[0] for name, each in query.items()}
            values["bbox"] = [float(v) for v in values["bbox"].split(",")]
            values["collections"] = values["collections"].split(",") if "collections" in values else None
            self._search(values)
            return
        links = [
            {"rel": "root", "href": self.server.url, "type": "application/json"},
            {"rel": "search", "href": f"{self.server.url}/search", "type": "application/geo+json", "method": "GET"},
            {"rel": "search", "href": f"{self.server.url}/search", "type": "application/geo+json", "method": "POST"},
        ]
        self._answer(
            {
                "type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "a", "conformsTo": CONFORMANCE,
                "links": links,
            }
        )  # fmt: skip  # values in rows that belong together

    def do_POST(self) -> None:
        if self._turned_away():
            return
        self._search(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _turned_away(self) -> bool:
        """Answer those without the token, and searches that belong elsewhere."""
        given = self.headers.get("Authorization")
        self.server.authorizations.append(given)
        allowed = self.server.token is None or given == f"Bearer {self.server.token}"
        elsewhere = self.server.elsewhere if self.path.startswith("/search") else None
        if allowed and elsewhere is None:
            return False
        content = f"not allowed: {given}".encode()
        self.send_response(307 if allowed else 401)
        if allowed:
            self.send_header("Location", f"{elsewhere}{self.path}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return True

    def _search(self, values: dict[str, Any]) -> None:
        self.server.searches.append(values)
        west, south, east, north = values["bbox"]
        start, end = values["datetime"].split("/")
        wanted = values.get("collections")
        found = [
            item
            for item in self.server.items
            if (not wanted or item["collection"] in wanted)
            and start <= item["properties"]["datetime"] <= end
            and item["bbox"][0] <= east
            and item["bbox"][2] >= west
            and item["bbox"][1] <= north
            and item["bbox"][3] >= south
            and _passes(values.get("filter"), item)
        ]
        first = int(values.get("token", 0))
        part, links = found[first : first + self.server.page], []
        if first + self.server.page < len(found) or self.server.fault in ("endless", "repeating"):
            token = 0 if self.server.fault in ("endless", "repeating") else first + self.server.page
            body = {**values, "token": token}
            links = [{"rel": "next", "href": f"{self.server.url}/search", "method": "POST", "body": body}]
        if self.server.fault == "endless":
            part = [each | {"id": f"{each['id']}-{len(self.server.searches)}"} for each in part]
        self._answer({"type": "FeatureCollection", "features": part, "links": links})

    def _answer(self, value: dict[str, Any]) -> None:
        content, kind, status = json.dumps(value).encode(), "application/json", 200
        if self.server.fault == "html":
            content, kind = b"<!DOCTYPE html><html><body>Down for maintenance</body></html>", "text/html"
        elif self.server.fault == "error":
            content, status = json.dumps({"description": self.server.message}).encode(), 500
        elif self.server.fault == "text" and "features" in value:
            content, status = b'{"description": "filter-lang must be \\"cql2-json\\""}', 400
        elif self.server.fault == "slow":
            time.sleep(2)
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client does not wait any longer


def _passes(wanted: Any, item: dict[str, Any]) -> bool:
    """Whether an item is below the limit of a property, as CQL2 JSON states it; a filter as text is not evaluated."""
    if not isinstance(wanted, dict):
        return True
    assert wanted["op"] == "<"
    (name, limit) = wanted["args"]
    value = item["properties"].get(name["property"])
    return value is not None and value < limit


@contextmanager
def stac_api(items: Sequence[dict[str, Any]], *, page: int = 2, fault: str | None = None) -> Iterator[StacApi]:
    """Serve items; a fault is html, error, slow, endless or repeating, or `text`: filters as text are not taken."""
    server = StacApi(items, page=page, fault=fault)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
