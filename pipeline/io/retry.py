"""Retry transient object-store errors with exponential backoff. Local paths are never retried."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mibf.errors import InputError
from pipeline.io import storage
from pipeline.io.lease import LeaseLostError

Result = TypeVar("Result")
#: Seconds that a store may be unavailable before the call fails; initial and maximum delay between attempts.
RETRY_SECONDS, FIRST_WAIT, LONGEST_WAIT = 600.0, 1.0, 30.0
#: Errors that a retry cannot fix.
_FINAL = (
    InputError,
    LeaseLostError,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    AttributeError,
    LookupError,
    TypeError,
)


class StorageUnavailableError(RuntimeError):
    """The object store was unavailable for longer than `timeout`; the message names the URL and the remedy."""


def call_with_retry(
    url: str,
    work: Callable[[], Result],
    *,
    report: Callable[[str], None] = lambda line: None,
    pause: Callable[[float], object] = time.sleep,
    timeout: float | None = None,
) -> Result:
    """Call `work`, which uses a URL; if that is in an object store, retry failures until `timeout` seconds have passed.

    Args:
        url: what the work reads or writes.
        work: called again from its beginning on every attempt.
        report: called with one line when the first attempt fails.
        pause: waits for this many seconds; returns true to cancel, when the result is no longer needed.
        timeout: seconds; `RETRY_SECONDS` by default.

    Raises:
        StorageUnavailableError: all attempts failed, or `pause` cancelled them.
        Exception: whatever the work raised on a local path; a missing file, denied access or a programming error anywhere.
    """
    timeout = RETRY_SECONDS if timeout is None else timeout
    started, wait, warned = time.monotonic(), FIRST_WAIT, False
    while True:
        try:
            return work()
        except _FINAL:
            raise
        except Exception as error:  # each file system raises its own types for an unresponsive server
            if storage.is_local(url):
                raise
            why = f"{type(error).__name__}: {storage.without_queries(str(error))}"
            if time.monotonic() - started + wait > timeout:
                raise StorageUnavailableError(
                    f"{storage.redact_url(url)}: has not responded for {timeout:.0f} s ({why}); check the object store and "
                    "the network, then run the same command again to resume"
                ) from error
            if not warned:
                report(f"{storage.redact_url(url)}: does not respond ({why}); retrying for up to {timeout:.0f} s")
                warned = True
            failure = error
        if pause(wait):
            raise StorageUnavailableError(f"{storage.redact_url(url)}: retries were cancelled") from failure
        wait = min(2 * wait, LONGEST_WAIT)
