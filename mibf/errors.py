"""The one exception that means "the person can mend this". No dependencies."""

from __future__ import annotations


class InputError(Exception):
    """Configuration or input was refused; nothing was written.

    The message names the file or key, the value found, and the remedy. The command line prints
    the message alone and exits with status 2; every other exception is a bug and keeps its
    traceback.
    """
