"""Publishing: readers find the old map or the new one, never a partial one, whichever step fails."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_AppDefinedError
from rasterio.errors import RasterioIOError

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.codes import RENAMED_PRODUCTS
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.io.lease import Lease, LeaseLostError
from pipeline.maps.products import MapProductName, Product, product
from pipeline.publishing import cog
from pipeline.publishing.publish import ITEM, STAGING, PublishedFile, PublishedMap, PublishError, publish
from tests.support.s3_server import ObjectStore
from tests.support.scenes import CRS, TRANSFORM

ROWS, COLUMNS = 700, 600
GRID = GeoBox((ROWS, COLUMNS), TRANSFORM, CRS)
CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"))
CLASS, CONFIDENCE, RATE = product("class"), product("confidence"), product("kl")
PIECES = ["y0_x0", "y0_x512", "y512_x0", "y512_x512"]


def codes_of(layer_product: Product, seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(1, 3, (1, ROWS, COLUMNS)).astype(layer_product.dtype)


def publish_map(
    folder: str, *names: MapProductName, seed: int = 0, block: int = 1024, **changes: Any
) -> list[PublishedFile]:
    """Publish a map with these products and write its item."""

    def read_of(layer_product: Product) -> cog.TileReader:
        codes = codes_of(layer_product, seed)
        return lambda window: codes[:, *window.slices]

    settings: dict[str, Any] = {
        "grid": GRID,
        "classes": CLASSES,
        "band_names": lambda layer_product: layer_product.band_names(CLASSES, []),
        "tags": {"seed": str(seed)},
        "block": block,
        "run": "now",
        "lease": Lease(),
    }
    published = publish(read_of, [product(name) for name in names], folder, **settings | changes)
    storage.write_json(storage.join(folder, ITEM), {"seed": seed})
    return published


def content(folder: str) -> dict[str, bytes]:
    """Return the content of all files in a folder, by relative path."""
    filesystem, path = storage.open_url(folder)
    filesystem.invalidate_cache()
    return {name[len(path) :].lstrip("/"): filesystem.cat_file(name) for name in filesystem.find(path)}


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in an in-memory object store, cleared afterwards."""
    yield "memory://maps/one"
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["disk", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "maps/one") if request.param == "disk" else str(request.getfixturevalue("memory"))


def test_publish_returns_files_with_sizes_and_checksums(folder: str) -> None:
    progress: list[str] = []
    published = publish_map(folder, "class", "confidence", each=progress.append)
    found = content(folder)
    assert set(found) == {"class.tif", "class.tif.aux.xml", "confidence.tif", ITEM}
    assert [(p.product.name, p.name, p.window) for p in published] == [
        ("class", "class.tif", Window(0, 0, ROWS, COLUMNS)),
        ("confidence", "confidence.tif", Window(0, 0, ROWS, COLUMNS)),
    ]
    for each in published:
        assert each.url == storage.join(folder, each.name)
        assert (each.bytes, each.sha256) == (len(found[each.name]), hashlib.sha256(found[each.name]).hexdigest())
    assert progress == ["class.tif", "confidence.tif"]


def test_gdal_cache_size_is_set_before_a_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
    seen = []

    def names_of(layer_product: Product) -> list[str]:  # called before a file is opened
        seen.append(os.environ.get("GDAL_CACHEMAX"))
        return [layer_product.name]

    publish_map(str(tmp_path / "one"), "class", band_names=names_of)
    assert seen == ["128"]


def test_blocks_have_a_vrt_and_files_of_the_previous_map_are_removed(folder: str) -> None:
    publish_map(folder, "class", "kl")
    storage.write_bytes(storage.join(folder, "notes.txt"), b"not a map file")
    published = publish_map(folder, "class", "confidence", block=512)
    expected = {f"{name}_{piece}.tif" for name in ("class", "confidence") for piece in PIECES}
    expected |= {f"class_{piece}.tif.aux.xml" for piece in PIECES} | {"class.vrt", "confidence.vrt", ITEM, "notes.txt"}
    assert set(content(folder)) == expected
    assert [p.name for p in published[:5]] == [*(f"class_{piece}.tif" for piece in PIECES), "class.vrt"]
    assert [p.window for p in published[3:5]] == [Window(512, 512, 188, 88), Window(0, 0, ROWS, COLUMNS)]
    publish_map(folder, "second_class")
    assert set(content(folder)) == {"second_class.tif", "second_class.tif.aux.xml", ITEM, "notes.txt"}


def test_files_with_old_product_names_are_removed(folder: str) -> None:
    names = [f"{old}{part}" for old in RENAMED_PRODUCTS for part in (".tif", ".tif.aux.xml", "_y0_x512.tif", ".vrt")]
    for name in (*names, "information.txt", "rates.tif"):
        storage.write_bytes(storage.join(folder, name), b"of an earlier version")
    publish_map(folder, "class")
    assert set(content(folder)) == {"class.tif", "class.tif.aux.xml", ITEM, "information.txt", "rates.tif"}


@pytest.mark.parametrize("block", [1024, 512])
def test_published_map_reads_back_the_pixels(tmp_path: Path, block: int) -> None:
    folder = str(tmp_path / "one")
    publish_map(folder, "class", "confidence", seed=4, block=block)
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


#: Steps before the previous map's item is removed: the function that fails, and at which call.
FAILURES_BEFORE_REMOVAL = [
    (cog, "build", 1),
    (cog, "build", 4),
    (cog, "cog_validate", 6),
    (cog, "vrt", 1),
    (cog, "vrt", 2),
    (cog, "_write_sidecar", 3),
    (storage, "remove", 1),  # the item
]


@pytest.mark.parametrize(("owner", "name", "number"), FAILURES_BEFORE_REMOVAL, ids=lambda v: getattr(v, "__name__", str(v)))
def test_failure_before_item_removal_keeps_the_previous_map(
    folder: str, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int
) -> None:
    publish_map(folder, "class", "confidence", seed=1)
    before = content(folder)
    with monkeypatch.context() as patch:
        fail_on_call(patch, owner, name, number)
        with pytest.raises(InjectedError):
            publish_map(folder, "class", "confidence", seed=2, block=512)
    assert content(folder) == before
    publish_map(folder, "class", "confidence", seed=2, block=512)
    assert len(content(folder)) == 15


@pytest.mark.parametrize("number", range(1, 15))
def test_failed_upload_keeps_the_previous_map(memory: str, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    publish_map(memory, "class", "confidence", seed=1)
    before = content(memory)
    fail_on_call(monkeypatch, storage, "publish", number)
    with pytest.raises(InjectedError):
        publish_map(memory, "class", "confidence", seed=2, block=512)
    assert content(memory) == before


@pytest.mark.parametrize("number", [1, 2, 8, 14])
def test_failure_during_moves_leaves_no_item_and_retry_publishes_the_map(
    folder: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    publish_map(folder, "class", "confidence", seed=1)
    with monkeypatch.context() as patch:
        fail_on_call(patch, storage, "move_file", number)
        with pytest.raises(InjectedError):
            publish_map(folder, "class", "confidence", seed=2, block=512)
    found = set(content(folder))
    assert ITEM not in found
    assert not any(name.startswith(STAGING) for name in found)
    publish_map(folder, "class", "confidence", seed=2, block=512)
    assert len(content(folder)) == 15


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
            if f"/{STAGING}-" not in target:
                changes.append((f"{name} {target.rpartition('/')[2]}", lease.checks))
            return real(url, *rest)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("remove", "move_file", "write_bytes"):
            patch.setattr(storage, name, recorded(name))
        yield changes


def publish_with(lease: Lease, folder: str) -> None:
    publish_map(folder, "class", "confidence", seed=2, block=512, lease=lease)


def test_lease_is_checked_before_each_change_of_a_published_file(folder: str) -> None:
    publish_map(folder, "class", "kl", seed=1)
    lease = CountingLease()
    with recorded_changes(lease) as changes:
        publish_with(lease, folder)
    assert changes.pop()[0] == "write_bytes item.json", "by the caller"
    assert changes[0] == ("remove item.json", 1)
    assert [number for _, number in changes] == list(range(1, len(changes) + 1)), "one new check before each"
    assert len(changes) == 1 + 14 + 3


@pytest.mark.parametrize("number", [1, 2, 3, 9, 15, 16, 18])
def test_publish_that_loses_the_lease_changes_nothing_from_then_on(folder: str, number: int) -> None:
    publish_map(folder, "class", "kl", seed=1)
    before = content(folder)
    lease = CountingLease(number)
    with recorded_changes(lease) as changes, pytest.raises(LeaseLostError):
        publish_with(lease, folder)
    assert len(changes) == number - 1
    found = content(folder)
    assert not any(name.startswith(STAGING) for name in found)
    if number == 1:
        assert found == before


def test_staging_files_of_a_killed_process_are_removed_by_the_next_publish(folder: str) -> None:
    storage.write_bytes(storage.join(folder, STAGING, "kl_y0_x0.tif"), b"half")
    publish_map(folder, "class")
    assert set(content(folder)) == {"class.tif", "class.tif.aux.xml", ITEM}


def test_failed_first_publish_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on_call(monkeypatch, cog, "build", 1)
    with pytest.raises(InjectedError):
        publish_map(str(tmp_path / "maps/one"), "class")
    assert not (tmp_path / "maps").exists()


def test_files_are_built_in_map_folder_on_disk_and_in_temporary_folder_for_stores(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, places = cog.build, []

    def build(*arguments: Any, **named: Any) -> list[Path]:
        places.append(arguments[3].parent)
        # Files for an object store are uploaded one by one, so none of them is left in the temporary folder.
        assert storage.is_local(folder) or not list(places[0].iterdir())
        return real(*arguments, **named)

    monkeypatch.setattr(cog, "build", build)
    publish_map(folder, "class", "confidence")
    if storage.is_local(folder):
        assert set(places) == {Path(folder) / f"{STAGING}-now"}, "a run has its own staging folder"
    assert not places[0].exists()


def os_error(number: int) -> OSError:
    return OSError(number, "any message of the system")


#: Errors that a full disk causes in Python and in GDAL, which mostly does not report the reason.
DISK_FULL_ERRORS = [
    os_error(errno.ENOSPC),
    os_error(errno.EDQUOT),
    SystemError("Unknown GDAL Error"),
    RasterioIOError("Write failed. See previous exception for details."),
    CPLE_AppDefinedError(3, 1, "TIFFAppendToStrip:Write error at scanline 512"),
    cog.CogError("pixels read back differ from those written"),
]


@pytest.mark.parametrize("error", DISK_FULL_ERRORS, ids=lambda e: f"{type(e).__name__} {getattr(e, 'errno', '')}")
def test_full_disk_error_names_the_folder_and_the_remedy(
    folder: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    publish_map(folder, "class", seed=1)
    before = content(folder)

    def build(*_: Any, **__: Any) -> list[Path]:
        raise error

    monkeypatch.setattr(cog, "build", build)
    if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(type(error)):  # with free space, the cause is something else
            publish_map(folder, "class", seed=2)
    usage = shutil.disk_usage(Path(__file__))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    place = re.escape(f"{folder}/{STAGING}") if storage.is_local(folder) else "/mibf-"
    message = rf"{place}.*: the disk is full: 0\.5 MB are free, and class\.tif needs up to 0\.8 MB\. .*map\.dtype"
    with pytest.raises(PublishError, match=message) as raised:
        publish_map(folder, "class", seed=2)
    assert raised.value.__cause__ is error
    assert content(folder) == before


def test_other_io_errors_are_not_reported_as_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any, **__: Any) -> list[Path]:
        raise os_error(errno.EACCES)

    monkeypatch.setattr(cog, "build", build)
    with pytest.raises(PermissionError):
        publish_map(str(tmp_path / "one"), "class")


@pytest.mark.slow
def test_map_in_s3_bucket_is_published_read_back_and_republished(used_bucket: ObjectStore) -> None:
    folder = used_bucket.url("maps/one")
    for seed, block in ((1, 512), (2, 512), (3, 1024)):
        published = publish_map(folder, "class", "confidence", seed=seed, block=block)
        stored = {name.rsplit("/", 1)[1] for name in used_bucket.files.find(f"{used_bucket.bucket}/maps/one")}
        sidecars = {f"{p.name}.aux.xml" for p in published if p.product == CLASS and p.name.endswith(".tif")}
        assert stored == {p.name for p in published} | sidecars | {ITEM}
        reader = PublishedMap(folder)
        for layer_product in (CLASS, CONFIDENCE):
            window = Window(500, 490, 100, 64)
            np.testing.assert_array_equal(
                reader.read(layer_product, window), codes_of(layer_product, seed)[:, *window.slices]
            )
