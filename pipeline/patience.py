"""Waiting for an object store that does not answer for a while. What is on a disk is not waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mibf.errors import InputError
from pipeline import storage

Result = TypeVar("Result")

#: Seconds that a store may be away before what needs it fails, and between two tries at first and at the most.
PATIENCE, FIRST_WAIT, LONGEST_WAIT = 600.0, 1.0, 30.0
#: What waiting would not mend.
_FINAL = (InputError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def patiently(
    url: str,
    work: Callable[[], Result],
    *,
    tell: Callable[[str], None] = lambda line: None,
    patience: float | None = None,
) -> Result:
    """Do work on a URL; where it is in an object store that fails, again and again until `patience` has passed.

    `tell` is given a line when the first try fails. What a missing file or a refused access raises is raised at once.
    """
    until = time.monotonic() + (PATIENCE if patience is None else patience)
    wait, told = FIRST_WAIT, False
    while True:
        try:
            return work()
        except _FINAL:
            raise
        except Exception as error:  # each file system has its own for a server that does not answer
            if storage.is_local(url) or time.monotonic() + wait > until:
                raise
            if not told:
                tell(f"{storage.shown(url)}: does not answer ({type(error).__name__}); trying again")
                told = True
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)
