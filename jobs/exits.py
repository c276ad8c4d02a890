"""How a command ends: the exit status that a failure is told by, the same for a command and for each of many reruns."""

from __future__ import annotations

from jobs.stages import BrokenError, StageError, TilesFailedError
from mibf.errors import InputError
from pipeline.lease import LeaseHeldError, LeaseLostError
from pipeline.maps import IncompleteMapError
from pipeline.patience import AwayError
from pipeline.publish import PublishError

#: The statuses of failures that a person is told of in words, the more special kinds first.
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (InputError, 2),
    (TilesFailedError, 3),
    (BrokenError, 3),
    (LeaseHeldError, 4),
    *((kind, 1) for kind in (StageError, AwayError, PublishError, IncompleteMapError, LeaseLostError)),
)


def exit_status(error: Exception) -> int | None:
    """The status of a failure; None where it is a bug, or of a library's own kind."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), None)
