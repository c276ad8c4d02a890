"""What is shown and kept: no credential, no signature, nothing that moves a terminal's cursor."""

from __future__ import annotations

import json
import pickle

import pytest
import yaml

from jobs import progress
from mibf.discreet import control_character, told, without_queries
from mibf.errors import InputError
from pipeline import storage

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
def test_no_form_of_text_keeps_a_secret_of_a_url(url: str) -> None:
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
    assert "ss,w" not in storage.shown(url)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no data (https://host/a.tif?sig=1), or none", "no data (https://host/a.tif), or none"),
        ("see https://host/a.tif?sig=1.", "see https://host/a.tif."),
        ("is it there? s3://bucket/a@b.tif: no", "is it there? s3://bucket/a@b.tif: no"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
    ],
)
def test_the_sentence_around_a_url_stays(text: str, expected: str) -> None:
    assert without_queries(text) == expected


def test_a_refusal_is_fit_to_be_shown() -> None:
    error = InputError("https://me:word@host/a?sig=1: \x1b]0;owned\x07\x1b[2J\n  second line\ud800")
    assert str(error) == "https://host/a: <U+001B>]0;owned<U+0007><U+001B>[2J\n  second line<U+D800>"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_control_characters_are_found() -> None:
    assert control_character("plain, tab\tand line\nÄ 例") is None
    for character in ("\0", "\x07", "\x1b", "\x7f", "\x9b", "\u202e", "\ud800"):
        assert control_character(f"a{character}b") == f"U+{ord(character):04X}"
        assert character not in told(f"a{character}b")


def test_warnings_are_kept_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    progress.taken_warnings()
    progress.warn("https://me:word@host/a.tif?sig=signature: \x1b[2Jodd")
    assert progress.taken_warnings() == ["https://host/a.tif: <U+001B>[2Jodd"]
    assert "signature" not in capsys.readouterr().err
