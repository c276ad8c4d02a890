"""Failures of stages, and the exit status of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.runtime.worker_resources import GpusUnavailableError
from mibf.errors import InputError
from pipeline.io.lease import LeaseHeldError, LeaseLostError
from pipeline.io.retry import StorageUnavailableError
from pipeline.maps.map_store import IncompleteMapError
from pipeline.publishing.class_map import MapReplacedError
from pipeline.publishing.publish import PublishError


class StageError(Exception):
    """A stage failed for the reason given in the message; exit status 1."""


class TilesFailedError(StageError):
    """A map finished, but some tiles failed; exit status 3."""


class BrokenError(StageError):
    """A store or map differs from what was written; exit status 3."""


@contextmanager
def naming_scene(scene: str, number: int, *, of: int) -> Iterator[None]:
    """Name one of several scenes in errors about its files, and its number, which is its row in a table of scenes."""
    try:
        yield
    except InputError as error:
        if of > 1:  # the error keeps its class, by which some are handled
            message = str(error).removeprefix(f"scene {scene!r}: ")
            error.args = InputError(f"scene {scene!r} ({number:,} of {of:,}): {message}").args
        raise


#: Exit statuses of failures reported as a message without traceback; more specific types first.
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (InputError, 2),
    (TilesFailedError, 3),
    (BrokenError, 3),
    (LeaseHeldError, 4),
    (LeaseLostError, 4),
    *((kind, 1) for kind in (StageError, StorageUnavailableError, PublishError, IncompleteMapError, MapReplacedError)),
    (GpusUnavailableError, 1),
)


def exit_status(error: Exception) -> int | None:
    """Return the exit status of a failure; None for a bug or an unexpected library error."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), None)
