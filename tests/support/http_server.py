"""HTTP file server for tests, in a separate process: GDAL holds the GIL while it waits for a response."""

from __future__ import annotations

import functools
import http.server
import io
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class _RangeRequestHandler(http.server.SimpleHTTPRequestHandler):
    """Handle range requests, as servers of cloud-optimised files do."""

    def log_message(self, *_: Any) -> None:
        pass

    def send_head(self) -> Any:
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            return super().send_head()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        size = path.stat().st_size
        begin, end = int(first), min(int(last or size - 1), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.send_header("Content-Length", str(end + 1 - begin))
        self.end_headers()
        return io.BytesIO(path.read_bytes()[begin : end + 1])


def _serve(folder: str, port_sender: Connection) -> None:
    handler = functools.partial(_RangeRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        port_sender.send(server.server_address[1])
        server.serve_forever()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP; yields its base URL."""
    port_receiver, port_sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(str(folder), port_sender), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port_receiver.recv()}"
    finally:
        process.kill()
        process.join()
