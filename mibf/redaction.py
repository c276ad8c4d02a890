"""Redact text for display and storage: no credentials, signatures or control characters. No dependencies.

Messages, records and reports contain URLs given by users and text from untrusted files. Whatever in them is secret, or
would move a terminal's cursor, is removed before it is shown or stored.
"""

from __future__ import annotations

import re

#: User and password before a URL's host. In abfs:// URLs a container stands there, without a colon; it is not a secret.
_USER = re.compile(r"(https?://)[^/?#\s\"<>]*@|([\w+.-]+://)[^/?#\s\":@<>]*:[^/?#\s\"<>]*@")
#: The text after a URL's `?`, up to the end of the word; punctuation and brackets that end the word are kept.
_REST = r"[^\s\"<>]*?(?=[)\]}>,.;:'\"]*(?:[\s\"<>]|$))"
_QUERY = re.compile(rf"(\w://[^\s?\"<>]+)\?{_REST}")
#: The same after a path with spaces, where it is clearly a query.
_SPACED_QUERY = re.compile(rf"(\w://[^\n?\"<>]+)\?(?=[\w.~%+-]+=){_REST}")
#: How YAML breaks a long quoted string within a word.
_FOLD = re.compile(r"\\\n *\\?")
#: Control characters: C0 and C1 except tab and newline, line separators, marks that change the direction of text, and
#: lone surrogates, which no file can contain.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_user(url: str) -> str:
    """Remove the user and password from every URL in a text."""
    return _USER.sub(r"\1\2", url)


def without_queries(text: str) -> str:
    """Remove the query, user and password from every URL in a text; join lines that YAML folded."""
    unfolded = _FOLD.sub("", text) if "://" in text else text
    return without_user(_SPACED_QUERY.sub(r"\1", _QUERY.sub(r"\1", unfolded)))


def control_character(text: str) -> str | None:
    r"""Return the first control character of a text as its code point, `U+001B`; None if it has no such character.

    >>> control_character("a\x1b[2J"), control_character("two\nlines")
    ('U+001B', None)
    """
    found = _CONTROL.search(text)
    return None if found is None else f"U+{ord(found[0]):04X}"


def redact(text: str) -> str:
    r"""Redact a text for display and storage: remove credentials, spell out control characters.

    >>> redact("cannot read https://me:word@host/a.tif?sig=1: \x1b[2J")
    'cannot read https://host/a.tif: <U+001B>[2J'
    """
    return _CONTROL.sub(lambda found: f"<U+{ord(found[0]):04X}>", without_queries(text))
