"""A training's figures in MLflow, where the person asks for it: one MLflow run a training, gone on with when it is resumed.

The package mlflow-skinny is an extra, imported only when asked for. User and password of a server come with its URI, or
from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; neither is written anywhere. The experiment is "mibf", or what
MLFLOW_EXPERIMENT_NAME says.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import deque
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from mibf import __version__
from mibf.errors import InputError
from pipeline import storage

#: Seconds between two sendings within an epoch.
INTERVAL = 30.0
#: The most figures that wait for a server that is away; the oldest go first.
WAITING = 100_000
# MLflow's own limits: figures and parameters of a request, letters of a key and of a parameter's value.
BATCH = 1000
PARAMETERS = 100
KEY = 250
VALUE = 6000
SQLITE = "sqlite:///"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def check_mlflow(uri: str) -> str:
    """See that figures can be sent to a tracking URI; nothing is written.

    Returns:
        The URI as workers are to take it: a folder or SQLite file by its absolute path.

    Raises:
        InputError: MLflow is not installed, or the URI cannot be used.
    """
    uri = absolute(uri)
    place = storage.shown(uri)
    if not _installed("mlflow"):
        raise InputError(f"MLflow ({place}): the package mlflow-skinny is not installed; pip install 'mibf[mlflow]'.")
    if _scheme(uri) in DATABASES and not _installed("sqlalchemy"):
        raise InputError(
            f"MLflow ({place}): a database needs the whole package; pip install mlflow. Or give a server's URI, or a folder."
        )
    if storage.is_local(uri):
        storage.check_writable(uri)
        return uri
    if uri.startswith(SQLITE):
        storage.check_writable(str(Path(uri.removeprefix(SQLITE)).parent))
        return uri
    try:
        _client(uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow has its own, and lets through those of what it stands on
        raise InputError(
            f"MLflow ({place}): does not answer as a tracking server ({told(error)}); start it, or mend the URI."
        ) from error
    return uri


def told(error: BaseException) -> str:
    """An error in one line, without credentials: MLflow's name the URI as it was given."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {storage.without_queries(lines[0])[:300]}"


def absolute(uri: str) -> str:
    """A tracking URI that means the same wherever a process stands."""
    if uri.startswith(SQLITE):
        return SQLITE + os.path.abspath(uri.removeprefix(SQLITE))
    if storage.is_local(uri) and _scheme(uri) != "databricks":
        return storage.local_path(uri)
    return uri


def _installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of that name beside us has none


def _scheme(uri: str) -> str:
    return uri.partition(":")[0].partition("+")[0]


def _client(uri: str) -> Any:
    """MLflow's client of a tracking URI, set up so that a server that is away holds nobody up for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers of its use
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # credentials and all
    if storage.is_local(uri):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it would rather have a database
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


class MlflowRun:
    """The MLflow run of one training. Figures wait here until they are sent, and longer while the server is away."""

    def __init__(self, uri: str, note: str, *, name: str, parameters: Mapping[str, Any], resumed_at: int) -> None:
        """Nothing is sent yet; `note` is the URL of the file that keeps the run's id."""
        self._uri = absolute(uri)
        self._note = note
        self._name = name
        self._parameters = flattened(parameters)
        self._resumed = resumed_at > 0
        self._waiting: deque[tuple[str, float, int, int]] = deque(maxlen=WAITING)
        self._client: Any = None
        self._run = ""
        self._sent: dict[str, int] = {}  # the last step that a run that is gone on with has, by key
        self._last, self._reached = time.monotonic(), True

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures, and send them now and then."""
        now = int(time.time() * 1000)  # a figure that is sent twice is one figure, as it has the same time
        self._waiting.extend((key, value, now, step) for key, value in figures.items())
        if self._reached and time.monotonic() - self._last > INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Send what waits; where that fails it is kept for the next time."""
        self._last, self._reached = time.monotonic(), False
        self._open()
        from mlflow.entities import Metric

        while self._waiting:
            batch = list(islice(self._waiting, BATCH))
            # MLflow takes no figure back. Those that it has of steps that are done again are as good: seeds decide.
            news = [Metric(*figure) for figure in batch if figure[3] > self._sent.get(figure[0], -1)]
            if news:
                self._client.log_batch(self._run, metrics=news)
            for _ in batch:
                self._waiting.popleft()
        self._reached = True

    def close(self, *, failed: bool) -> None:
        """Send what waits and tell how the training ended."""
        self.flush()
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")

    def _open(self) -> None:
        """Find the training's run or make one, with its parameters. Done at the first sending, and again if that failed."""
        if self._client is not None:
            return
        client = _client(self._uri)
        note = {"tracking": storage.shown(self._uri), "parameters": storage.digest(self._parameters)}
        run = self._known(client, note)
        if run is not None:
            histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
            self._sent = {key: max(figure.step for figure in history) for key, history in histories.items()}
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {"mibf.version": __version__}
            run = client.create_run(_experiment(client), run_name=self._name, tags=tags)
            storage.write_json(self._note, {"run_id": run.info.run_id, **note})
        from mlflow.entities import Param

        missing = [Param(key, value) for key, value in self._parameters.items() if key not in run.data.params]
        for first in range(0, len(missing), PARAMETERS):
            client.log_batch(run.info.run_id, params=missing[first : first + PARAMETERS])
        self._client, self._run = client, run.info.run_id

    def _known(self, client: Any, note: dict[str, str]) -> Any:
        """The run to go on with: that of the note, unless it is of another training, or finished, or no more there."""
        from mlflow.exceptions import MlflowException

        try:
            before = storage.read_json(self._note)
            run_id = before.pop("run_id")
        except (FileNotFoundError, ValueError, KeyError, AttributeError):
            return None
        if before.get("tracking") != note["tracking"] or not (self._resumed or before == note):
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


def flattened(parameters: Mapping[str, Any], *, before: str = "") -> dict[str, str]:
    """Parameters as MLflow takes them: one level, keys joined by dots, text no longer than it keeps, no credentials."""
    flat: dict[str, str] = {}
    for name, value in parameters.items():
        key = f"{before}{name}"
        if isinstance(value, Mapping):
            flat |= flattened(value, before=f"{key}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        flat[re.sub(r"[^\w./ -]", "_", key)[:KEY]] = storage.without_queries(text)[:VALUE]
    return flat
