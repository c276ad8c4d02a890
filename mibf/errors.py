"""The one exception that means "the user can fix this". No dependencies."""

from __future__ import annotations

from mibf.redaction import redact


class InputError(Exception):
    """Configuration or input was rejected; nothing was written.

    The message names the file or key, the value found and the remedy. The command line prints only the message and
    exits with status 2; every other exception is a bug and keeps its traceback. The message is redacted: credentials
    and signatures are removed from URLs, control characters are spelled out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redact(str(message)))
