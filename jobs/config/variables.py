"""String values of a configuration: substitute environment variables, find forbidden content."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from mibf.errors import InputError
from mibf.redaction import control_character

#: Words that mark a variable name as a credential, and suffixes of such words.
_WORDS = {"AUTH", "COOKIE", "CREDS", "KEY", "KEYS", "PASSPHRASE", "PW", "SAS"}
_ENDS = tuple(f"{word}{s}" for word in ("SECRET", "PASSWORD", "PASSWD", "TOKEN", "CREDENTIAL", "APIKEY") for s in ("", "S"))
#: A user and password in an object store URL, where they are never valid.
_SECRET_URL = re.compile(r"\b(?:s3a?|gcs|gs|az|abfss?|adl)://[^/?#\s:]*:[^/?#\s]*@", re.IGNORECASE)
#: A web URL whose host is followed by an invalid port: probably a password with an unescaped `/`, `?`, `#` or space.
_NO_PORT = re.compile(r"https?://[^/?#@\[\]]*:(?!\d*([/?#]|$))[^@/?#]*([/?#]|$)|https?://[^/?#]*\s[^/?#]*@", re.IGNORECASE)


def is_credential(variable: str) -> bool:
    """Whether the name of an environment variable looks like that of a credential.

    >>> [is_credential(name) for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "DBPASSWORD", "DATA", "PWD", "AUTHORS")]
    [True, True, True, False, False, False]
    """
    words = variable.upper().split("_")
    return any(word in _WORDS or word.endswith(_ENDS) for word in words) or "CONNECTION_STRING" in variable.upper()


def expand_variables(value: Any, url: str) -> Any:
    """Replace `${NAME}` in a configuration by environment variables; substituted values are not expanded further.

    Raises:
        InputError: a variable is not set, or is named like a credential (configurations are stored with the results).
    """
    if isinstance(value, dict):
        return {k: expand_variables(v, url) for k, v in value.items()}
    if isinstance(value, list):
        return [expand_variables(v, url) for v in value]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        if is_credential(match[1]):
            raise InputError(
                f"{url}: ${{{match[1]}}} is named like a credential, and a configuration is stored with its results. Remove "
                "it: object stores and servers read credentials from the environment directly (docs/security.md). If it is "
                "not a credential, rename the variable."
            )
        found = os.environ.get(match[1])
        if found is None:
            raise InputError(
                f"{url}: ${{{match[1]}}} is used but not set; set it, for example `{match[1]}=... mibf run {url}`."
            )
        return found

    return re.sub(r"\$\{(\w+)\}", lookup, value)


def check_texts(value: Any, where: str = "") -> Iterator[str]:
    """Yield one message per invalid string: control characters, or credentials in a URL.

    Only a CRS may span several lines, as WKT does.
    """
    if isinstance(value, dict):
        for key, below in value.items():
            if isinstance(key, str):
                yield from check_texts(key, f"{where} (a key)" if where else "a key")
            yield from check_texts(below, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for position, below in enumerate(value):
            yield from check_texts(below, f"{where}.{position}")
    elif isinstance(value, str):
        found = control_character(value)
        if found is None and not where.endswith(".crs"):
            found = next((f"U+{ord(c):04X}" for c in value if c in "\n\t"), None)
        if found is not None:
            yield f"{where}: contains {found}, a control character or line break; remove it."
        if _SECRET_URL.search(value):
            yield (
                f"{where}: the URL contains a user and password; remove them. Object stores read credentials from the "
                "environment (docs/security.md)."
            )
        elif _NO_PORT.search(value):
            yield (
                f"{where}: the URL has no valid port after the host's colon. If that is a password, percent-encode its "
                "`/`, `?`, `#` and spaces."
            )
