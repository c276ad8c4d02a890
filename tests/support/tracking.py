"""Log the metrics of a training run, and read its TensorBoard curves back."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from jobs.train.tracking.tracker import Tracker
from pipeline.io import storage


def records(content: bytes) -> Iterator[Event]:
    """Yield the events of a file, each verified by its checksums."""
    while content:
        length, header_crc = struct.unpack("<QI", content[:12])
        data, (crc,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
        assert header_crc == masked_crc32c(content[:8])
        assert crc == masked_crc32c(data)
        yield Event.FromString(data)
        content = content[16 + length :]


def curves(folder: str) -> dict[str, list[tuple[int, float]]]:
    """Return curves as TensorBoard draws them: files by name; a session start drops points at or after its step."""
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
    """Log the metrics of a training run; every value is a function of the step."""
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
        "steps/loss",
        "steps/rate",
        "train/loss",
        "validation/overall_accuracy",
        "epochs/temperature",
    }
