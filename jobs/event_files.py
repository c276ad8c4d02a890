"""Event files, which TensorBoard draws curves of, at any URL.

tensorboardX makes them, not `torch.utils.tensorboard`, which needs tensorboard itself with all that comes along; Ray Train
brings tensorboardX. Of it we take the records and their format alone. Its `SummaryWriter` hands events to a thread by a
queue of ten: where the disk is full that thread dies and the training waits for room in the queue for ever; a flush leaves
out what is still queued; and its files are named for the host.

It writes to local disks only. For another place a file is kept in a temporary folder and put there whole at each flush.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from pipeline import storage

PREFIX = "events.out.tfevents."


class EventFiles:
    """The event file of one training in a folder of its own; a resumed training adds a file of its own."""

    def __init__(self, folder: str, *, resumed_at: int) -> None:
        """Begin a file; `resumed_at` is the step that the training goes on from, 0 for a new one, which takes files away."""
        if not resumed_at:
            storage.remove(folder)
        name = PREFIX + _next_number(folder)
        self._url = storage.join(folder, name)
        self._temporary: TemporaryDirectory[str] | None = None
        if storage.is_local(folder):
            path = Path(storage.local_path(folder)) / name
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            self._temporary = TemporaryDirectory(prefix="mibf-")
            path = Path(self._temporary.name) / name
        self._path = path
        self._writer: RecordWriter | None = RecordWriter(str(path))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resumed_at:
            # Readers drop what files before this one hold from this step on. The checkpoint's own step stays.
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=resumed_at + 1, session_log=start))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures by their tags."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Have all that was added at the URL."""
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except OSError:
            self._give_up()
            raise
        if self._temporary is not None:  # where this fails, the next flush puts the whole file there
            storage.write_bytes(self._url, self._path.read_bytes())

    def close(self, *, failed: bool) -> None:
        """Flush and end the file; to an event file it is all the same whether the training failed."""
        del failed
        try:
            self.flush()
        finally:
            self._give_up()
            if self._temporary is not None:
                self._temporary.cleanup()

    def _write(self, event: Event) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write(event.SerializeToString())
        except OSError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """End the file: after a write that failed it may end within a record, and what followed could not be read."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def _next_number(folder: str) -> str:
    """The time, as event files are named by it; readers take them by name, so never before that of a file that is there."""
    numbers = [name.removeprefix(PREFIX) for name in storage.names(folder) if name.startswith(PREFIX)]
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return f"{max(int(time.time()), last + 1):010d}"
