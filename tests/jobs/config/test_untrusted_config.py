"""Malicious configurations: one message that names the file, exit status 2, nothing written, within seconds."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli.common import app
from jobs.config.loader import load
from jobs.config.yaml_loader import MAX_BYTES, parse
from mibf.errors import InputError
from tests.support.refusals import refused
from tests.support.scenes import SmallScene

LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


#: The same attack with merged mappings, which PyYAML copies while reading.
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10))
HOSTILE = {
    "python object": ("!!python/object/apply:os.system ['touch owned']", "not valid YAML"),
    "python name": ("name: !!python/name:os.system", "not valid YAML"),
    "python module": ("name: !!python/module:os", "not valid YAML"),
    "new python object": ("name: !!python/object/new:tuple [[1]]", "not valid YAML"),
    "unknown tag": ("name: !shell whoami", "not valid YAML"),
    "binary": ("name: !!binary AGFi", "not valid YAML"),
    "set": ("classes: !!set {a, b}", "not valid YAML"),
    "aliases of aliases": (LAUGHS, "with aliases expanded"),
    "merges of merges": (MERGED, "with aliases expanded"),
    "self-referencing alias": ("a: &a [*a]", "refers to a node that contains it"),
    "self-referencing mapping": ("a: &a {b: {c: *a}}", "refers to a node that contains it"),
    "nested brackets": ("[" * 20_000, "levels deep"),
    "nested braces": ("{a: " * 20_000, "levels deep"),
    "60 levels": ("[" * 60 + "]" * 60, "levels deep on line 1"),
    "duplicate key": ("train: {epochs: 7}\ntrain: {epochs: 8}\n", "key 'train' is given twice"),
    "duplicate nested key": ("train: {epochs: 7, 'epochs': 8}\n", "key 'epochs' is given twice"),
    "invalid date": ("name: 2024-99-99", "looks like a date or number but is invalid"),
    "5,000-digit number": (f"name: {'9' * 5000}", "looks like a date or number but is invalid"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "NUL character": ("name: a\0b", "not valid YAML"),
}


def refusal(path: Path, *more: str) -> str:
    """Return the error message for a refused file, after checking that the command left no files."""
    before = sorted(path.parent.rglob("*"))
    begin = time.monotonic()
    result = CliRunner().invoke(app, ["run", str(path), *more])
    assert result.exit_code == 2, (result.output, result.exception)
    assert time.monotonic() - begin < 20
    assert "Traceback" not in result.output
    assert sorted(path.parent.rglob("*")) == before
    assert len(result.stderr) < 3000
    return result.stderr


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    text, expected = HOSTILE[case]
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    message = refusal(path)
    assert "hostile.yaml: " in message
    assert expected in message


def test_oversized_file_is_refused_without_reading_past_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(200 * MAX_BYTES)
    assert "huge.yaml: is larger than 8 MiB" in refusal(path)
    result = CliRunner().invoke(app, ["run", "/dev/zero"])
    assert result.exit_code == 2
    assert "/dev/zero: is larger than" in result.stderr


def test_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(bytes(range(256)))
    assert "binary.yaml: is not a text file" in refusal(path)
    path.write_bytes(b"name: a\x1b[2J\n")
    assert "binary.yaml: is not valid YAML" in refusal(path)
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert "folder.yaml: cannot be read" in refusal(folder)


def test_ordinary_anchors_and_merges_are_accepted() -> None:
    text = "base: &base {missing: fill, bands: [1, 2]}\none: {<<: *base, url: a.tif}\ntwo: {<<: *base, url: b.tif}\n"
    found = parse(text, name="x")
    assert found["two"] == {"missing": "fill", "bands": [1, 2], "url": "b.tif"}


@pytest.mark.parametrize("value", ["2024-99-99", "[" * 5000, "&a [*a]", "!!python/name:os.system"])
def test_hostile_override_is_refused(scene: SmallScene, value: str) -> None:
    with pytest.raises(InputError, match="the value is not valid YAML"):
        load(str(scene.write_config()), overrides=[f"name={value}"])


NAMES = [
    "..", "../up", "a/../../b", "/etc/passwd", "a/b", "a\\b", "C:\\Windows", "~", "~root", ".hidden", "-rf", "$(id)", "`id`",
    "a;id", "a|id", "a&b", "<script>alert(1)</script>", "\"onload=x", "{{7*7}}", "${HOME}x", "%2e%2e", "a b", "é", "a\n",
    "a\0b", "a\x1b[2J", "a\u202eb", "CON", "nul", "Aux.txt", "com1", "LPT9", "ends.", "zarr.json", "x" * 101,
    "s3://bucket/x", "file:///x",
]  # fmt: skip  # a list of names: one per line would fill a page


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("place", ["name", "run", "scene", "source"])
def test_unsafe_names_are_refused(scene: SmallScene, name: str, place: str) -> None:
    values = scene.config()
    first = values["scenes"][0]
    if place in ("name", "run"):
        values[place] = name
    elif place == "scene":
        first["name"] = name
    else:
        first["sources"][name] = first["sources"].pop("radar")
    path = scene.folder / "named.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"named\.yaml"):
        load(str(path))


def test_names_that_differ_only_in_case_are_refused(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    twice = [first, {**first, "name": "Small"}]
    with pytest.raises(InputError, match="scenes small, Small differ only in case"):
        load(str(scene.write_config(scenes=twice)))
    sources = {**first["sources"], "Radar": first["sources"]["radar"]}
    with pytest.raises(InputError, match="sources radar, Radar differ only in case"):
        load(str(scene.write_config(scenes=[{**first, "sources": sources}])))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workspace", "work\0/x"),
        ("workspace", "work\nspace"),
        ("scenes.0.sources.optical.url", "a\x1b]0;owned\x07.tif"),
        ("scenes.0.labels.url", "a.tif\n"),
        ("classes.0.name", "wa\u202eter"),
        ("classes.0.name", "wa\nter"),
        ("train.mlflow", "http://host\r\nX-Evil: 1"),
    ],
)
def test_control_characters_are_refused_in_any_text_value(scene: SmallScene, key: str, value: str) -> None:
    values: Any = copy.deepcopy(scene.config())
    place = values
    *parents, last = key.split(".")
    for part in parents:
        place = place[int(part) if part.isdecimal() else part]
    place[last] = value
    path = scene.folder / "odd.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError) as caught:
        load(str(path))
    assert f"{key}: contains U+" in str(caught.value)
    assert not any(ord(c) < 32 and c != "\n" for c in str(caught.value))


def test_multiline_crs_is_accepted(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    grid = {"crs": 'GEOGCRS["WGS 84",\n  ...]', "resolution": 1, "bounds": [0, 0, 1, 1]}
    assert load(str(scene.write_config(scenes=[{**first, "grid": grid}]))).scenes[0].grid.crs == grid["crs"]


@pytest.mark.parametrize(
    "workspace",
    [
        "s3://KEY:planted@bucket/work",
        "https://me:planted@host/work",
        "https://planted@host/work",
        "az://box/work?sig=planted",
        "s3a://KEY:planted@bucket",
    ],
)
def test_workspace_with_credentials_is_refused_without_showing_them(scene: SmallScene, workspace: str) -> None:
    message = refused(scene, [f"workspace={workspace}"])
    assert "workspace: " in message
    assert "planted" not in message


def test_error_messages_do_not_contain_credentials(scene: SmallScene) -> None:
    for override in (
        "train.seed=https://me:planted@host",
        "map.dtype=https://host/?sig=planted",
        "classes.0.color=x://a:planted@b",
    ):
        assert "planted" not in refused(scene, [override])
    for password in ("plan/planted", "plan?planted", "plan#planted", "plan ted/planted", "a planted"):
        for place in ("scenes.0.sources.optical.url", "train.mlflow"):
            message = refused(scene, [f"{place}='https://me:{password}@host/a.tif'"])
            assert f"{place}: the URL has no valid port" in message
            assert "plan" not in message.partition("If that")[0].partition("percent")[0]
    message = refused(scene, ["scenes.0.sources.optical.url=s3://KEY:planted@bucket/a.tif"])
    assert "scenes.0.sources.optical.url: the URL contains a user and password" in message
    assert "planted" not in message
