"""The one exception that means "the person can mend this". No dependencies."""

from __future__ import annotations

from mibf.discreet import told


class InputError(Exception):
    """Configuration or input was refused; nothing was written.

    The message names the file or key, the value found, and the remedy. The command line prints
    the message alone and exits with status 2; every other exception is a bug and keeps its
    traceback. It is made fit to be shown: URLs lose credentials and signatures, control characters are spelt out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(told(str(message)))
