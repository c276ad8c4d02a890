"""Plant secrets in the environment and in URLs, do a complete run, and search all its files and output for them."""

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

from jobs.cli.common import app
from mibf.redaction import without_queries
from tests.support.http_server import served
from tests.support.scenes import CLASSES, CRS, SmallScene, make_scene

#: Secrets that must appear nowhere; each value is unique, so a leak shows its origin.
ENVIRONMENT = {
    name: f"planted-{name.lower()}"
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "RAY_AUTH_TOKEN",
        "AZURE_STORAGE_CONNECTION_STRING",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "MLFLOW_TRACKING_PASSWORD",
        "SOME_DATABASE_PASSWORD",
    )
}
PASSWORD, SIGNATURE = "planted-pass'word", "planted-sig,na)ture"
#: A class name that would execute if a page or a template did not treat it as text.
HTML = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7 * 191 }} {% raw %} $(id)"
#: Includes fragments, as left by a truncated message or a line break.
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
    """Yield the bytes of a file and of the content compressed or archived in it."""
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
    """Run commands on a workspace and keep their output."""

    def __init__(self, config: Path, workspace: Path) -> None:
        self.config, self.workspace = config, workspace
        self.said: dict[str, str] = {}

    def __call__(self, *arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == status, (result.output, result.exception)
        self.said[" ".join(arguments)] = result.output
        return result.output


def with_secrets(scene: SmallScene, address: str) -> dict[str, Any]:
    """Return the scene's configuration with long HTTP URLs that contain a password, a signature and non-ASCII letters."""
    base = address.replace("http://", f"http://user-of-the:{PASSWORD}@")
    folder = "a-folder-of-a-long-name-so-that-YAML-breaks-the-line/Müritz-und-Umgebung/données"
    (scene.folder / folder).mkdir(parents=True)

    def moved_url(name: str) -> str:
        (scene.folder / name).rename(scene.folder / folder / name)
        return f"{base}/{folder}/{name}?X-Signature={SIGNATURE}&more={SIGNATURE}"

    left, bottom = 400000, 5798500
    corners = [(x, y) for x in range(13) for y in range(15)]
    squares = [
        shapely.box(left + 100 * x, bottom + 100 * y, left + 100 * x + 100, bottom + 100 * y + 100) for x, y in corners
    ]
    kinds = [int(scene.truth[(14 - y) * 10 + 5, x * 10 + 5]) for x, y in corners]
    odd = [
        shapely.LineString([(left, bottom), (left + 100, bottom + 100)]),
        shapely.box(left, bottom, left + 9, bottom + 9),
    ]
    features = geopandas.GeoDataFrame({"kind": [*kinds, 1, None]}, geometry=[*squares, *odd], crs=CRS)
    features.to_file(scene.folder / "labels.gpkg")
    values = scene.config()
    first = values["scenes"][0]
    first["sources"]["optical"]["url"] = moved_url("optical.tif")
    first["sources"]["radar"]["url"] = moved_url("radar.tif")
    first["labels"] = {"url": moved_url("labels.gpkg"), "attribute": "kind"}
    return values


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run all stages and every read-only command on HTTP inputs, and commands that fail; the last after the server stops."""
    scene = make_scene(tmp_path_factory.mktemp("sown"))
    with pytest.MonkeyPatch.context() as patch, served(scene.folder) as address:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ACCESS_KEY_ID", "an-id")
        values = with_secrets(scene, address)
        workspace = tmp_path_factory.mktemp("sown-work")
        values |= {
            "workspace": str(workspace / "work"),
            "train": {
                "recipe": "standard",
                "epochs": 1,
                "batch_size": 64,
                "workers": 0,
                "threads": 1,
                "mlflow": str(workspace / "mlflow"),
            },
            "map": {
                "tile_size": 64,
                "workers": 0,
                "attempts": 1,
                "backoff": 0,
                "products": ["class", "confidence", "sources"],
            },
            "classes": [{"id": c["id"], "name": f"{HTML} {c['name']}"} for c in CLASSES],
        }
        config = scene.folder / "sown.yaml"
        config.write_text(yaml.safe_dump(values, allow_unicode=True))
        command = Run(config, workspace)
        path = str(config)
        command("plan", path)
        command("run", path)
        command("run", path, "--json")
        command("status", path, "--json")
        command("verify", path, "--sample", "1", "--json")
        command("rerun", path)
        command("bundle", "show", str(workspace / "work/models/main"), "--json")
        url = values["scenes"][0]["sources"]["optical"]["url"]
        command("map", path, "--set", f"map.model={url}", status=2)
        command("import-checkpoint", url, "--config", path, "--set", "run=authors", status=2)
        for wrong in ("optical.url", "radar.variable", "radar.bands"):
            command("prepare", path, "--set", f"scenes.0.sources.{wrong}={url.replace('optical', 'absent')}", status=2)
        for wrong in ("labels.attribute=none", "labels.layer=none", "labels.priority=[none]", "labels.attribute=null"):
            command("prepare", path, "--set", f"scenes.0.{wrong}", status=2)
        command("train", path, "--set", f"train.mlflow={url}", "--set", "run=other", status=2)
        command("prepare", path, "--set", f"workspace={url}", status=2)
        for form in ("mat", "zarr", "json", "nc"):
            command("prepare", path, "--set", f"scenes.0.sources.optical.url={url.replace('.tif', f'.{form}')}", status=2)
        command("prepare", path, "--set", f'scenes.0.sources.optical={{stac: {{url: "{url}", assets: [red]}}}}', status=2)
        for name in ENVIRONMENT:
            command("prepare", path, "--set", f"classes.0.name=${{{name}}}", status=2)
    command("prepare", path, status=2)
    return command


def test_run_completed_with_all_outputs(run: Run) -> None:
    found = {str(path.relative_to(run.workspace)) for path in run.workspace.rglob("*") if path.is_file()}
    wanted = ("report/index.html", "runs/main/config.yaml", "runs/main/environment.json", "maps/small/main/item.json")
    assert {f"work/{name}" for name in wanted} <= found
    assert any(name.startswith("mlflow/") for name in found)
    assert any(name.endswith(".parquet") for name in found)
    assert "skipped" in run.said[f"run {run.config}"], "skipped labels must be reported with their URL"


def test_no_output_file_contains_secrets(run: Run) -> None:
    found = {
        str(path.relative_to(run.workspace)): words
        for path in sorted(run.workspace.rglob("*"))
        if path.is_file()
        for content in readable(path)
        if (words := leaks(content))
    }
    assert found == {}
    assert not [path for path in run.workspace.rglob("*") if leaks(str(path).encode())]


def test_no_command_output_contains_secrets(run: Run) -> None:
    assert {command: words for command, output in run.said.items() if (words := leaks(output.encode()))} == {}


def test_class_names_are_escaped_in_pages_and_metadata(run: Run) -> None:
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


def test_saved_config_keeps_redacted_urls(run: Run) -> None:
    kept = yaml.safe_load((run.workspace / "work/runs/main/config.yaml").read_text())
    url = kept["scenes"][0]["sources"]["optical"]["url"]
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/données/optical.tif")


def test_redaction_works_across_yaml_line_breaks() -> None:
    for length in range(40, 90):
        url = f"https://me:{PASSWORD}@host/{'x' * length}é a/données/{'y' * 30}é.tif?sig={SIGNATURE}"
        for text in (yaml.safe_dump({"a": {"url": url}}), yaml.safe_dump([url, [url]])):
            assert not leaks(without_queries(text).encode())
            assert "données" in str(yaml.safe_load(without_queries(text)))
