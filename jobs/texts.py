"""The texts of a configuration, whatever they are for: environment variables put in, and what none may hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from mibf.discreet import control_character
from mibf.errors import InputError

#: Words in the names of variables that hold credentials, and ends of such words.
_WORDS = {"AUTH", "COOKIE", "CREDS", "KEY", "KEYS", "PASSPHRASE", "PW", "SAS"}
_ENDS = tuple(f"{word}{s}" for word in ("SECRET", "PASSWORD", "PASSWD", "TOKEN", "CREDENTIAL", "APIKEY") for s in ("", "S"))
#: A user and password in the URL of an object store, which has no place for them.
_SECRET_URL = re.compile(r"\b(?:s3a?|gcs|gs|az|abfss?|adl)://[^/?#\s:]*:[^/?#\s]*@", re.IGNORECASE)


#: The beginning of a web address whose port is none: a password was cut at a letter that ends the host.
_NO_PORT = re.compile(r"https?://[^/?#@\[\]]*:(?!\d*([/?#]|$))[^@/?#]*([/?#]|$)|https?://[^/?#]*\s[^/?#]*@", re.IGNORECASE)


def is_credential(variable: str) -> bool:
    """Whether an environment variable is named like one that holds a credential.

    >>> [is_credential(name) for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "DBPASSWORD", "DATA", "PWD", "AUTHORS")]
    [True, True, True, False, False, False]
    """
    words = variable.upper().split("_")
    return any(word in _WORDS or word.endswith(_ENDS) for word in words) or "CONNECTION_STRING" in variable.upper()


def with_environment(value: Any, url: str) -> Any:
    """The values of a configuration with environment variables in the place of `${NAME}`; what they hold is not looked into.

    Raises:
        InputError: a variable is not set, or is named like a credential: the configuration is kept with its results.
    """
    if isinstance(value, dict):
        return {k: with_environment(v, url) for k, v in value.items()}
    if isinstance(value, list):
        return [with_environment(v, url) for v in value]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        if is_credential(match[1]):
            raise InputError(
                f"{url}: ${{{match[1]}}} is named like a credential, and a configuration is kept with its results. Object "
                "stores and servers take credentials from the environment by themselves (docs/security.md); take it out, or "
                "give the variable another name if it is none."
            )
        found = os.environ.get(match[1])
        if found is None:
            raise InputError(f"{url}: ${{{match[1]}}} is used but not set; set it, as in `{match[1]}=... mibf run {url}`.")
        return found

    return re.sub(r"\$\{(\w+)\}", lookup, value)


def odd_texts(value: Any, where: str = "") -> Iterator[str]:
    """What is wrong with texts, a line each: characters that none may hold, credentials that a URL has no place for.

    A CRS alone may be of several lines, as WKT is.
    """
    if isinstance(value, dict):
        for key, below in value.items():
            if isinstance(key, str):
                yield from odd_texts(key, f"{where} (a key)" if where else "a key")
            yield from odd_texts(below, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for position, below in enumerate(value):
            yield from odd_texts(below, f"{where}.{position}")
    elif isinstance(value, str):
        found = control_character(value)
        if found is None and not where.endswith(".crs"):
            found = next((f"U+{ord(c):04X}" for c in value if c in "\n\t"), None)
        if found is not None:
            yield f"{where}: holds {found}, a control character or line break; take it out."
        if _SECRET_URL.search(value):
            yield (
                f"{where}: has a user and password in its URL. Object stores take credentials from the environment "
                "(docs/security.md); take them out."
            )
        elif _NO_PORT.search(value):
            yield (
                f"{where}: is a URL whose host has no port after its colon. If that is a password, percent-encode its `/`, "
                "`?`, `#` and spaces."
            )
