"""Configurations that mean harm: one message that names the file, exit status 2, nothing written, within seconds."""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config import load
from jobs.texts import is_credential, odd_texts
from jobs.yaml_text import MOST_BYTES, parse
from mibf.errors import InputError
from tests.conftest import SmallScene
from tests.test_bad_input import refused

LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
#: The same by merged mappings, which PyYAML copies as it reads them.
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10))
HOSTILE = {
    "a python object": ("!!python/object/apply:os.system ['touch owned']", "not valid YAML"),
    "a python name": ("name: !!python/name:os.system", "not valid YAML"),
    "a python module": ("name: !!python/module:os", "not valid YAML"),
    "a new object": ("name: !!python/object/new:tuple [[1]]", "not valid YAML"),
    "an unknown tag": ("name: !shell whoami", "not valid YAML"),
    "bytes": ("name: !!binary AGFi", "not valid YAML"),
    "a set": ("classes: !!set {a, b}", "not valid YAML"),
    "aliases of aliases": (LAUGHS, "with its aliases written out"),
    "merges of merges": (MERGED, "with its aliases written out"),
    "an alias of itself": ("a: &a [*a]", "stands for what it is in itself"),
    "a mapping in itself": ("a: &a {b: {c: *a}}", "stands for what it is in itself"),
    "brackets": ("[" * 20_000, "levels within each other"),
    "braces": ("{a: " * 20_000, "levels within each other"),
    "60 levels": ("[" * 60 + "]" * 60, "levels within each other on line 1"),
    "a key twice": ("train: {epochs: 7}\ntrain: {epochs: 8}\n", "key 'train' is given twice"),
    "a key twice, within": ("train: {epochs: 7, 'epochs': 8}\n", "key 'epochs' is given twice"),
    "a date that is none": ("name: 2024-99-99", "no date or number"),
    "a number of 5,000 digits": (f"name: {'9' * 5000}", "no date or number"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "a NUL": ("name: a\0b", "not valid YAML"),
}


def told(path: Path, *more: str) -> str:
    """The message of a command on a file that is refused, having seen that it leaves nothing."""
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
    message = told(path)
    assert "hostile.yaml: " in message
    assert expected in message


def test_a_file_of_any_size_is_read_no_farther_than_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(200 * MOST_BYTES)
    assert "huge.yaml: is larger than 8 MiB" in told(path)
    result = CliRunner().invoke(app, ["run", "/dev/zero"])
    assert result.exit_code == 2
    assert "/dev/zero: is larger than" in result.stderr


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(bytes(range(256)))
    assert "binary.yaml: is not a text file" in told(path)
    path.write_bytes(b"name: a\x1b[2J\n")
    assert "binary.yaml: is not valid YAML" in told(path)
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert "folder.yaml: cannot be read" in told(folder)


def test_anchors_and_merges_within_reason_are_taken() -> None:
    text = "base: &base {missing: fill, bands: [1, 2]}\none: {<<: *base, url: a.tif}\ntwo: {<<: *base, url: b.tif}\n"
    found = parse(text, name="x")
    assert found["two"] == {"missing": "fill", "bands": [1, 2], "url": "b.tif"}


@pytest.mark.parametrize("value", ["2024-99-99", "[" * 5000, "&a [*a]", "!!python/name:os.system"])
def test_a_hostile_override_is_refused(scene: SmallScene, value: str) -> None:
    with pytest.raises(InputError, match="the value is not valid YAML"):
        load(str(scene.write_config()), overrides=[f"name={value}"])


NAMES = [
    "..", "../up", "a/../../b", "/etc/passwd", "a/b", "a\\b", "C:\\Windows", "~", "~root", ".hidden", "-rf", "$(id)", "`id`",
    "a;id", "a|id", "a&b", "<script>alert(1)</script>", "\"onload=x", "{{7*7}}", "${HOME}x", "%2e%2e", "a b", "é", "a\n",
    "a\0b", "a\x1b[2J", "a\u202eb", "CON", "nul", "Aux.txt", "com1", "LPT9", "ends.", "zarr.json", "x" * 101, "s3://bucket/x",
    "file:///x",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("place", ["name", "run", "scene", "source"])
def test_names_that_are_paths_or_worse_are_refused(scene: SmallScene, name: str, place: str) -> None:
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


def test_names_that_some_disks_take_for_one_are_refused(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    twice = [first, {**first, "name": "Small"}]
    with pytest.raises(InputError, match="scenes small, Small differ by case alone"):
        load(str(scene.write_config(scenes=twice)))
    sources = {**first["sources"], "Radar": first["sources"]["radar"]}
    with pytest.raises(InputError, match="sources radar, Radar differ by case alone"):
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
def test_control_characters_are_refused_wherever_they_are(scene: SmallScene, key: str, value: str) -> None:
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
    assert f"{key}: holds U+" in str(caught.value)
    assert not any(ord(c) < 32 and c != "\n" for c in str(caught.value))


def test_a_crs_may_be_of_several_lines(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    grid = {"crs": 'GEOGCRS["WGS 84",\n  ...]', "resolution": 1, "bounds": [0, 0, 1, 1]}
    assert load(str(scene.write_config(scenes=[{**first, "grid": grid}]))).scenes[0].grid.crs == grid["crs"]


def test_a_variable_named_like_a_credential_is_not_put_in(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.setenv(name, "a-secret-that-was-planted")
        for key in ("workspace", "scenes.0.sources.optical.url", "classes.0.name", "train.mlflow"):
            message = refused(scene, [f"{key}=x${{{name}}}"])
            assert f"${{{name}}} is named like a credential" in message
            assert "docs/security.md" in message
            assert "planted" not in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("AWS_SESSION_TOKEN", "GH_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "SAS")),
        *((name, True) for name in ("GOOGLE_APPLICATION_CREDENTIALS", "PGPASSWORD", "db_password", "HTTP_AUTH", "apikey")),
        *((name, False) for name in ("DATA", "HOME", "PWD", "USER", "AUTHORS", "MONKEYS", "KEYSTONE", "MIBF_SAMPLE")),
    ],
)
def test_which_variables_are_named_like_credentials(name: str, expected: bool) -> None:
    assert is_credential(name) is expected


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
def test_a_workspace_with_credentials_is_refused_and_not_shown(scene: SmallScene, workspace: str) -> None:
    message = refused(scene, [f"workspace={workspace}"])
    assert "workspace: " in message
    assert "planted" not in message


def test_mistaken_values_are_told_without_their_credentials(scene: SmallScene) -> None:
    for override in (
        "train.seed=https://me:planted@host",
        "map.dtype=https://host/?sig=planted",
        "classes.0.color=x://a:planted@b",
    ):
        assert "planted" not in refused(scene, [override])
    for password in ("plan/planted", "plan?planted", "plan#planted", "plan ted/planted", "a planted"):
        for place in ("scenes.0.sources.optical.url", "train.mlflow"):
            message = refused(scene, [f"{place}='https://me:{password}@host/a.tif'"])
            assert f"{place}: is a URL whose host has no port" in message
            assert "plan" not in message.partition("If that")[0].partition("percent")[0]
    message = refused(scene, ["scenes.0.sources.optical.url=s3://KEY:planted@bucket/a.tif"])
    assert "scenes.0.sources.optical.url: has a user and password in its URL" in message
    assert "planted" not in message


@pytest.mark.parametrize(
    "url",
    [
        "http://host:80/a",
        "https://[::1]:8080/a",
        "https://me:word@host:80/a",
        "https://host",
        "https://host:",
        "https://h/a:b@c",
    ],
)
def test_urls_that_are_ones_are_taken(url: str) -> None:
    assert list(odd_texts({"url": url})) == []


def test_nothing_of_the_environment_gets_in_unasked(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNER", "${AWS_SECRET_ACCESS_KEY}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    config = load(str(scene.write_config(workspace="${INNER}/work")))
    assert config.workspace == "${AWS_SECRET_ACCESS_KEY}/work", "what a variable holds is not looked into"
    assert "planted" not in os.fspath(config.workspace)
