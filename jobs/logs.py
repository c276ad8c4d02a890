"""What is told while work goes on, as JSON lines for machines, where MIBF_LOG in the environment is `json`.

structlog writes them. Each line has `timestamp` (UTC), `level`, `event` (the words that a person would be told), and
whatever of `workspace`, `name`, `run`, `stage`, `scene`, `tile` it is about.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from typing import Any, Literal

import structlog

from mibf.discreet import told
from mibf.errors import InputError

#: The variable of the environment, and what it may say.
VARIABLE, FORMATS = "MIBF_LOG", ("text", "json")


def check_format() -> None:
    """See that the environment asks for a form of log that there is.

    Raises:
        InputError: it does not.
    """
    asked = os.environ.get(VARIABLE, "text")
    if asked not in FORMATS:
        raise InputError(f"{VARIABLE}={asked}: must be `text` or `json`; leave it out for text.")


def in_json() -> bool:
    """Whether lines are for machines."""
    return os.environ.get(VARIABLE) == "json"


def about(**subject: str) -> AbstractContextManager[None]:
    """Name in every line of the block what it is about."""
    return structlog.contextvars.bound_contextvars(**subject)


def event(words: str, *, level: Literal["info", "warning", "error"] = "info", **values: Any) -> None:
    """Write a line on standard error, where lines are for machines; nothing otherwise."""
    if in_json():
        getattr(_logger(), level)(told(words), **{k: told(v) if isinstance(v, str) else v for k, v in values.items()})


def _logger() -> Any:
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),  # as it is now: whoever redirects it gets the lines
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(default=str),
        ],
        cache_logger_on_first_use=True,
    )
