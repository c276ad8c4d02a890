"""Secrets are planted in the environment and in URLs, a whole run is made, and all that it left or said is searched."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import pyarrow.parquet as pq
import pytest
import shapely
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from mibf.discreet import without_queries
from tests.conftest import CLASSES, CRS, SmallScene, make_scene
from tests.web import served

#: What is nowhere to be found: each of its own, so that a leak tells where it comes from.
ENVIRONMENT = {
    name: f"planted-{name.lower()}"
    for name in (
        "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "AZURE_STORAGE_CONNECTION_STRING",
        "GOOGLE_APPLICATION_CREDENTIALS", "MLFLOW_TRACKING_PASSWORD", "SOME_DATABASE_PASSWORD",
    )
}  # fmt: skip
PASSWORD, SIGNATURE = "planted-pass'word", "planted-sig,na)ture"
#: The name of a class that would run, if a page or a template took it for more than text.
HTML = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7 * 191 }} {% raw %} $(id)"
#: In parts too: what a message or a line break cuts.
PLANTED = (
    *ENVIRONMENT.values(),
    PASSWORD,
    SIGNATURE,
    "planted-",
    "pass'word",
    "pass''word",
    "sig,na",
    "na)ture",
    "user-of-the-url",
)


def leaks(content: bytes) -> list[str]:
    return [word for word in PLANTED if word.encode() in content]


def readable(path: Path) -> Iterator[bytes]:
    """A file's bytes, and those of what is packed in it."""
    content = path.read_bytes()
    yield content
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    if path.suffix == ".parquet":
        yield repr(pq.read_table(path).to_pylist()).encode()
        yield repr(pq.read_metadata(path).metadata).encode()
    if content[:2] == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


class Run:
    """A workspace, and what the commands on it said."""

    def __init__(self, config: Path, workspace: Path) -> None:
        self.config, self.workspace = config, workspace
        self.said: dict[str, str] = {}

    def __call__(self, *arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == status, (result.output, result.exception)
        self.said[" ".join(arguments)] = result.output
        return result.output


def with_secrets(scene: SmallScene, address: str) -> dict[str, Any]:
    """The scene's configuration, its files on the web, each URL with a password and a signature, long and of odd letters."""
    place = address.replace("http://", f"http://user-of-the:{PASSWORD}@")
    folder = "a-folder-of-a-long-name-so-that-YAML-breaks-the-line/Müritz-und-Umgebung/données"
    (scene.folder / folder).mkdir(parents=True)

    def there(name: str) -> str:
        (scene.folder / name).rename(scene.folder / folder / name)
        return f"{place}/{folder}/{name}?X-Signature={SIGNATURE}&more={SIGNATURE}"

    left, bottom = 400000, 5798500
    corners = [(x, y) for x in range(13) for y in range(15)]
    squares = [
        shapely.box(left + 100 * x, bottom + 100 * y, left + 100 * x + 100, bottom + 100 * y + 100) for x, y in corners
    ]
    kinds = [int(scene.truth[(14 - y) * 10 + 5, x * 10 + 5]) for x, y in corners]
    odd = [shapely.LineString([(left, bottom), (left + 100, bottom + 100)]), shapely.box(left, bottom, left + 9, bottom + 9)]
    features = geopandas.GeoDataFrame({"kind": [*kinds, 1, None]}, geometry=[*squares, *odd], crs=CRS)
    features.to_file(scene.folder / "labels.gpkg")
    values = scene.config()
    first = values["scenes"][0]
    first["sources"]["optical"]["url"] = there("optical.tif")
    first["sources"]["radar"]["url"] = there("radar.tif")
    first["labels"] = {"url": there("labels.gpkg"), "attribute": "kind"}
    return values


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All stages and every command that only reads, on inputs from the web; some refused, as it goes away at the end."""
    scene = make_scene(tmp_path_factory.mktemp("sown"))
    with pytest.MonkeyPatch.context() as patch, served(scene.folder) as address:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ACCESS_KEY_ID", "an-id")
        values = with_secrets(scene, address)
        workspace = tmp_path_factory.mktemp("sown-work")
        values |= {
            "workspace": str(workspace / "work"),
            "train": {"epochs": 1, "batch": 64, "workers": 0, "threads": 1, "mlflow": str(workspace / "mlflow")},
            "map": {"tile": 64, "workers": 0, "attempts": 1, "backoff": 0, "products": ["class", "confidence", "sources"]},
            "classes": [{"id": c["id"], "name": f"{HTML} {c['name']}"} for c in CLASSES],
        }
        config = scene.folder / "sown.yaml"
        config.write_text(yaml.safe_dump(values, allow_unicode=True))
        made = Run(config, workspace)
        where = str(config)
        made("plan", where)
        made("run", where)
        made("run", where, "--json")
        made("status", where, "--json")
        made("verify", where, "--sample", "1", "--json")
        made("rerun", where)
        made("bundle", "show", str(workspace / "work/models/main"), "--json")
        url = values["scenes"][0]["sources"]["optical"]["url"]
        made("map", where, "--set", f"map.model={url}", status=2)
        made("authors-to-bundle", url, "--config", where, "--set", "run=authors", status=2)
        for wrong in ("optical.url", "radar.variable", "radar.bands"):
            made("prepare", where, "--set", f"scenes.0.sources.{wrong}={url.replace('optical', 'absent')}", status=2)
        for wrong in ("labels.attribute=none", "labels.layer=none", "labels.priority=[none]", "labels.attribute=null"):
            made("prepare", where, "--set", f"scenes.0.{wrong}", status=2)
        made("train", where, "--set", f"train.mlflow={url}", "--set", "run=other", status=2)
        made("prepare", where, "--set", f"workspace={url}", status=2)
        for form in ("mat", "zarr", "json", "nc"):
            made("prepare", where, "--set", f"scenes.0.sources.optical.url={url.replace('.tif', f'.{form}')}", status=2)
        made("prepare", where, "--set", f'scenes.0.sources.optical={{stac: {{url: "{url}", assets: [red]}}}}', status=2)
        for name in ENVIRONMENT:
            made("prepare", where, "--set", f"classes.0.name=${{{name}}}", status=2)
    made("prepare", where, status=2)
    return made


def test_the_run_was_whole(run: Run) -> None:
    there = {str(path.relative_to(run.workspace)) for path in run.workspace.rglob("*") if path.is_file()}
    wanted = ("report/index.html", "runs/main/config.yaml", "runs/main/environment.json", "maps/small/main/item.json")
    assert {f"work/{name}" for name in wanted} <= there
    assert any(name.startswith("mlflow/") for name in there)
    assert any(name.endswith(".parquet") for name in there)
    assert "left out" in run.said[f"run {run.config}"], "what was odd of the labels is told, with their URL"


def test_no_file_holds_a_secret(run: Run) -> None:
    found = {
        str(path.relative_to(run.workspace)): words
        for path in sorted(run.workspace.rglob("*"))
        if path.is_file()
        for content in readable(path)
        if (words := leaks(content))
    }
    assert found == {}
    assert not [path for path in run.workspace.rglob("*") if leaks(str(path).encode())]


def test_nothing_that_was_said_holds_a_secret(run: Run) -> None:
    assert {command: words for command, said in run.said.items() if (words := leaks(said.encode()))} == {}


def test_names_are_text_in_every_page(run: Run) -> None:
    page = (run.workspace / "work/report/index.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 191 }}" in page
    for text in (page, (run.workspace / "work/models/main/README.md").read_text().replace("\\<", "&lt;")):
        assert "<script" not in text
        assert "<img src=x" not in text
        assert "1337" not in text
    for path in (run.workspace / "work/maps/small/main").glob("*.xml"):
        names = [element.text or "" for element in ElementTree.parse(path).iter("Category")]
        assert any(HTML in name for name in names)


def test_urls_are_kept_without_what_is_secret(run: Run) -> None:
    kept = yaml.safe_load((run.workspace / "work/runs/main/config.yaml").read_text())
    url = kept["scenes"][0]["sources"]["optical"]["url"]
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/données/optical.tif")


def test_line_breaks_of_yaml_hide_no_secret() -> None:
    for length in range(40, 90):
        url = f"https://me:{PASSWORD}@host/{'x' * length}é a/données/{'y' * 30}é.tif?sig={SIGNATURE}"
        for text in (yaml.safe_dump({"a": {"url": url}}), yaml.safe_dump([url, [url]])):
            assert not leaks(without_queries(text).encode())
            assert "données" in str(yaml.safe_load(without_queries(text)))
