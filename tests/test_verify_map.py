"""`mibf verify` of maps: what it finds, what it only notes, and that what it names can be made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from typer.testing import CliRunner, Result

from jobs.cli import app
from jobs.verify_sample import drawn
from pipeline import storage
from pipeline.grid import Window
from pipeline.ledger import Entry, Ledger
from pipeline.predict import TilePredictor
from pipeline.tiles import Tile
from tests.conftest import SmallScene, make_scene, write_raster
from tests.models import write_model

MAP = "work/maps/small/main"


class Project:
    """A scene that was mapped, and its configuration as a file, to do harm to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.map = folder, folder / MAP

    def run(self, command: str, *arguments: str, status: int = 0) -> Result:
        """A command's result, given its exit status."""
        result = CliRunner().invoke(app, [command, str(self.folder / "small.yaml"), *arguments])
        assert result.exit_code == status, result.output
        return result

    def verify(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """What `mibf verify --json` says of the map."""
        (found,) = json.loads(self.run("verify", "--json", *arguments, status=status).stdout)["maps"]
        return dict(found)

    def item(self) -> dict[str, Any]:
        return dict(json.loads((self.map / "item.json").read_text()))

    def write_item(self, item: dict[str, Any]) -> None:
        (self.map / "item.json").write_text(json.dumps(item))

    def sign(self, name: str) -> None:
        """Have the item say of a file what it now is."""
        item = self.item()
        size, sha256 = storage.sha256(str(self.map / name))
        item["assets"][Path(name).stem] |= {"file:size": size, "file:checksum": f"1220{sha256}"}
        self.write_item(item)


def configure(scene: SmallScene, **section: Any) -> None:
    """Write a configuration that maps by a model from elsewhere, so that none need be trained."""
    products = ["class", "confidence", "sources"]
    chosen = {"tile": 64, "workers": 0, "attempts": 1, "products": products, "model": str(scene.folder / "model")}
    scene.write_config(map=chosen | section)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene's folder once it was prepared and mapped: 150 x 130 pixels in 3 x 3 tiles."""
    scene = make_scene(tmp_path_factory.mktemp("mapped"))
    configure(scene)
    project = Project(scene.folder)
    project.run("prepare", "--set", "prepare.shard=128")
    write_model(scene.folder)
    project.run("map")
    return scene.folder


@pytest.fixture
def project(mapped: Path, tmp_path: Path) -> Project:
    """A copy of it, whose files are still read where they first lay."""
    shutil.copytree(mapped, tmp_path / "copy")
    path = tmp_path / "copy/small.yaml"
    path.write_text(path.read_text().replace(f"{mapped}/work", f"{tmp_path}/copy/work"))
    return Project(tmp_path / "copy")


def flip(path: Path, where: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 255
    path.write_bytes(content)


def offset_of_block(path: Path) -> int:
    """Where the first block of a GeoTIFF's pixels begins in the file."""
    with rasterio.open(path) as dataset:
        return int(dataset.tags(1, ns="TIFF").get("BLOCK_OFFSET_0_0") or dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1))


def change_pixel(path: Path, y: int, x: int, value: int) -> None:
    """Give one pixel another value, in a file that stays valid."""
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.write(np.full((1, 1, 1), value, dataset.dtypes[0]), window=rasterio.windows.Window(x, y, 1, 1))


# --- a map as it was made


def test_a_map_that_is_as_it_was_made(project: Project) -> None:
    found = project.verify("--sample", "2")
    assert found["whole"]
    assert (found["files"], found["tiles"], found["sampled"]) == (4, 9, 2)  # three products and the picture
    assert found["broken"] == found["notes"] == []
    assert found["published"] == project.item()["properties"]["created"]
    told = project.run("verify", "--sample", "100").stdout
    assert "small: map: 4 files" in told
    assert "9 tiles, 9 of them computed again, whole" in told


def test_a_map_in_blocks(tmp_path: Path) -> None:
    """Of a large scene each product is several files, and one that makes a raster of them."""
    scene = make_scene(tmp_path)
    values = np.random.default_rng(0).integers(1, 9999, (3, 530, 40)).astype(np.uint16)
    write_raster(tmp_path / "optical.tif", values, nodata=0)
    write_raster(tmp_path / "radar.tif", values[:1].astype(np.float32))
    write_raster(tmp_path / "labels.tif", (values[:1] % 3).astype(np.uint8) + (values[:1] % 3 == 0) * np.uint8(5))
    configure(scene, block=512, products=["class", "probabilities"])
    project = Project(tmp_path)
    project.run("prepare")
    write_model(tmp_path)
    project.run("map")
    found = project.verify("--sample", "1")
    assert found["whole"], found
    assert (found["files"], found["tiles"]) == (7, 9)  # two blocks and a VRT of each product, and the picture
    (project.map / "class_y512_x0.tif").unlink()
    lost, tile = project.verify(status=3)["broken"]
    assert lost == "class_y512_x0.tif: is missing"
    assert tile.startswith("small/y512_x0: cannot be read (")
    (project.map / "class.vrt").unlink()
    lost, whole = project.verify(status=3)["broken"]
    assert (lost, whole) == ("class_y512_x0.tif: is missing", "class.vrt: is missing")
    project.run("map")
    assert project.verify()["whole"]


def test_where_no_map_is_published_the_stores_are_checked_alone(project: Project) -> None:
    shutil.rmtree(project.map)
    found = project.verify("--sample", "1")
    assert found["whole"] is None
    assert "small: map: none is published" in project.run("verify").stdout
    shutil.rmtree(project.folder / "model")
    project.run("verify")


def test_nothing_is_written(project: Project) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*")}
    project.verify("--sample", "1")
    assert {path: path.stat().st_mtime_ns for path in project.folder.rglob("*")} == before


# --- harm


def test_a_byte_that_changed_in_a_file(project: Project) -> None:
    path = project.map / "confidence.tif"
    flip(path, offset_of_block(path) + 50)
    result = project.run("verify", status=3)
    assert "Traceback" not in result.output
    broken = project.verify(status=3)["broken"]
    assert broken[0] == "confidence.tif: has another checksum than when it was published"
    assert "small/y0_x0: " in broken[1]
    assert "remove the files of it that are named" in result.stderr
    path.unlink()
    project.run("map")
    assert project.verify()["whole"]


def test_a_file_cut_short_and_one_that_is_gone(project: Project) -> None:
    path = project.map / "class.tif"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert project.verify(status=3)["broken"][0] == f"class.tif: has {size - 1:,} bytes instead of {size:,}"
    path.unlink()
    found = project.verify(status=3)
    assert found["broken"] == ["class.tif: is missing"]
    assert "without class no tile's checksum can be computed" in found["notes"][0]


def test_a_changed_pixel_in_a_valid_file(project: Project) -> None:
    """The file's checksum tells of it, and the tile's: also where the item was made to agree with the file."""
    path = project.map / "class.tif"
    with rasterio.open(path) as dataset:
        before = int(dataset.read(1)[100, 70])
    change_pixel(path, 100, 70, 1 if before != 1 else 2)
    tile = "small/y64_x64: its pixels are not those that the ledger has the checksum of"
    file, found = project.verify(status=3)["broken"]
    assert file.startswith("class.tif: has ")
    assert found == tile
    project.sign("class.tif")
    assert project.verify(status=3)["broken"] == [tile]
    assert "`mibf map --anew`" in project.run("verify", status=3).stderr
    again = project.verify("--sample", "9", status=3)
    assert again["broken"] == [tile], "what the tile should be is in the ledger, and computed again it is that"
    change_pixel(path, 100, 70, 255)
    (line,) = (line for line in project.verify(status=3)["broken"] if line.startswith("small/"))
    assert line == f"{tile}; 1 pixels of class are missing or should not be there"
    project.run("map", "--anew")
    assert project.verify()["whole"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda text: text[:-20], "item.json: it is no JSON"),
        (lambda text: '{"type": "Feature"}', "item.json: it is not the item of a map (KeyError: 'properties')"),
        (lambda text: text.replace('"./class.tif"', '"../class.tif"'), "is no file beside the item"),
        (lambda text: text.replace('"stac_version": "1.1.0"', '"stac_version": 1'), "item.json: the STAC item"),
        (lambda text: text.replace('"data_type": "uint16"', '"data_type": "int16"'), "confidence is stored as int16"),
    ],
)
def test_an_item_that_was_edited(project: Project, harm: Callable[[str], str], message: str) -> None:
    path = project.map / "item.json"
    before = path.read_text()
    path.write_text(harm(before))
    assert path.read_text() != before
    assert message in project.verify(status=3)["broken"][0]


def test_a_tile_that_the_ledger_does_not_have(project: Project) -> None:
    shutil.rmtree(project.map / "ledger")
    found = project.verify(status=3)
    assert len(found["broken"]) == 9
    assert found["broken"][0].startswith("small/y0_x0: is not in the ledger")


def test_a_ledger_that_is_damaged(project: Project) -> None:
    segment = min((project.map / "ledger").glob("*.parquet"))
    segment.write_bytes(segment.read_bytes()[:-30])
    (line,) = project.verify(status=3)["broken"]
    assert line.startswith("ledger: ")
    assert "is damaged" in line


def test_many_broken_tiles_are_told_in_few_lines(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.verify.NAMED", 2)
    shutil.rmtree(project.map / "ledger")
    assert "  and 7 more; --json names them all" in project.run("verify", status=3).stdout


# --- what has changed since


def test_a_scene_that_was_prepared_anew_makes_its_tiles_stale_and_no_map_broken(project: Project) -> None:
    config = yaml.safe_load((project.folder / "small.yaml").read_text())
    source = config["scenes"][0]["sources"]["optical"]
    with rasterio.open(source["url"]) as dataset:
        optical = dataset.read()
    optical[:, 140:, 129] = 0  # no data any more; the last rows are in a shard of their own
    source["url"] = str(write_raster(project.folder / "changed.tif", optical, nodata=0))
    (project.folder / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    project.run("prepare", "--set", "prepare.shard=128")
    found = project.verify("--sample", "9")
    assert found["whole"], found
    stale, elsewhere = found["notes"]
    assert "tiles are stale, the input changed (small/y" in stale
    assert "1 of the stale tiles have not pixels just where the scene has data now" in elsewhere
    assert 0 < found["sampled"] < 9, "those that are not stale"
    project.run("map")
    assert project.verify()["notes"] == []


@pytest.mark.parametrize(
    ("key", "note"),
    [
        ("map.products=[class]", "the products (was class uint8, confidence uint16, sources uint8, is class uint8)"),
        ("map.dtype=uint8", "confidence uint16, sources uint8, is class uint8, confidence uint8"),
        ("map.tile=128", "map.tile (was 64, is 128)"),
        ("map.missing=nodata", "map.missing (was declared, is nodata)"),
        ("prediction.priors=uniform", ""),
    ],
)
def test_a_configuration_that_has_changed_since(project: Project, key: str, note: str) -> None:
    """The map is checked as what it is; what the configuration now asks for is a note."""
    if not note:  # a model without class frequencies knows no other ones
        found = project.verify("--set", key)
        assert "was not compared with the scene and the model" in found["notes"][0]
    else:
        found = project.verify("--set", key, "--sample", "1")
        assert found["notes"][0].startswith("changed since it was made: ")
        assert note in found["notes"][0]
        assert "no tile can be computed again" in found["notes"][-1]
    assert found["whole"], found
    assert found["tiles"] == 9
    flip(project.map / "class.tif", (project.map / "class.tif").stat().st_size - 3)
    assert "class.tif: " in project.verify("--set", key, status=3)["broken"][0]


def test_another_model(project: Project) -> None:
    write_model(project.folder, seed=1)
    path = project.folder / "small.yaml"
    path.write_text(
        path.read_text().replace(yaml.safe_load(path.read_text())["map"]["model"], str(project.folder / "model"))
    )
    found = project.verify("--sample", "1")
    assert found["whole"]
    assert "the model (was " in found["notes"][0]
    assert "9 of 9 tiles are stale, the model changed" in found["notes"][1]
    assert found["sampled"] == 0


def test_a_model_that_is_gone(project: Project) -> None:
    """What was published can still be seen to be what the ledger has the checksums of."""
    gone = ("--set", f"map.model={project.folder / 'nowhere'}")
    found = project.verify(*gone)
    assert found["whole"]
    assert "was not compared with the scene and the model as they are now" in found["notes"][0]
    flip(project.map / "quicklook.png", 100)
    assert "quicklook.png: has another checksum" in project.verify(*gone, status=3)["broken"][0]


def test_tiles_that_were_mapped_again_and_are_not_published_yet(project: Project) -> None:
    """A later run that is not at its end leaves the map of the one before, which is whole."""
    ledger = Ledger.open(str(project.map / "ledger"))
    window, before = next(iter(ledger.last().items()))
    ledger.append([Entry(Tile("small", window), "done", before.fingerprint, checksum="another")])
    ledger.close()
    found = project.verify()
    assert found["whole"]
    assert found["notes"] == ["1 of 9 tiles were mapped again since and are not published; `mibf map` is due"]


def test_with_a_broken_store_the_map_is_checked_by_itself(project: Project) -> None:
    flip(project.folder / "work/stores/small.zarr/valid/optical/c/0/0", 10)
    found = project.verify("--sample", "1", status=3)
    assert found["whole"]
    assert found["notes"][0].endswith("as they are now: its store is broken")


# --- tiles computed again


@pytest.fixture
def predicting_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every tile's confidence come out one step off in two pixels."""
    compute = TilePredictor.compute

    def other(self: TilePredictor, tile: Any) -> Any:
        result = compute(self, tile)
        result["confidence"][0, 10, :2] -= 1
        return result

    monkeypatch.setattr(TilePredictor, "compute", other)


@pytest.mark.usefixtures("predicting_otherwise")
def test_a_tile_that_is_not_what_is_computed_again(project: Project) -> None:
    found = project.verify("--sample", "3", status=3)
    assert found["sampled"] == 3
    assert len(found["broken"]) == 3
    assert all("computed again, confidence differs in 2 pixels from what is published" in line for line in found["broken"])


@pytest.mark.usefixtures("predicting_otherwise")
@pytest.mark.parametrize(
    ("worker", "rows", "why"),
    [
        ("{host}/1/cuda", "{rows}", "it was mapped on cuda, and this is cpu"),
        ("{host}/1/cpu", "1", "it was mapped with 1 rows in work, and now with"),
        ("elsewhere/1/cpu", "{rows}", "it was mapped on another machine, elsewhere"),
    ],
)
def test_last_bits_that_other_means_explain_are_noted(project: Project, worker: str, rows: str, why: str) -> None:
    redo_ledger(project, worker, rows)
    found = project.verify("--sample", "1")
    assert found["whole"]
    assert "computed again, confidence differs in 2 pixels" in found["notes"][0]
    assert why in found["notes"][0]


def test_other_means_do_not_explain_other_classes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    redo_ledger(project, "elsewhere/1/cuda", "{rows}")
    compute = TilePredictor.compute

    def other(self: TilePredictor, tile: Any) -> Any:
        result = compute(self, tile)
        return result | {"class": np.where(tile.wanted, 5, result["class"])}

    monkeypatch.setattr(TilePredictor, "compute", other)
    (line,) = project.verify("--sample", "1", status=3)["broken"]
    assert "class differs in" in line
    assert "it was mapped on cuda" in line


def redo_ledger(project: Project, worker: str, rows: str) -> None:
    """Have the ledger say that all tiles were mapped by another worker."""
    ledger = Ledger.open(str(project.map / "ledger"))
    for window, made in ledger.made().items():
        host = made[-1].worker.partition("/")[0]
        told = {"worker": worker.format(host=host), "rows": int(rows.format(rows=made[-1].rows))}
        entry = Entry(Tile("small", window), "done", made[-1].fingerprint, checksum=made[-1].checksum)
        ledger.append([replace(entry, **told)])
    ledger.close()


def test_the_seed_draws_the_tiles_and_a_larger_sample_holds_the_smaller_one() -> None:
    windows = [Window(y, x, 64, 64) for y in range(0, 640, 64) for x in range(0, 640, 64)]
    five, ten = drawn(windows, count=5, seed=0), drawn(windows[::-1], count=10, seed=0)
    assert ten[:5] == five
    assert set(five) != set(drawn(windows, count=5, seed=1))
    assert set(drawn(windows, count=1000, seed=0)) == set(windows)
    assert len({window.y for window in ten}) > 3, "spread over the scene"
