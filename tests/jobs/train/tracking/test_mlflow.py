"""MLflow runs: one run per training, credentials kept out of files, and servers that fail or recover."""

from __future__ import annotations

import base64
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from jobs.runtime.progress import take_warnings
from jobs.train.tracking import mlflow
from jobs.train.tracking.mlflow import check_mlflow
from jobs.train.tracking.tracker import Tracker
from mibf.errors import InputError
from tests.support.mlflow_server import mlflow_server
from tests.support.tracking import check_curves, curves, train

needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow-skinny is not installed")
PARAMETERS = {"fingerprint": "abc", "train": {"epochs": 3, "learning_rate": 2e-3}, "sources": ["optical", "radar"]}


def test_missing_mlflow_raises_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mibf\[mlflow\]'"):
        check_mlflow("http://127.0.0.1:1")


def test_mlflow_parameters_are_flattened_truncated_and_redacted() -> None:
    flat = mlflow.flattened({"a": {"b": [1, 2]}, "c@d": "x" * 9000, "url": "https://me:secret@host/a.tif?sig=secret"})
    assert flat["a.b"] == "[1, 2]"
    assert flat["c_d"] == "x" * 6000
    assert flat["url"] == "https://host/a.tif"
    alike = mlflow.flattened({"weights": {"wet (bog)": 1, "wet [bog]": 2, "x" * 300: 3, "x" * 301: 4}})
    assert (alike["weights.wet _bog_"], alike["weights.wet _bog__2"]) == ("1", "2")
    assert sorted(alike.values()) == ["1", "2", "3", "4"]
    assert max(map(len, alike)) <= mlflow.KEY


class Runs:
    """Read the MLflow runs at a tracking URI."""

    def __init__(self, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient(tracking_uri=uri)

    def all(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name("mibf")
        return list(self.client.search_runs([experiment.experiment_id]))

    def curves(self, run: Any) -> dict[str, list[tuple[int, float]]]:
        return {
            key: [(m.step, round(m.value, 5)) for m in self.client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }


@pytest.fixture
def mlflow_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the tracking URI of an MLflow store in a folder, given as a relative path."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.chdir(tmp_path)
    uri = check_mlflow("./mlruns")
    assert uri == str(tmp_path / "mlruns")
    assert not Path(uri).exists(), "the check must write nothing"
    return uri


@pytest.mark.parametrize("at", [0, 6, 8])
def test_resumed_training_continues_its_mlflow_run(tmp_path: Path, mlflow_folder: str, at: int) -> None:
    def begin(resumed_at: int) -> Tracker:
        folder = str(tmp_path / "run")
        return Tracker.begin(folder, name="zion", parameters=PARAMETERS, mlflow=mlflow_folder, resumed_at=resumed_at)

    train(begin(0), range(1, 11))
    with begin(at) as tracker:
        train(tracker, range(at + 1, 13))
    runs = Runs(mlflow_folder)
    (run,) = runs.all()
    check_curves(runs.curves(run), 12)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "zion"
    assert run.data.params["fingerprint"] == "abc"
    assert run.data.params["train.learning_rate"] == "0.002"
    assert run.data.tags["mibf.version"]
    assert not take_warnings()


def test_each_new_training_creates_new_mlflow_run(tmp_path: Path, mlflow_folder: str) -> None:
    for parameters in (PARAMETERS, PARAMETERS, {"fingerprint": "other"}):
        with Tracker.begin(str(tmp_path / "run"), name="a", parameters=parameters, mlflow=mlflow_folder) as tracker:
            train(tracker, range(1, 5))
    assert len(Runs(mlflow_folder).all()) == 3


def test_failed_training_marks_mlflow_run_failed(tmp_path: Path, mlflow_folder: str) -> None:
    def fail() -> None:
        with Tracker.begin(str(tmp_path / "run"), name="a", parameters={}, mlflow=mlflow_folder) as tracker:
            tracker.step(1, {"loss": float("nan")})
            raise RuntimeError("bad")

    with pytest.raises(RuntimeError, match="bad"):
        fail()
    (run,) = Runs(mlflow_folder).all()
    assert run.info.status == "FAILED"
    assert str(run.data.metrics["steps/loss"]) == "nan"


@needs_mlflow
def test_mlflow_credentials_reach_server_but_no_file_or_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    allowed = "Basic " + base64.b64encode(b"me:secret").decode()
    with mlflow_server(allowed) as (port, process):
        with pytest.raises(InputError) as refused:
            check_mlflow(f"http://me:wrong-secret@127.0.0.1:{port}")
        assert "wrong-secret" not in str(refused.value)
        uri = check_mlflow(f"http://me:secret@127.0.0.1:{port}")
        Tracker.begin(str(tmp_path), name="a", parameters={}, mlflow=uri).close()
        with Tracker.begin(str(tmp_path), name="a", parameters={"uri": uri}, mlflow=uri) as tracker:
            train(tracker, range(1, 9))
            assert Runs(uri).client.get_run("run1").data.params["uri"] == f"http://127.0.0.1:{port}"
            process.kill()
            process.join()
            begun = time.monotonic()
            train(tracker, range(9, 13))
        assert time.monotonic() - begun < 60
    (warning,) = take_warnings()
    assert "MLflow" in warning
    assert "secret" not in warning + "".join(capfd.readouterr())
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()
    assert json.loads((tmp_path / "mlflow.json").read_text())["tracking"] == f"http://127.0.0.1:{port}"
    check_curves(curves(str(tmp_path / "tensorboard")), 12)


@needs_mlflow
def test_mlflow_metrics_are_complete_after_server_recovers(tmp_path: Path) -> None:
    with mlflow_server() as (port, _):
        uri = f"http://127.0.0.1:{port}"
        run = mlflow.MlflowRun(uri, str(tmp_path / "mlflow.json"), name="a", parameters={}, resumed_at=0)
        run.add(1, {"steps/loss": 1.0})
        run._uri = "http://127.0.0.1:1"
        with pytest.raises(Exception, match=r"127\.0\.0\.1:1/"):
            run.flush()
        run._uri = uri
        run.add(2, {"steps/loss": 0.5})
        run.close(failed=False)
        runs = Runs(uri)
        made = runs.client.get_run("run0")
        assert runs.curves(made) == {"steps/loss": [(1, 1.0), (2, 0.5)]}
        assert made.info.status == "FINISHED"


@needs_mlflow
@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "http://me:secret@127.0.0.1:1", "nothing://here"])
def test_unusable_tracking_uri_is_refused_within_30_seconds(uri: str) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match="MLflow") as refused:
        check_mlflow(uri)
    assert "secret" not in str(refused.value)
    assert time.monotonic() - begun < 30


@needs_mlflow
def test_database_uri_requires_full_mlflow_package(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = mlflow._installed
    monkeypatch.setattr(mlflow, "_installed", lambda name: name != "sqlalchemy" and installed(name))
    with pytest.raises(InputError, match="pip install mlflow"):
        check_mlflow("sqlite:///a.db")


def test_sqlite_and_folder_uris_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mlflow.absolute("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    assert mlflow.absolute(f"sqlite:///{tmp_path}/a.db") == f"sqlite:///{tmp_path}/a.db"
    assert mlflow.absolute("http://host:5000") == "http://host:5000"
    assert Path(mlflow.absolute("runs")).is_absolute()
