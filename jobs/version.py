"""What a job was submitted with: the driver on the cluster must be of the same mibf, or its results would be others."""

from __future__ import annotations

import os

from mibf import __version__
from mibf.errors import InputError

#: The variable of a job's environment that says which mibf submitted it.
SUBMITTED_WITH = "MIBF_SUBMITTED_WITH"


def check_version() -> None:
    """See that whoever submitted this process as a job has the mibf that is here.

    Raises:
        InputError: it is another.
    """
    theirs = os.environ.get(SUBMITTED_WITH, __version__)
    if theirs != __version__:
        raise InputError(
            f"this cluster has mibf {__version__}, and the job was submitted with mibf {theirs}; install the same on both."
        )
