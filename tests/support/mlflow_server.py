"""Minimal MLflow tracking server for tests, in a separate process that can be killed at any time."""

from __future__ import annotations

import http.server
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any
from urllib.parse import parse_qs, urlsplit


class _Tracking(http.server.BaseHTTPRequestHandler):
    """Keep one experiment and its runs in memory; answer 401 to unauthorized requests."""

    experiments: list[dict[str, Any]] = []  # noqa: RUF012  # one server per process: its handlers share this
    runs: dict[str, dict[str, Any]] = {}  # noqa: RUF012  # one server per process: its handlers share this
    allowed: str | None = None

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({key: value[0] for key, value in parse_qs(urlsplit(self.path).query).items()})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}"))

    def _answer(self, body: dict[str, Any]) -> None:
        if self.allowed and self.headers.get("Authorization") != self.allowed:
            self._send(401, {"error_code": "UNAUTHENTICATED", "message": "missing or wrong credentials"})
            return
        name = urlsplit(self.path).path.partition("/mlflow/")[2].replace("/", "_").replace("-", "_")
        try:
            self._send(200, getattr(self, name)(body))
        except LookupError as error:
            self._send(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": str(error)})

    def _send(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def experiments_search(self, _: dict[str, Any]) -> Any:
        return {"experiments": self.experiments}

    def experiments_get_by_name(self, body: dict[str, Any]) -> Any:
        by_name = {experiment["name"]: experiment for experiment in self.experiments}
        return {"experiment": by_name[body["experiment_name"]]}

    def experiments_create(self, body: dict[str, Any]) -> Any:
        self.experiments.append({"experiment_id": "1", "name": body["name"], "lifecycle_stage": "active"})
        return {"experiment_id": "1"}

    def runs_create(self, body: dict[str, Any]) -> Any:
        run_id = f"run{len(self.runs)}"
        info = {"run_id": run_id, "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active"}
        self.runs[run_id] = {"info": info, "data": {"metrics": [], "params": [], "tags": body["tags"]}}
        return {"run": self.runs[run_id]}

    def runs_get(self, body: dict[str, Any]) -> Any:
        return {"run": self.runs[body["run_id"]]}

    def runs_update(self, body: dict[str, Any]) -> Any:
        info = self.runs[body["run_id"]]["info"]
        info["status"] = body["status"]
        return {"run_info": info}

    def runs_log_batch(self, body: dict[str, Any]) -> Any:
        data = self.runs[body["run_id"]]["data"]
        data["metrics"] += [metric for metric in body.get("metrics", []) if metric not in data["metrics"]]
        data["params"] += body.get("params", [])
        return {}

    def metrics_get_history(self, body: dict[str, Any]) -> Any:
        metrics = self.runs[body["run_id"]]["data"]["metrics"]
        return {"metrics": [metric for metric in metrics if metric["key"] == body["metric_key"]]}


def _serve(pipe: Connection, allowed: str | None) -> None:
    _Tracking.allowed = allowed
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Tracking) as server:
        pipe.send(server.server_address[1])
        server.serve_forever()


@contextmanager
def mlflow_server(allowed: str | None = None) -> Iterator[tuple[int, BaseProcess]]:
    """Yield the port and the process of a server; `allowed` is the only Authorization header that it accepts."""
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(child, allowed), daemon=True)
    process.start()
    try:
        yield parent.recv(), process
    finally:
        process.kill()
        process.join()
