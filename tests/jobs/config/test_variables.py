"""Text values of a configuration: environment variables, credentials and invalid URLs."""

from __future__ import annotations

import os

import pytest
import yaml

from jobs.config.loader import load
from jobs.config.variables import check_texts, expand_variables, is_credential
from mibf.errors import InputError
from tests.support.refusals import refused
from tests.support.scenes import SmallScene


def test_environment_variables_are_substituted_or_reported_unset(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    values = scene.config(workspace="${PLACE}/work")
    path = scene.folder / "env.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"\$\{PLACE\} is used but not set"):
        load(str(path))
    monkeypatch.setenv("PLACE", "/somewhere")
    assert load(str(path)).workspace == "/somewhere/work"


def test_variable_named_like_a_credential_is_not_substituted(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_is_credential_recognises_credential_names(name: str, expected: bool) -> None:
    assert is_credential(name) is expected


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
def test_valid_urls_are_accepted(url: str) -> None:
    assert list(check_texts({"url": url})) == []


def test_substituted_values_are_not_expanded_again(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNER", "${AWS_SECRET_ACCESS_KEY}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    config = load(str(scene.write_config(workspace="${INNER}/work")))
    assert config.workspace == "${AWS_SECRET_ACCESS_KEY}/work", "substituted values are not expanded"
    assert "planted" not in os.fspath(config.workspace)


def test_variables_are_expanded_in_values_of_any_depth_but_not_in_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    values = {"${DATA}": [{"url": "${DATA}/a.tif"}, "x${DATA}${DATA}"], "epochs": 3, "labels": None, "price": "$DATA"}
    assert expand_variables(values, "small.yaml") == {
        "${DATA}": [{"url": "/data/a.tif"}, "x/data/data"],
        "epochs": 3,
        "labels": None,
        "price": "$DATA",
    }


def test_invalid_texts_are_reported_with_their_location() -> None:
    values = {"a": [{"url": "s3://key:secret@bucket/a.tif"}], "b": {"c\x07": 1}, "grid": {"crs": "GEOGCRS[\n]"}, "d": "x\ny"}
    first, second, third = check_texts(values)
    assert first.startswith("a.0.url: the URL contains a user and password")
    assert second.startswith("b (a key): contains U+0007")
    assert third.startswith("d: contains U+000A")
