"""TensorBoard event files at any URL.

They are written with tensorboardX, which Ray Train already depends on, not with `torch.utils.tensorboard`, which requires
tensorboard and all its dependencies. Only its record writer and event format are used, not its `SummaryWriter`, which passes
events to a thread through a queue of ten. Measured with tensorboardX 2.6.5: if the disk is full, that thread dies and
training blocks forever on the full queue (after 114 events); a flush leaves out what is still queued (10 of 2,000 events),
so an upload would be incomplete; an event takes 73 us instead of 14 us; and file names contain the host's name.

tensorboardX writes to local disks only. For other URLs the file is kept in a temporary folder and uploaded in full at each
flush.
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

from pipeline.io import storage

PREFIX = "events.out.tfevents."


class EventFiles:
    """The event file of one training run, in a separate folder; a resumed run adds another file to the folder."""

    def __init__(self, folder: str, *, resumed_at: int) -> None:
        """Create a file. `resumed_at` is the step to resume from; 0 starts a new run and deletes existing files."""
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
            # Readers drop the events of earlier files from this step on. The checkpoint's own step is kept.
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=resumed_at + 1, session_log=start))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Write metrics by tag."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Write everything that was added to the URL."""
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except OSError:
            self._give_up()
            raise
        if self._temporary is not None:  # if this fails, the next flush uploads the complete file
            storage.write_bytes(self._url, self._path.read_bytes())

    def close(self, *, failed: bool) -> None:
        """Flush and close the file; an event file does not record whether training failed."""
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
        """Close the file: after a failed write it may end within a record, and any later records would be unreadable."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def _next_number(folder: str) -> str:
    """The time as used in event file names. Readers sort by name, so it is always later than that of an existing file."""
    numbers = [name.removeprefix(PREFIX) for name in storage.names(folder) if name.startswith(PREFIX)]
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return f"{max(int(time.time()), last + 1):010d}"
