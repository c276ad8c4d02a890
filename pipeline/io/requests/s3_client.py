"""Settings of botocore, the client below s3fs, for servers and proxies that accept a request and never answer."""

from __future__ import annotations

import os
from functools import cache


@cache
def configure_s3() -> None:
    """Bound the wait for an answer: three attempts of 15 s, which s3fs makes five times, for reading and for writing.

    Without this, a request that writes waits forever: botocore has it ask the server first whether to send the content
    (`Expect: 100-continue`), and aiohttp waits for that answer without a limit. Takes effect for clients that are made
    later; a retry mode in the environment stays.
    """
    os.environ.setdefault("AWS_RETRY_MODE", "standard")  # botocore's own default, "legacy", makes five attempts
    try:
        from botocore import handlers
    except ImportError:  # s3fs is not installed
        return
    handlers.BUILTIN_HANDLERS[:] = [each for each in handlers.BUILTIN_HANDLERS if handlers.add_expect_header not in each]
