"""Publishing: readers find the old map or the new one, never a partial one, whichever step fails; nothing is built twice."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio

from mibf.errors import InputError
from pipeline.codes import RENAMED_PRODUCTS
from pipeline.geotiff import cog, tile_codec
from pipeline.geotiff.tile_codec import CogError
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.io.lease import Lease, LeaseLostError
from pipeline.maps.map_store import IncompleteMapError, MapStore
from pipeline.maps.products import MapProductName, product
from pipeline.parallel.executor import ThreadExecutor
from pipeline.publishing import map_file, map_part, publish_map, published_map, quicklook
from pipeline.publishing.map_file import FileContent
from pipeline.publishing.map_part import SourceTile
from pipeline.publishing.publish import RECORD, STAGING, PublishError, finish_interrupted
from pipeline.publishing.published_map import ITEM, QUICKLOOK, PublishedMap
from pipeline.publishing.stac_item import Asset
from pipeline.rasters.untrusted import open_published
from pipeline.store.patch_store import PatchStore
from tests.support.publications import (
    COLUMNS,
    ROWS,
    build_store,
    codes_of,
    make_publication,
    random_layers,
    unchanged,
    write_work,
)
from tests.support.s3_server import ObjectStore

CLASS, CONFIDENCE, RATE = product("class"), product("confidence"), product("kl")
PIECES = ["y0_x0", "y0_x512", "y512_x0", "y512_x512"]
BOTH: tuple[MapProductName, MapProductName] = ("class", "confidence")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PatchStore:
    return build_store(tmp_path_factory.mktemp("store"))


class Publisher:
    """Publishes maps of random codes in a folder."""

    def __init__(self, store: PatchStore, work: Path) -> None:
        self.store, self.work = store, work
        self.assets: list[Asset] = []
        self.steps: list[int] = []

    def __call__(
        self,
        folder: str,
        *names: MapProductName,
        seed: int = 0,
        block: int = 1024,
        lease: Lease | None = None,
        tiles: Callable[[Sequence[SourceTile]], Sequence[SourceTile]] = list,
        layers: dict[str, Any] | None = None,
        published: dict[str, FileContent] | None = None,
        tags: dict[str, str] | None = None,
    ) -> list[Window]:
        self.written = write_work(self.store, self.work, layers or random_layers(names, seed))
        publication = make_publication(
            self.store, self.work, folder, names, tiles(self.written), block=block, published=published, tags=tags
        )
        return publish_map.publish_map(
            publication,
            ThreadExecutor(2),
            describe=self.describe,
            run="now",
            lease=lease or Lease(),
            progress=self.progress,
        )

    def describe(self, assets: Sequence[Asset]) -> dict[str, Any]:
        self.assets = list(assets)
        return {"files": [asset.name for asset in assets]}

    @contextmanager
    def progress(self, steps: int) -> Iterator[Callable[[int], None]]:
        self.steps = [steps, 0]

        def advance(count: int) -> None:
            self.steps[1] += count

        yield advance

    def contents(self) -> dict[str, FileContent]:
        """What the item says of the files that were published last."""
        return {asset.name: FileContent(asset.bytes, asset.sha256, asset.pixels) for asset in self.assets}


@pytest.fixture
def publisher(store: PatchStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    monkeypatch.setattr(publish_map, "check_item", lambda item: None)  # the item of these tests is not STAC's
    return Publisher(store, tmp_path)


def content(folder: str) -> dict[str, bytes]:
    """Return the content of all files in a folder, by relative path."""
    filesystem, path = storage.open_url(folder)
    filesystem.invalidate_cache()
    return {name[len(path) :].lstrip("/"): filesystem.cat_file(name) for name in filesystem.find(path)}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A folder in an in-memory object store, of which GDAL reads copies; cleared afterwards."""

    def open_copy(url: str, **options: Any) -> rasterio.DatasetReader:
        folder, _, name = url.rpartition("/")
        copies = Path(tempfile.mkdtemp(dir=tmp_path))  # of each call, as several threads open files
        for each in storage.names(folder):
            if each.endswith((".tif", ".vrt")):
                (copies / each).write_bytes(storage.read_bytes(storage.join(folder, each)))
        return open_published(str(copies / name), **options)

    for module in (quicklook, map_part, published_map):
        monkeypatch.setattr(module, "open_published", open_copy)
    yield "memory://maps/one"
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["disk", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "maps/one") if request.param == "disk" else str(request.getfixturevalue("memory"))


FILES = {"class.tif", "class.tif.aux.xml", "class.qml", "confidence.tif", "confidence.qml", QUICKLOOK, ITEM}


def test_map_is_published_with_sizes_and_checksums_of_its_files(folder: str, publisher: Publisher) -> None:
    assert publisher(folder, *BOTH) == []
    found = content(folder)
    assert set(found) == FILES
    assert [(a.product, a.name, a.window) for a in publisher.assets] == [
        ("class", "class.tif", Window(0, 0, ROWS, COLUMNS)),
        ("confidence", "confidence.tif", Window(0, 0, ROWS, COLUMNS)),
        ("quicklook", QUICKLOOK, None),
        ("class", "class.qml", None),
        ("confidence", "confidence.qml", None),
        ("class", "class.tif.aux.xml", None),
    ]
    for asset in publisher.assets:
        assert (asset.bytes, asset.sha256) == (len(found[asset.name]), hashlib.sha256(found[asset.name]).hexdigest())
    assert publisher.steps == [3, 3], "one part and two files"


def test_blocks_have_a_vrt_and_files_of_the_previous_map_are_removed(folder: str, publisher: Publisher) -> None:
    publisher(folder, "class", "kl")
    storage.write_bytes(storage.join(folder, "notes.txt"), b"not a map file")
    publisher(folder, *BOTH, block=512)
    expected = {f"{name}_{piece}.tif" for name in BOTH for piece in PIECES}
    expected |= {f"class_{piece}.tif.aux.xml" for piece in PIECES} | {"class.vrt", "confidence.vrt"}
    expected |= {"class.qml", "confidence.qml"}
    assert set(content(folder)) == expected | {ITEM, QUICKLOOK, "notes.txt"}
    assert [a.name for a in publisher.assets[:5]] == [*(f"class_{piece}.tif" for piece in PIECES), "class.vrt"]
    assert [a.window for a in publisher.assets[3:5]] == [Window(512, 512, 188, 88), Window(0, 0, ROWS, COLUMNS)]
    publisher(folder, "confidence")
    assert set(content(folder)) == {"confidence.tif", "confidence.qml", ITEM, "notes.txt"}, "nothing of classes is left"


def test_files_with_old_product_names_are_removed(folder: str, publisher: Publisher) -> None:
    names = [f"{old}{part}" for old in RENAMED_PRODUCTS for part in (".tif", ".tif.aux.xml", "_y0_x512.tif", ".vrt")]
    for name in (*names, "information.txt", "rates.tif"):
        storage.write_bytes(storage.join(folder, name), b"of an earlier version")
    publisher(folder, "class")
    assert set(content(folder)) == FILES - {"confidence.tif", "confidence.qml"} | {"information.txt", "rates.tif"}


@pytest.mark.parametrize("block", [1024, 512])
def test_published_map_reads_back_the_pixels(tmp_path: Path, publisher: Publisher, block: int) -> None:
    folder = str(tmp_path / "one")
    publisher(folder, *BOTH, seed=4, block=block)
    published = PublishedMap(folder)
    for layer_product in (CLASS, CONFIDENCE):
        codes = codes_of(layer_product, 4)
        for window in (Window(0, 0, ROWS, COLUMNS), Window(500, 490, 100, 64), Window(699, 599, 1, 1)):
            found = published.read(layer_product, window)
            assert found.dtype == layer_product.dtype
            np.testing.assert_array_equal(found, codes[:, *window.slices])
    assert published.read(CLASS, Window(0, 0, ROWS, COLUMNS), shape_yx=(70, 60)).shape == (1, 70, 60)
    with pytest.raises(InputError, match="no published kl raster found; run `mibf map` first"):
        published.read(RATE, Window(0, 0, 1, 1))
    with pytest.raises(InputError, match="confidence is stored as uint16, not as uint8; run `mibf map` again"):
        published.read(product("confidence", "uint8"), Window(0, 0, 1, 1))


# --- pixels are checked as they are read


def test_damaged_tiles_are_returned_and_nothing_is_published(folder: str, publisher: Publisher) -> None:
    publisher(folder, *BOTH, seed=1)
    before = content(folder)

    def damage(tiles: Sequence[SourceTile]) -> list[SourceTile]:
        work = MapStore(str(publisher.work / "map.zarr"))
        work.array(CONFIDENCE)[0, 300, 10] += 1
        return list(tiles)

    assert publisher(folder, *BOTH, seed=2, tiles=damage) == [Window(256, 0, 256, 256)]
    assert content(folder) == before


def test_truncated_shard_is_a_damaged_tile(folder: str, publisher: Publisher) -> None:
    def truncate(tiles: Sequence[SourceTile]) -> list[SourceTile]:
        shard = publisher.work / "map.zarr/class/c/0/2/1"
        shard.write_bytes(shard.read_bytes()[:50])
        return list(tiles)

    assert publisher(folder, "class", tiles=truncate) == [Window(512, 256, 188, 256)]


def test_unmapped_pixels_are_an_error(folder: str, publisher: Publisher) -> None:
    layers = random_layers(BOTH, 0)
    layers["confidence"][0, 5, 600 - 3] = CONFIDENCE.nodata
    with pytest.raises(IncompleteMapError, match="1 pixels of confidence in the tile at y 0, x 512"):
        publisher(folder, *BOTH, layers=layers)
    assert not content(folder)


def test_pixels_that_gdal_encodes_wrongly_are_an_error(
    folder: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_codec.np, "array_equal", lambda *_, **__: False)
    with pytest.raises(CogError, match="class: pixels read back differ from those written"):
        publisher(folder, "class")


# --- only what has changed is built

CHANGED = Window(256, 512, 256, 88)


def keep_only_changed(publisher: Publisher) -> None:
    """Remove all tiles but one from the map store."""
    for shard in (publisher.work / "map.zarr").glob("*/c/0/*/*"):
        if shard.parts[-2:] != ("1", "2"):
            shard.unlink()


def publish_change(
    publisher: Publisher, folder: str, *, block: int = 1024, tags: dict[str, str] | None = None
) -> tuple[list[Window], dict[str, Any]]:
    """Publish a map, then one that differs in a tile; the map store has only that tile."""
    layers = random_layers(BOTH, 1)
    publisher(folder, *BOTH, layers=layers, block=block)
    published = publisher.contents()
    for name, codes in random_layers(BOTH, 2).items():
        layers[name][:, *CHANGED.slices] = codes[:, *CHANGED.slices]

    def only_changed(tiles: Sequence[SourceTile]) -> list[SourceTile]:
        keep_only_changed(publisher)
        return unchanged(tiles, {CHANGED})

    found = publisher(folder, *BOTH, layers=layers, block=block, tiles=only_changed, published=published, tags=tags)
    return found, layers


@pytest.mark.parametrize("block", [1024, 512])
def test_change_of_one_tile_builds_that_tile_and_gives_the_bytes_of_a_new_map(
    folder: str, tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    built: list[Any] = []
    emit = map_part.TileEncoder.emit

    def counted(encoder: Any, key: Any, codes: Any) -> None:
        built.append(key)
        emit(encoder, key, codes)

    with monkeypatch.context() as patch:
        patch.setattr(map_part.TileEncoder, "emit", counted)
        damaged, layers = publish_change(publisher, folder, block=block)
    assert damaged == []
    fresh = str(tmp_path / "fresh")
    publisher(fresh, *BOTH, layers=layers, block=block)
    assert content(folder) == content(fresh)
    # 4 tiles of 512 and their overview at first, each its own file of 512; then one of them, and the overview.
    assert len(built) == {1024: 5 + 2, 512: 4 + 1}[block]


def test_published_files_without_changed_tiles_stay_where_they_are(tmp_path: Path, publisher: Publisher) -> None:
    folder = tmp_path / "one"
    layers = random_layers(BOTH, 1)
    publisher(str(folder), *BOTH, layers=layers, block=512)
    inodes = {path.name: path.stat().st_ino for path in folder.iterdir()}
    publish_change(publisher, str(folder), block=512)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    published = publisher.contents()
    publisher(
        str(folder), *BOTH, layers=layers, block=512, published=published,
        tiles=lambda tiles: unchanged(tiles, {CHANGED}),
    )  # fmt: skip  # one call, two lines
    after = {path.name: path.stat().st_ino for path in folder.iterdir()}
    built = {"class_y0_x512.tif", "class_y0_x512.tif.aux.xml", "confidence_y0_x512.tif"}
    assert {name for name in after if after[name] != before[name]} - {ITEM} == built | {
        "class.vrt",
        "confidence.vrt",
        "class.qml",
        "confidence.qml",
        QUICKLOOK,
    }
    assert set(inodes) == set(after)


@pytest.mark.parametrize("known", [True, False], ids=["lost", "of an earlier version"])
def test_files_without_their_sidecars_get_them_and_keep_their_bytes(
    tmp_path: Path, publisher: Publisher, known: bool
) -> None:
    """Maps of earlier versions have sidecars without an attribute table, which their items do not list."""
    folder = tmp_path / "one"
    layers = random_layers(BOTH, 1)
    publisher(str(folder), *BOTH, layers=layers, block=512)
    before, published = content(str(folder)), publisher.contents()
    if known:
        (folder / "class_y0_x512.tif.aux.xml").unlink()
    else:
        (folder / "class_y0_x512.tif.aux.xml").write_text("<PAMDataset/>")
        published = {name: FileContent(file.bytes, file.sha256) for name, file in published.items() if name[-4:] == ".tif"}

    def kept(tiles: Sequence[SourceTile]) -> list[SourceTile]:
        shutil.rmtree(publisher.work / "map.zarr")
        return unchanged(tiles, set())

    assert publisher(str(folder), *BOTH, layers=layers, block=512, published=published, tiles=kept) == []
    assert content(str(folder)) == before


@pytest.mark.parametrize("block", [1024, 512])
def test_other_tags_or_blocks_are_built_again_from_the_published_pixels(
    folder: str, tmp_path: Path, publisher: Publisher, block: int
) -> None:
    tags = {"mibf_run": "main", "mibf_version": "next"} if block == 1024 else None
    layers = random_layers(BOTH, 1)
    publisher(folder, *BOTH, layers=layers)
    published = publisher.contents()

    def none(tiles: Sequence[SourceTile]) -> list[SourceTile]:
        shutil.rmtree(publisher.work / "map.zarr/class/c")
        shutil.rmtree(publisher.work / "map.zarr/confidence/c")
        return unchanged(tiles, set())

    assert publisher(folder, *BOTH, layers=layers, block=block, tags=tags, published=published, tiles=none) == []
    fresh = str(tmp_path / "fresh")
    publisher(fresh, *BOTH, layers=layers, block=block, tags=tags)
    assert content(folder) == content(fresh)


def test_damage_of_a_published_file_is_found_before_its_tiles_are_copied(tmp_path: Path, publisher: Publisher) -> None:
    """The tile that cannot be read is returned; damage elsewhere, as in an overview, costs a new file."""
    folder = tmp_path / "one"
    layers = random_layers(BOTH, 1)
    publisher(str(folder), *BOTH, layers=layers)
    published, path = publisher.contents(), folder / "confidence.tif"
    whole = path.read_bytes()

    def change_one(*, copies: bool = False) -> list[Window]:
        def tiles(written: Sequence[SourceTile]) -> list[SourceTile]:
            if not copies:
                keep_only_changed(publisher)
            return unchanged(written, {CHANGED})

        return publisher(str(folder), *BOTH, layers=layers, published=published, tiles=tiles)

    path.write_bytes(whole[:-600] + bytes(500) + whole[-100:])  # the last tile of 512
    assert change_one() == [Window(512, 512, 188, 88)]
    assert change_one(copies=True) == [], "the map store has the tile as well"
    path.write_bytes(whole)
    place = len(whole) // 8  # in the overview, which comes first
    path.write_bytes(whole[:place] + bytes(100) + whole[place + 100 :])
    assert change_one() == []
    assert path.read_bytes() == whole


# --- failures


class InjectedError(Exception):
    """The failure that tests inject."""


def fail_on_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> list[int]:
    """Make the `number`-th call of a function raise before it does anything; returns the list of calls."""
    calls: list[int] = []
    real: Callable[..., Any] = getattr(owner, name)

    def fail_once(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise InjectedError
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, fail_once)
    return calls


#: Steps before the record of a publication is written: the function that fails, and at which call.
FAILURES_BEFORE_RECORD = [
    (publish_map, "encode_part", 1),
    (publish_map, "encode_part", 4),
    (map_file, "assemble", 6),
    (cog, "vrt", 2),
    (cog, "write_sidecar", 3),
    (publish_map, "quicklook", 1),
    (publish_map, "qgis_style", 2),
    (publish_map, "check_item", 1),
    (storage, "write_json", 1),
]


@pytest.mark.parametrize(("owner", "name", "number"), FAILURES_BEFORE_RECORD, ids=lambda v: getattr(v, "__name__", str(v)))
def test_failure_before_the_record_keeps_the_previous_map(
    folder: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int
) -> None:
    publisher(folder, *BOTH, seed=1)
    before = content(folder)
    with monkeypatch.context() as patch:
        fail_on_call(patch, owner, name, number)
        with pytest.raises(InjectedError):
            publisher(folder, *BOTH, seed=2, block=512)
    assert content(folder) == before
    assert not finish_interrupted(folder, Lease())
    publisher(folder, *BOTH, seed=2, block=512)
    assert len(content(folder)) == 18


def test_failed_upload_keeps_the_previous_map(memory: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher(memory, *BOTH, seed=1)
    before = content(memory)
    monkeypatch.setattr(map_file, "call_with_retry", lambda url, work: work())
    for number in (1, 7):
        with monkeypatch.context() as patch:
            fail_on_call(patch, storage, "publish", number)
            with pytest.raises(InjectedError):
                publisher(memory, *BOTH, seed=2, block=512)
        assert content(memory) == before


@pytest.mark.parametrize(
    ("name", "number"),
    [("remove", 2), ("move_file", 1), ("move_file", 2), ("move_file", 15), ("remove", 3), ("write_json", 2)],
)
def test_interrupted_replacement_is_completed_by_the_next_run(
    folder: str, tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    publisher(folder, "class", "kl", seed=1)
    with monkeypatch.context() as patch:
        fail_on_call(patch, storage, name, number)
        with pytest.raises(InjectedError):
            publisher(folder, *BOTH, seed=2, block=512)
    found = set(content(folder))
    assert (ITEM in found) == ((name, number) == ("remove", 2)), "the first removal is that of the earlier map store"
    assert finish_interrupted(folder, Lease())
    assert not finish_interrupted(folder, Lease())
    fresh = str(tmp_path / "fresh")
    publisher(fresh, *BOTH, seed=2, block=512)
    assert content(folder) == content(fresh)


class CountingLease(Lease):
    """A lease that is lost at its n-th check, counted from 1; never if that is 0."""

    def __init__(self, lost_at: int = 0) -> None:
        self.lost_at, self.checks = lost_at, 0

    def check(self) -> None:
        self.checks += 1
        if self.lost_at and self.checks >= self.lost_at:
            raise LeaseLostError("lost")


@contextmanager
def recorded_changes(lease: CountingLease) -> Iterator[list[tuple[str, int]]]:
    """Record each change to published files, with the number of checks of the lease before it."""
    changes: list[tuple[str, int]] = []

    def recorded(name: str) -> Callable[..., Any]:
        real = getattr(storage, name)

        def call(url: str, *rest: Any) -> Any:
            target = rest[0] if name == "move_file" else url
            if f"/{STAGING}-" not in target and not target.endswith(("map.zarr", f"{STAGING}-now")):
                changes.append((f"{name} {target.rpartition('/')[2]}", lease.checks))
            return real(url, *rest)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("remove", "move_file", "write_bytes"):
            patch.setattr(storage, name, recorded(name))
        yield changes


def test_lease_is_checked_before_each_change_of_a_published_file(folder: str, publisher: Publisher) -> None:
    publisher(folder, "class", "kl", seed=1)
    lease = CountingLease()
    with recorded_changes(lease) as changes:
        publisher(folder, *BOTH, seed=2, block=512, lease=lease)
    assert changes[0] == ("remove item.json", 2), "the first check is before the record"
    assert [number for _, number in changes] == list(range(2, len(changes) + 2)), "one new check before each"
    assert changes[-1][0] == "write_bytes item.json"
    assert len(changes) == 1 + 17 + 3 + 1


@pytest.mark.parametrize("number", [1, 2, 3, 9, 16, 17, 19])
def test_publish_that_loses_the_lease_changes_nothing_from_then_on(folder: str, publisher: Publisher, number: int) -> None:
    publisher(folder, "class", "kl", seed=1)
    before = content(folder)
    lease = CountingLease(number)
    with recorded_changes(lease) as changes, pytest.raises(LeaseLostError):
        publisher(folder, *BOTH, seed=2, block=512, lease=lease)
    assert len(changes) == max(0, number - 2)
    if number <= 2:
        assert {name: value for name, value in content(folder).items() if not name.startswith(STAGING)} == before


def test_staging_files_of_a_killed_process_are_removed_by_the_next_publish(folder: str, publisher: Publisher) -> None:
    storage.write_bytes(storage.join(folder, f"{STAGING}-before", "kl_y0_x0.tif"), b"half")
    publisher(folder, "class")
    assert set(content(folder)) == FILES - {"confidence.tif", "confidence.qml"}


def test_failed_first_publish_leaves_no_folder(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on_call(monkeypatch, publish_map, "encode_part", 1)
    with pytest.raises(InjectedError):
        publisher(str(tmp_path / "maps/one"), "class")
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("step", ["part", "file"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_error_names_the_folder_and_the_remedy(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    folder = str(tmp_path / "one")
    publisher(folder, "class", seed=1)
    before = content(folder)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(code, "any message of the system")

    owner, name = (storage, "write_bytes") if step == "part" else (map_file, "assemble")
    monkeypatch.setattr(owner, name, full)
    usage = shutil.disk_usage(Path(__file__))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    message = rf"{re.escape(folder)}/{STAGING}.*: the disk is full: 0\.5 MB are free, and .* needs up to .*map\.dtype"
    with pytest.raises(PublishError, match=message):
        publisher(folder, "class", seed=2)
    assert content(folder) == before


def test_other_io_errors_are_not_reported_as_a_full_disk(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(map_file, "assemble", denied)
    with pytest.raises(PermissionError):
        publisher(str(tmp_path / "one"), "class")


@pytest.mark.slow
def test_map_in_s3_bucket_is_published_read_back_and_republished(used_bucket: ObjectStore, publisher: Publisher) -> None:
    folder = used_bucket.url("maps/one")
    for seed, block in ((1, 512), (2, 512), (3, 1024)):
        publisher(folder, *BOTH, seed=seed, block=block)
        stored = {name.rsplit("/", 1)[1] for name in used_bucket.files.find(f"{used_bucket.bucket}/maps/one")}
        names = {asset.name for asset in publisher.assets}
        assert stored == names | {ITEM}
        reader = PublishedMap(folder)
        for layer_product in (CLASS, CONFIDENCE):
            window = Window(500, 490, 100, 64)
            np.testing.assert_array_equal(
                reader.read(layer_product, window), codes_of(layer_product, seed)[:, *window.slices]
            )
    damaged, layers = publish_change(publisher, folder)
    assert damaged == []
    np.testing.assert_array_equal(PublishedMap(folder).read(CLASS, CHANGED), layers["class"][:, *CHANGED.slices])
    assert not storage.exists(storage.join(folder, f"{STAGING}-now", RECORD))
