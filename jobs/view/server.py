"""A local HTTP server for published maps, with range requests.

It listens at 127.0.0.1 only, and answers only requests that name this machine as their host: otherwise a site that is open
in the same browser could read the maps by pointing its own name here (DNS rebinding). Other sites may read them only if
their origin is allowed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast
from urllib.parse import quote, unquote, urlsplit

from jobs.view.served_map import Content, ServedMap
from mibf.errors import InputError
from mibf.redaction import without_queries
from pipeline.io.retry import StorageUnavailableError
from pipeline.publishing.page.page_file import INDEX
from pipeline.publishing.published_map import ITEM

#: Names under which this machine may be addressed.
HOSTS = ("127.0.0.1", "localhost", "[::1]")
#: Requests that the log keeps.
LOGGED = 10_000
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class MapServer(ThreadingHTTPServer):
    """Serves each map under its name; the root lists the maps, or leads to the only one."""

    daemon_threads = True

    def __init__(self, maps: Sequence[ServedMap], *, port: int = 0, origin: str | None = None) -> None:
        """Bind to a port of 127.0.0.1; 0 takes a free one. `origin` is that of pages that may read the maps, too.

        Raises:
            InputError: the port is taken, or may not be used.
        """
        self.maps = {served.name: served for served in maps}
        self.origin = origin
        #: The requests: method, path, and range or an empty text.
        self.log: deque[tuple[str, str, str]] = deque(maxlen=LOGGED)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: cannot be used ({error}); choose another one, or leave it out.") from error

    @property
    def url(self) -> str:
        """The address to open."""
        root = f"http://127.0.0.1:{self.server_address[1]}/"
        return f"{root}{quote(next(iter(self.maps)), safe='')}/" if len(self.maps) == 1 else root


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mibf", ""
    timeout = 60  # of idle connections, in seconds

    def do_GET(self) -> None:  # the base class's name
        self._answer()

    def do_HEAD(self) -> None:  # the base class's name
        self._answer()

    def do_OPTIONS(self) -> None:  # the base class's name
        """Answer the question whether another site may send ranges."""
        if self._is_addressed():
            headers = {"Access-Control-Allow-Methods": "GET, HEAD", "Access-Control-Allow-Headers": "Range"}
            self._send_head(HTTPStatus.NO_CONTENT, 0, headers)

    def log_message(self, *_: object) -> None:
        """Print nothing: the server's log has all requests."""

    @property
    def _server(self) -> MapServer:
        return cast(MapServer, self.server)

    def _is_addressed(self) -> bool:
        host = re.sub(r":\d+$", "", self.headers.get("Host", ""))
        if host in HOSTS:
            return True
        self._send(HTTPStatus.FORBIDDEN, b"This server answers requests to 127.0.0.1 and localhost only.\n")
        return False

    def _answer(self) -> None:
        self._server.log.append((self.command, self.path, self.headers.get("Range", "")))
        if not self._is_addressed():
            return
        name, slash, file = unquote(urlsplit(self.path).path).removeprefix("/").partition("/")
        served = self._server.maps.get(name)
        with suppress(BrokenPipeError, ConnectionResetError):  # the browser needs the rest no longer
            if not name:
                self._send_list()
            elif served is None or not slash:
                target = {"Location": f"/{quote(name, safe='')}/"} if served is not None else {}
                status = HTTPStatus.MOVED_PERMANENTLY if target else HTTPStatus.NOT_FOUND
                self._send(status, b"", headers=target)
            else:
                self._send_file(served, file or INDEX)

    def _send_list(self) -> None:
        rows = "".join(f'<li><a href="{quote(name, safe="")}/">{escape(name)}</a></li>' for name in self._server.maps)
        page = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Maps</title><h1>Maps</h1><ul>{rows}</ul></html>'
        self._send(HTTPStatus.OK, page.encode(), "text/html")

    def _send_file(self, served: ServedMap, name: str) -> None:
        try:
            content = served.open(name)
        except (StorageUnavailableError, OSError) as error:
            self._send(HTTPStatus.BAD_GATEWAY, f"{name}: {without_queries(str(error))}\n".encode())
            return
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, f"{name}: there is no such file of a published map\n".encode())
        else:
            self._send_content(content, name)

    def _send_content(self, content: Content, name: str) -> None:
        first, end, status = 0, content.size, HTTPStatus.OK
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{content.etag}"'}
        # A file whose checksum is part of its address never changes; all others are asked for again.
        fixed = urlsplit(self.path).query.startswith("v=")
        headers["Cache-Control"] = "no-store" if name == ITEM else "max-age=3600" if fixed else "no-cache"
        if self.headers.get("If-None-Match") == headers["ETag"]:
            self._send_head(HTTPStatus.NOT_MODIFIED, None, headers)
            return
        if (wanted := self.headers.get("Range")) is not None:
            found = _parse_range(wanted, content.size)
            if found is None:
                self._send_head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, {"Content-Range": f"bytes */{content.size}"})
                return
            first, end, status = *found, HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{content.size}"
        self._send_head(status, end - first, headers | {"Content-Type": content.media_type})
        if self.command == "GET":
            try:
                for part in content.read(first, end):
                    self.wfile.write(part)
            except BrokenPipeError:
                raise
            except (StorageUnavailableError, OSError):  # the browser finds that bytes are missing
                self.close_connection = True

    def _send(
        self, status: HTTPStatus, body: bytes, kind: str = "text/plain", headers: dict[str, str] | None = None
    ) -> None:
        self._send_head(status, len(body), {"Content-Type": f"{kind}; charset=utf-8", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_head(self, status: HTTPStatus, length: int | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self._server.origin is not None:
            headers |= {
                "Access-Control-Allow-Origin": self._server.origin,
                "Access-Control-Expose-Headers": "Accept-Ranges, Content-Length, Content-Range, ETag",
                "Vary": "Origin",
            }
        for name, value in (headers | {"X-Content-Type-Options": "nosniff"}).items():
            self.send_header(name, value)
        self.end_headers()


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """The bytes of a single range as first and end; None if it cannot be satisfied.

    >>> [_parse_range(text, 10) for text in ("bytes=2-5", "bytes=8-", "bytes=-3", "bytes=10-")]
    [(2, 6), (8, 10), (7, 10), None]
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        return max(0, size - int(found[2])), size
    first, end = int(found[1]), size if found[2] == "" else min(int(found[2]) + 1, size)
    return (first, end) if first < end else None
