"""Optional MLflow tracking: one MLflow run per training run, continued when training is resumed.

The package mlflow-skinny is an optional extra, imported only if tracking is configured. User and password of a server are
part of its URI, or come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; neither is stored anywhere. The
experiment is "mibf", or the value of MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from mibf import __version__
from mibf.errors import InputError
from pipeline.io import checksums, storage

#: Seconds between two requests within an epoch.
INTERVAL = 30.0
#: Maximum number of metrics queued while the server is unavailable; the oldest are dropped first.
MAX_QUEUED = 100_000
# MLflow's limits: metrics and parameters per request, characters of a key and of a parameter's value.
BATCH = 1000
PARAMETERS = 100
KEY = 250
VALUE = 6000
SQLITE = "sqlite:///"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def check_mlflow(uri: str) -> str:
    """Check that metrics can be sent to a tracking URI; nothing is written.

    Returns:
        The URI for the workers, with the path of a folder or SQLite file made absolute.

    Raises:
        InputError: MLflow is not installed, or the URI cannot be used.
    """
    uri = absolute(uri)
    redacted = storage.redact_url(uri)
    if not _installed("mlflow"):
        raise InputError(f"MLflow ({redacted}): the package mlflow-skinny is not installed; pip install 'mibf[mlflow]'.")
    if _scheme(uri) in DATABASES and not _installed("sqlalchemy"):
        raise InputError(
            f"MLflow ({redacted}): a database needs the full package; pip install mlflow. Or give a server's URI, or "
            "a folder."
        )
    if storage.is_local(uri):
        storage.check_writable(uri)
        return uri
    if uri.startswith(SQLITE):
        storage.check_writable(str(Path(uri.removeprefix(SQLITE)).parent))
        return uri
    try:
        _client(uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow raises its own errors and those of its dependencies
        raise InputError(
            f"MLflow ({redacted}): no tracking server responds there ({describe_error(error)}); start it, or correct "
            "the URI."
        ) from error
    return uri


def describe_error(error: BaseException) -> str:
    """Format an error as one line without credentials: MLflow's errors quote the URI as it was given."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {storage.without_queries(lines[0])[:300]}"


def absolute(uri: str) -> str:
    """A tracking URI that does not depend on the working directory."""
    if uri.startswith(SQLITE):
        return SQLITE + os.path.abspath(uri.removeprefix(SQLITE))
    if storage.is_local(uri) and _scheme(uri) != "databricks":
        return storage.local_path(uri)
    return uri


def _installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of that name in the working directory has no origin


def _scheme(uri: str) -> str:
    return uri.partition(":")[0].partition("+")[0]


def _client(uri: str) -> Any:
    """The MLflow client of a tracking URI, with short timeouts: an unavailable server must not block for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow would send usage data to its developers
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # including credentials
    if storage.is_local(uri):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow refuses folders by default
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


class MlflowRun:
    """The MLflow run of one training run. Metrics are queued until sent, and stay queued while the server is unavailable."""

    def __init__(self, uri: str, record_url: str, *, name: str, parameters: Mapping[str, Any], resumed_at: int) -> None:
        """Send nothing yet. `record_url` is the URL of the file that stores the run's id."""
        self._uri = absolute(uri)
        self._record_url = record_url
        self._name = name
        self._parameters = flattened(parameters)
        self._resumed = resumed_at > 0
        self._waiting: deque[tuple[str, float, int, int]] = deque(maxlen=MAX_QUEUED)
        self._client: Any = None
        self._run = ""
        self._sent: dict[str, int] = {}  # last step already in the continued MLflow run, by key
        self._last, self._is_reachable = time.monotonic(), True

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Queue metrics, and send them periodically."""
        now = int(time.time() * 1000)  # a metric sent twice has the same timestamp and counts once
        self._waiting.extend((key, value, now, step) for key, value in figures.items())
        if self._is_reachable and time.monotonic() - self._last > INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Send the queued metrics; if that fails, they stay queued for the next attempt."""
        self._last, self._is_reachable = time.monotonic(), False
        self._open()
        from mlflow.entities import Metric

        while self._waiting:
            batch = list(islice(self._waiting, BATCH))
            # MLflow cannot delete metrics. Those of steps that are repeated after resuming are equal, by the seeds.
            new = [Metric(*figure) for figure in batch if figure[3] > self._sent.get(figure[0], -1)]
            if new:
                self._client.log_batch(self._run, metrics=new)
            for _ in batch:
                self._waiting.popleft()
        self._is_reachable = True

    def close(self, *, failed: bool) -> None:
        """Send the queued metrics and set the final status of the run."""
        self.flush()
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")

    def _open(self) -> None:
        """Find or create the MLflow run, with its parameters. Called at the first flush, and again if that failed."""
        if self._client is not None:
            return
        client = _client(self._uri)
        record = {"tracking": storage.redact_url(self._uri), "parameters": checksums.digest(self._parameters)}
        run = self._known(client, record)
        if run is not None:
            histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
            self._sent = {key: max(figure.step for figure in history) for key, history in histories.items()}
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {"mibf.version": __version__}
            run = client.create_run(_experiment(client), run_name=self._name, tags=tags)
            storage.write_json(self._record_url, {"run_id": run.info.run_id, **record})
        from mlflow.entities import Param

        missing = [Param(key, value) for key, value in self._parameters.items() if key not in run.data.params]
        for first in range(0, len(missing), PARAMETERS):
            client.log_batch(run.info.run_id, params=missing[first : first + PARAMETERS])
        self._client, self._run = client, run.info.run_id

    def _known(self, client: Any, record: dict[str, str]) -> Any:
        """The MLflow run to continue: the stored one, unless it is of another training run, finished or deleted."""
        from mlflow.exceptions import MlflowException

        try:
            before = storage.read_json(self._record_url)
            run_id = before.pop("run_id")
        except (FileNotFoundError, ValueError, KeyError, AttributeError):
            return None
        if before.get("tracking") != record["tracking"] or not (self._resumed or before == record):
            return None
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        over = run.info.status == "FINISHED" and not self._resumed
        return None if over or run.info.lifecycle_stage == "deleted" else run


def _experiment(client: Any) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mibf")
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def flattened(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Flatten parameters for MLflow: keys joined by dots, text cut to MLflow's limits, no credentials.

    Keys that MLflow's characters or limits make equal, such as those of classes, get a number at the end.
    """
    flat: dict[str, str] = {}
    for name, value in _leaves(parameters):
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        key, number = re.sub(r"[^\w./ -]", "_", name)[:KEY], 1
        while (free := key if number == 1 else f"{key[: KEY - len(str(number)) - 1]}_{number}") in flat:
            number += 1
        flat[free] = storage.without_queries(text)[:VALUE]
    return flat


def _leaves(parameters: Mapping[str, Any], *, before: str = "") -> Iterator[tuple[str, Any]]:
    """The values other than mappings, with their keys joined by dots."""
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, before=f"{before}{name}.")
        else:
            yield f"{before}{name}", value
