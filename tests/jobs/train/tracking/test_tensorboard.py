"""TensorBoard event files, read by TensorBoard's own rules: resuming, object stores, and storage that cannot be written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs.runtime.progress import take_warnings
from jobs.train.tracking import tensorboard
from jobs.train.tracking.tracker import Tracker
from pipeline.io import storage
from tests.support.s3_server import SECRET, ObjectStore
from tests.support.tracking import check_curves, curves, train


def interrupted_and_resumed(folder: str, at: int) -> None:
    """Log a run of 12 steps: stopped at step 10 without closing, then resumed from a checkpoint at step `at`."""
    train(Tracker.begin(folder, name="a", parameters={}, mlflow=None, resumed_at=0), range(1, 11))
    with Tracker.begin(folder, name="a", parameters={}, mlflow=None, resumed_at=at) as tracker:
        train(tracker, range(at + 1, 13))


@pytest.mark.parametrize("at", [0, 6, 8])
def test_resumed_tensorboard_curve_has_each_point_once(tmp_path: Path, at: int) -> None:
    interrupted_and_resumed(str(tmp_path), at)
    check_curves(curves(str(tmp_path / "tensorboard")), 12)
    assert len(list((tmp_path / "tensorboard").iterdir())) == (2 if at else 1)
    assert not take_warnings()


def test_new_training_replaces_previous_curves(tmp_path: Path) -> None:
    for steps in (12, 4):
        with Tracker.begin(str(tmp_path), name="a", parameters={}) as tracker:
            train(tracker, range(1, steps + 1))
    check_curves(curves(str(tmp_path / "tensorboard")), 4)


def test_event_file_names_do_not_contain_host(tmp_path: Path) -> None:
    Tracker.begin(str(tmp_path), name="a", parameters={}).close()
    (name,) = storage.names(str(tmp_path / "tensorboard"))
    assert name.removeprefix("events.out.tfevents.").isdecimal()


def test_event_file_at_url_is_written_at_end_of_epoch() -> None:
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
def test_event_files_in_s3_bucket_resume_without_secrets(used_bucket: ObjectStore) -> None:
    store = used_bucket
    interrupted_and_resumed(store.url("tracking/runs/main"), 6)
    check_curves(curves(store.url("tracking/runs/main/tensorboard")), 12)
    assert not take_warnings()
    files = store.files.find(f"{store.bucket}/tracking")
    assert files
    assert not any(SECRET.encode() in store.files.cat_file(file) for file in files)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full does not exist")
def test_full_disk_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnFullDisk(tensorboard.RecordWriter):
        def __init__(self, path: str) -> None:
            del path
            super().__init__("/dev/full")

    monkeypatch.setattr(tensorboard, "RecordWriter", OnFullDisk)
    with Tracker.begin(str(tmp_path), name="a", parameters={}) as tracker:
        train(tracker, range(1, 2000))
    (warning,) = take_warnings()
    assert "TensorBoard" in warning
    assert "No space left" in warning


def test_event_files_are_complete_after_storage_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
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
    (warning,) = take_warnings()
    assert "secret" not in warning
