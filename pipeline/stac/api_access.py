"""Requests to STAC APIs and catalogues, with the bearer tokens that the environment has for their servers.

A token belongs to one server. It is added when a request is sent, so that no redirect, link, log or message has it.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

import requests
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from requests.adapters import HTTPAdapter

from mibf.errors import InputError

#: Beginning of the variables' names; `variable` has the rest.
PREFIX = "MIBF_STAC_TOKEN_"
#: Ports that a URL need not name.
PORTS = {"https": 443, "http": 80}
#: What may be sent as a token (RFC 6750, section 2.1).
TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


def variable(url: str) -> str:
    """Return the name of the environment variable with the token of a URL's server.

    >>> variable("https://stac.my-agency.example.org/v1/search?limit=9")
    'MIBF_STAC_TOKEN_STAC_MY__AGENCY_EXAMPLE_ORG'
    >>> variable("http://localhost:8080")
    'MIBF_STAC_TOKEN_LOCALHOST_8080'
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").replace("-", "__")
    port = "" if parts.port in (None, PORTS.get(parts.scheme)) else f"_{parts.port}"
    return PREFIX + re.sub(r"\W", "_", host, flags=re.ASCII).upper() + port


def token(url: str) -> str | None:
    """Return the token of a URL's server; None if the environment has none.

    Raises:
        InputError: what the environment has is not a token.
    """
    found = os.environ.get(variable(url), "").strip()
    if found and not TOKEN.fullmatch(found):
        raise InputError(
            f"{variable(url)}: is not a bearer token, which has no spaces or quotes; set it to the token alone, without "
            "`Bearer`."
        )
    return found or None


class _TokenAdapter(HTTPAdapter):
    """Send each request with the token of its own server, also after a redirect."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        found = token(request.url or "")
        if found is not None:
            request = request.copy()  # redirects are made from the original
            request.headers["Authorization"] = f"Bearer {found}"
        return super().send(request, *args, **kwargs)


class ApiAccess(StacApiIO):
    """Read documents of an API or a catalogue; the server's errors are repeated."""

    def __init__(self, url: str, *, retries: int) -> None:
        super().__init__(max_retries=retries)
        token(url)  # refused before anything is sent
        self.session.mount("https://", _TokenAdapter(max_retries=retries))
        if url.lower().startswith("http://"):
            # The user chose to send it unencrypted, to this server alone.
            self.session.mount(f"{_server(url)}/", _TokenAdapter(max_retries=retries))
        self._answered = url
        self.session.hooks["response"].append(self._note)

    def request(self, href: str, *args: Any, **kwargs: Any) -> str:
        """Read a document, as the base class.

        Raises:
            InputError: a server demands credentials, or refuses those that it got.
            APIError: another error.
        """
        try:
            return super().request(href, *args, **kwargs)
        except APIError as error:
            status = getattr(error, "status_code", None)
            if status not in (401, 403):
                error.args = tuple(without_tokens(str(each)) for each in error.args)
                raise
            raise InputError(_refusal(self._answered, status)) from None

    def _note(self, response: requests.Response, *_: Any, **__: Any) -> None:
        self._answered = response.url


def _server(url: str) -> str:
    """The scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _refusal(url: str, status: int) -> str:
    name, server = variable(url), _server(url)
    if token(url) is not None:
        return (
            f"{server} does not accept the token in {name} (status {status}); it may have expired, or lack the right to "
            "search. Set the variable to a valid one."
        )
    what = "demands credentials" if status == 401 else "refuses access"
    return f"{server} {what} (status {status}); set {name} to a bearer token, or give name and password in ~/.netrc."


def without_tokens(text: str) -> str:
    """Replace the tokens in a message, which a server may have repeated."""
    for name, value in os.environ.items():
        if name.startswith(PREFIX) and value.strip():
            text = text.replace(value.strip(), "***")
    return text
