"""Check that a submitted job runs the mibf version it was submitted with; another version could change results."""

from __future__ import annotations

import os

from mibf import __version__
from mibf.errors import InputError

#: Environment variable of a job with the mibf version that submitted it.
SUBMITTED_WITH = "MIBF_SUBMITTED_WITH"


def check_version() -> None:
    """Check that this process, if a submitted job, was submitted with the mibf version installed here.

    Raises:
        InputError: the versions differ.
    """
    theirs = os.environ.get(SUBMITTED_WITH, __version__)
    if theirs != __version__:
        raise InputError(
            f"this cluster has mibf {__version__}, but the job was submitted with mibf {theirs}; install the same on both."
        )
