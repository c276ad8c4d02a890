"""Redaction of printed and stored text: no credentials, no signatures, no terminal control characters."""

from __future__ import annotations

import json
import pickle

import pytest
import yaml

from jobs.runtime import progress
from mibf.errors import InputError
from mibf.redaction import control_character, redact, without_queries
from pipeline.io import storage

SECRET = "pa'ss,w)rd"


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{SECRET}@host/a.tif",
        f"https://host/a.tif?X-Sig={SECRET}&more={SECRET}",
        f"https://{SECRET}@host/a.tif?{SECRET}",
        f"https://host/my folder/a file.tif?sig={SECRET}",
        f"s3://KEY:{SECRET}@bucket/a.tif",
        f"postgresql+psycopg2://me:{SECRET}@host/runs",
    ],
)
def test_url_secrets_are_redacted_in_every_text_format(url: str) -> None:
    texts = [
        url,
        f"cannot read {url}.",
        f"'{url}', then",
        f"(found {url!r}).",
        f"ClientError(url=URL('{url}'))",
        json.dumps({"urls": [url, url]}),
        json.dumps([url, url], separators=(",", ":")),
        yaml.safe_dump({"scenes": [{"url": url, "urls": [url, url]}]}),
        yaml.safe_dump({"urls": [url]}, default_flow_style=True),
    ]
    for text in texts:
        shown = without_queries(text)
        assert "ss,w" not in shown
        assert "w)rd" not in shown
        assert "host" in shown or "bucket" in shown
    assert "ss,w" not in storage.redact_url(url)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no data (https://host/a.tif?sig=1), or none", "no data (https://host/a.tif), or none"),
        ("see https://host/a.tif?sig=1.", "see https://host/a.tif."),
        ("is it there? s3://bucket/a@b.tif: no", "is it there? s3://bucket/a@b.tif: no"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
    ],
)
def test_redaction_keeps_text_around_url(text: str, expected: str) -> None:
    assert without_queries(text) == expected


def test_input_error_escapes_control_characters_and_redacts_urls() -> None:
    error = InputError("https://me:word@host/a?sig=1: \x1b]0;owned\x07\x1b[2J\n  second line\ud800")
    assert str(error) == "https://host/a: <U+001B>]0;owned<U+0007><U+001B>[2J\n  second line<U+D800>"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_control_characters_are_found_and_escaped() -> None:
    assert control_character("plain, tab\tand line\nÄ 例") is None
    for character in ("\0", "\x07", "\x1b", "\x7f", "\x9b", "\u202e", "\ud800"):
        assert control_character(f"a{character}b") == f"U+{ord(character):04X}"
        assert character not in redact(f"a{character}b")


def test_kept_warnings_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    progress.take_warnings()
    progress.warn("https://me:word@host/a.tif?sig=signature: \x1b[2Jodd")
    assert progress.take_warnings() == ["https://host/a.tif: <U+001B>[2Jodd"]
    assert "signature" not in capsys.readouterr().err
