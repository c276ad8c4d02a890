"""Sign URLs of the Planetary Computer's storage when they are requested, if its library is installed.

The library has the settings (`PC_SDK_SUBSCRIPTION_KEY`, `PC_SDK_SAS_URL`) and renews tokens. Signed URLs are not stored.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from urllib.parse import urlsplit

from mibf.errors import InputError

#: Where its files are.
DOMAIN = ".blob.core.windows.net"
#: Times that a token is asked for again after a server's error.
RETRIES = 3

#: Containers that it has no tokens for: those of others, which may be public.
_others: set[tuple[str, str]] = set()


@cache
def has_library() -> bool:
    """Whether the library planetary-computer is installed."""
    return find_spec("planetary_computer") is not None


def signed(url: str) -> str:
    """Return a URL with a token, if it is of the Planetary Computer's storage and has none; else as it is.

    Raises:
        InputError: no token can be had.
    """
    parts = urlsplit(url)
    host, container = parts.hostname or "", parts.path.lstrip("/").partition("/")[0]
    account = host.removesuffix(DOMAIN)
    if account == host or not container or parts.query or (account, container) in _others or not has_library():
        return url

    import requests
    from planetary_computer.sas import get_token

    try:
        return str(get_token(account, container, retry_total=RETRIES).sign(url).href)
    except requests.HTTPError as error:
        status = None if error.response is None else error.response.status_code
        if status != 404:
            raise InputError(f"{url}: the Planetary Computer, which signs it, gives no token (status {status}).") from error
        _others.add((account, container))
        return url
    except requests.RequestException as error:
        raise InputError(
            f"{url}: the Planetary Computer, which signs it, cannot be reached ({type(error).__name__}). Check the "
            "connection, or try again later."
        ) from error
