"""The tracker: a failing writer warns once and training continues; MLflow is imported only when configured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.runtime.progress import take_warnings
from jobs.train.tracking.tracker import Tracker
from tests.support.tracking import train


def test_folder_that_cannot_be_created_warns_once(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "run").write_text("a file")
    with Tracker.begin(str(tmp_path / "run"), name="a", parameters={}) as tracker:
        train(tracker, range(1, 13))
    assert len(take_warnings()) == 1


def test_warnings_go_to_report_callback_when_given(tmp_path: Path) -> None:
    """A worker's own standard error is not visible to the user."""
    (tmp_path / "run").write_text("a file")
    messages: list[str] = []
    with Tracker.begin(str(tmp_path / "run"), name="a", parameters={}, report=messages.append) as tracker:
        train(tracker, range(1, 13))
    assert len(messages) == 1
    assert "TensorBoard" in messages[0]
    assert not take_warnings()


def test_mlflow_is_imported_only_when_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # an import would fail
    with Tracker.begin(str(tmp_path), name="a", parameters={}) as tracker:
        train(tracker, range(1, 13))
    assert not take_warnings()
