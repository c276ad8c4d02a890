"""Structured log: JSON lines on standard error if the environment variable MIBF_LOG is `json`. Uses structlog.

Each line has `timestamp` (UTC), `level`, `event` (the message of the text log), and those of `workspace`, `name`, `run`,
`stage`, `scene`, `tile` that apply.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from typing import Any, Literal

import structlog

from mibf.errors import InputError
from mibf.redaction import redact

#: The environment variable and its allowed values.
VARIABLE, FORMATS = "MIBF_LOG", ("text", "json")


def check_format() -> None:
    """Check that MIBF_LOG is a known log format.

    Raises:
        InputError: it is not.
    """
    log_format = os.environ.get(VARIABLE, "text")
    if log_format not in FORMATS:
        raise InputError(f"{VARIABLE}={log_format}: must be `text` or `json`; unset it for text.")


def in_json() -> bool:
    """Whether the log format is JSON."""
    return os.environ.get(VARIABLE) == "json"


def about(**subject: str) -> AbstractContextManager[None]:
    """Bind context fields to every log line within the block."""
    return structlog.contextvars.bound_contextvars(**subject)


def event(words: str, *, level: Literal["info", "warning", "error"] = "info", **values: Any) -> None:
    """Write a JSON line to standard error if the log format is JSON; otherwise do nothing."""
    if in_json():
        getattr(_logger(), level)(redact(words), **{k: redact(v) if isinstance(v, str) else v for k, v in values.items()})


def _logger() -> Any:
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),  # looked up on each call, so redirection works
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(default=str),
        ],
        cache_logger_on_first_use=True,
    )
