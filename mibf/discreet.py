"""What may be told: text without credentials, signatures and control characters. No dependencies.

Messages, records and reports hold URLs that a person gave and words that a stranger's file holds. Whatever of them is a
secret, or would move a terminal's cursor, goes before anybody reads it.
"""

from __future__ import annotations

import re

#: A user and password before a URL's host. abfs:// has a container there, without a colon, that is no secret.
_USER = re.compile(r"(https?://)[^/?#\s\"<>]*@|([\w+.-]+://)[^/?#\s\":@<>]*:[^/?#\s\"<>]*@")
#: What follows a URL's `?`, up to the end of the word; the marks that end a sentence or a bracket around it stay.
_REST = r"[^\s\"<>]*?(?=[)\]}>,.;:'\"]*(?:[\s\"<>]|$))"
_QUERY = re.compile(rf"(\w://[^\s?\"<>]+)\?{_REST}")
#: The same after a path with spaces, where it is plainly a query.
_SPACED_QUERY = re.compile(rf"(\w://[^\n?\"<>]+)\?(?=[\w.~%+-]+=){_REST}")
#: How YAML breaks a long text of odd letters within a word.
_FOLD = re.compile(r"\\\n *\\?")
#: All that is no letter, sign or space: C0 and C1 but for tab and newline, marks that turn the direction of text, halves of
#: characters, which no file can hold.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_user(url: str) -> str:
    """A text in which no URL has a user and password."""
    return _USER.sub(r"\1\2", url)


def without_queries(text: str) -> str:
    """A text in which no URL has what follows its `?`, nor a user and password; lines that YAML has folded are joined."""
    whole = _FOLD.sub("", text) if "://" in text else text
    return without_user(_SPACED_QUERY.sub(r"\1", _QUERY.sub(r"\1", whole)))


def control_character(text: str) -> str | None:
    r"""The first control character of a text, as its number: `U+001B`; None where there is none.

    >>> control_character("a\x1b[2J"), control_character("two\nlines")
    ('U+001B', None)
    """
    found = _CONTROL.search(text)
    return None if found is None else f"U+{ord(found[0]):04X}"


def told(text: str) -> str:
    r"""A text as it may be shown and kept: without credentials, its control characters spelt out.

    >>> told("cannot read https://me:word@host/a.tif?sig=1: \x1b[2J")
    'cannot read https://host/a.tif: <U+001B>[2J'
    """
    return _CONTROL.sub(lambda found: f"<U+{ord(found[0]):04X}>", without_queries(text))
