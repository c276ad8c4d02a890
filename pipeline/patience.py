"""Waiting for an object store that does not answer for a while. What is on a disk is not waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mibf.errors import InputError
from pipeline import storage
from pipeline.store import ClosedSubsetError

Result = TypeVar("Result")

#: Seconds that a store may be away before what needs it fails, and between two tries at first and at the most.
PATIENCE, FIRST_WAIT, LONGEST_WAIT = 600.0, 1.0, 30.0
#: What waiting would not mend.
_FINAL = (
    InputError,
    ClosedSubsetError,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    AttributeError,
    LookupError,
    TypeError,
)


class AwayError(RuntimeError):
    """An object store was away for longer than there is patience; the message names the URL and the remedy."""


def patiently(
    url: str,
    work: Callable[[], Result],
    *,
    tell: Callable[[str], None] = lambda line: None,
    pause: Callable[[float], object] = time.sleep,
    patience: float | None = None,
) -> Result:
    """Do work on a URL; where it is in an object store that fails, again and again until `patience` has passed.

    Args:
        url: what the work is on.
        work: to be done; tried again from its beginning.
        tell: given a line when the first try fails.
        pause: waits for so many seconds; true where nobody wants the result any more.
        patience: seconds; `PATIENCE` unless given.

    Raises:
        AwayError: all tries failed, or nobody wants the result any more.
        Exception: what the work raised on a disk; a missing file, a refused access or a mistake of ours anywhere.
    """
    patience = PATIENCE if patience is None else patience
    begun, wait, told = time.monotonic(), FIRST_WAIT, False
    while True:
        try:
            return work()
        except _FINAL:
            raise
        except Exception as error:  # each file system has its own for a server that does not answer
            if storage.is_local(url):
                raise
            why = f"{type(error).__name__}: {storage.without_queries(str(error))}"
            if time.monotonic() - begun + wait > patience:
                raise AwayError(
                    f"{storage.shown(url)}: has not answered for {patience:.0f} s ({why}); see to the object store and the "
                    "way to it, then run the same command again to go on"
                ) from error
            if not told:
                tell(f"{storage.shown(url)}: does not answer ({why}); trying again for {patience:.0f} s")
                told = True
            failure = error
        if pause(wait):
            raise AwayError(f"{storage.shown(url)}: is not waited for any longer") from failure
        wait = min(2 * wait, LONGEST_WAIT)
