"""Bearer tokens of STAC APIs come from the environment, and each is sent to its own server alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
import shapely

from mibf.errors import InputError
from pipeline.stac import search as search_module
from pipeline.stac.api_access import ApiAccess, variable
from pipeline.stac.search import Query, search
from tests.support.stac_api import StacApi, stac_api

TOKEN = "planted-token.of~tests=="
ITEM: dict[str, Any] = {
    "type": "Feature", "stac_version": "1.0.0", "id": "a", "collection": "c", "bbox": [10, 40, 11, 41],
    "geometry": shapely.geometry.mapping(shapely.box(10, 40, 11, 41)), "links": [], "assets": {},
    "properties": {"datetime": "2024-06-01T10:00:00Z"},
}  # fmt: skip  # values in rows that belong together


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[StacApi]:
    monkeypatch.setattr(search_module, "RETRIES", 0)
    with stac_api([ITEM, ITEM | {"id": "b"}], page=1) as server:
        server.token = TOKEN
        yield server


def found(url: str) -> list[str]:
    area = shapely.box(10.2, 40.2, 10.8, 40.8)
    query = Query(url, area, datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 6, 2, tzinfo=UTC))
    return [str(item["id"]) for item in search(query).items]


@pytest.mark.parametrize("given", [TOKEN, f" {TOKEN}\n"])
def test_token_is_sent_with_every_page(given: str, api: StacApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable(api.url), given)
    assert found(api.url) == ["a", "b"]
    assert api.authorizations == [f"Bearer {TOKEN}"] * 3, "the landing page and two pages of items"


def test_missing_token_is_named_by_its_variable(api: StacApi) -> None:
    with pytest.raises(InputError) as refused:
        found(api.url)
    port = api.server_address[1]
    assert f"{api.url} demands credentials (status 401); set MIBF_STAC_TOKEN_127_0_0_1_{port} to a" in str(refused.value)
    assert api.authorizations == [None]


def test_wrong_token_is_refused_by_its_variable_and_not_repeated(api: StacApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server repeats what it was sent."""
    monkeypatch.setenv(variable(api.url), "expired-token")
    with pytest.raises(InputError) as refused:
        found(api.url)
    assert f"does not accept the token in {variable(api.url)} (status 401)" in str(refused.value)
    assert "expired-token" not in str(refused.value)


@pytest.mark.parametrize("value", [f"Bearer {TOKEN}", f"'{TOKEN}'", "a\r\nX-Header: b", "ключ"])
def test_invalid_token_is_refused_before_it_is_sent(value: str, api: StacApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable(api.url), value)
    with pytest.raises(InputError, match=f"{variable(api.url)}: is not a bearer token") as refused:
        found(api.url)
    assert value not in str(refused.value)
    assert api.authorizations == []


def test_message_of_the_server_does_not_show_the_token(api: StacApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable(api.url), TOKEN)
    api.message = f"cannot find the user of {TOKEN}"
    api.fault = "error"
    with pytest.raises(InputError, match=r"status 500: .*the user of \*\*\*") as refused:
        found(api.url)
    assert TOKEN not in str(refused.value)


def test_another_server_of_a_redirect_gets_no_token_but_its_own(api: StacApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ports are two servers. The second one is reached by unencrypted HTTP, which the user did not choose."""
    monkeypatch.setenv(variable(api.url), TOKEN)
    with stac_api([ITEM]) as other:
        api.elsewhere = other.url
        assert found(api.url) == ["a"]
        assert other.authorizations == [None]
        other.token = "of-the-other"
        with pytest.raises(InputError, match=f"{other.url} demands credentials"):
            found(api.url)
        assert TOKEN not in str(other.authorizations)


@pytest.mark.parametrize(
    ("searched", "asked", "expected"),
    [
        ("https://api.example.org/v1", "https://api.example.org/v1/search", "Bearer of-the-api"),
        ("https://api.example.org/v1", "https://API.example.org:443/v1/search", "Bearer of-the-api"),
        ("https://api.example.org/v1", "https://other.example.org/search", "Bearer of-the-other"),
        ("https://api.example.org/v1", "https://example.org/search", None),
        ("https://api.example.org/v1", "https://api.example.org:8443/search", None),
        ("https://api.example.org/v1", "http://api.example.org/v1/search", None),
        ("http://api.example.org/v1", "http://api.example.org/v1/search", "Bearer of-the-api"),
        ("http://api.example.org/v1", "https://api.example.org/v1/search", "Bearer of-the-api"),
        ("http://api.example.org/v1", "http://other.example.org/search", None),
    ],
)
def test_token_goes_to_its_server_and_is_encrypted_unless_the_address_is_not(
    searched: str, asked: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIBF_STAC_TOKEN_API_EXAMPLE_ORG", "of-the-api")
    monkeypatch.setenv("MIBF_STAC_TOKEN_OTHER_EXAMPLE_ORG", "of-the-other")
    sent: list[requests.PreparedRequest] = []

    def send(_: Any, request: requests.PreparedRequest, **__: Any) -> requests.Response:
        sent.append(request)
        answer = requests.Response()
        answer.status_code, answer.url, answer.request, answer._content = 200, request.url or "", request, b"{}"
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    ApiAccess(searched, retries=0).request(asked)
    assert [each.headers.get("Authorization") for each in sent] == [expected]


def test_log_of_requests_does_not_have_the_token(
    api: StacApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable(api.url), TOKEN)
    caplog.set_level(logging.DEBUG)
    assert found(api.url) == ["a", "b"]
    assert "Headers: " in caplog.text, "the client logs its requests"
    assert TOKEN not in caplog.text
