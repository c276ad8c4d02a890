"""Storage: atomic writes, exclusive creation, and fingerprints that change with their file."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.io import checksums, storage, zarr_store
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import open_raster
from tests.support.scenes import SmallScene


@pytest.mark.parametrize("place", ["local", "file", "memory"])
def test_bytes_and_arrays_round_trip_through_every_kind_of_url(place: str, tmp_path: Path) -> None:
    root = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path.name}"}[place]
    url = storage.join(root, "a", "b.bin")
    assert not storage.exists(url)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(url)
    for content in (b"one", b"another"):
        storage.write_bytes(url, content)
        assert storage.read_bytes(url) == content
    group = zarr_store.open_zarr(storage.join(root, "z.zarr"), mode="w")
    group.create_array("x", shape=(4,), dtype="int8")[:] = 3
    assert zarr_store.open_zarr(storage.join(root, "z.zarr"))["x"][:].tolist() == [3, 3, 3, 3]
    storage.remove(storage.join(root, "a"))
    storage.remove(storage.join(root, "a"))
    assert not storage.exists(url)


@pytest.mark.parametrize("place", ["local", "memory"])
@pytest.mark.parametrize("size", [0, 5, 6, 7, 12])
def test_sha256_reads_in_pieces_and_matches_hashlib(
    place: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "CHUNK_BYTES", 6)
    url = storage.join(str(tmp_path) if place == "local" else f"memory://{tmp_path.name}", "a.bin")
    content = bytes(range(size))
    storage.write_bytes(url, content)
    assert checksums.sha256(url) == (size, hashlib.sha256(content).hexdigest())
    with pytest.raises(FileNotFoundError):
        checksums.sha256(f"{url}.other")


@pytest.mark.parametrize("place", ["local", "file", "memory"])
def test_create_bytes_creates_only_a_missing_file(place: str, tmp_path: Path) -> None:
    root = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path.name}"}[place]
    url = storage.join(root, "a", "b.bin")
    assert storage.create_bytes(url, b"one")
    assert not storage.create_bytes(url, b"another")
    assert storage.read_bytes(url) == b"one"
    assert storage.names(storage.join(root, "a")) == ["b.bin"]
    assert storage.modified(url)
    storage.remove(url)
    with pytest.raises(FileNotFoundError):
        storage.modified(url)
    assert storage.create_bytes(url, b"another")


def test_concurrent_create_bytes_on_disk_succeeds_exactly_once(tmp_path: Path) -> None:
    barrier = Barrier(8)

    def create(content: bytes) -> bool:
        barrier.wait()
        return storage.create_bytes(str(tmp_path / "a" / "b"), content)

    contents = [bytes([i]) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, contents))
    assert created.count(True) == 1
    assert (tmp_path / "a" / "b").read_bytes() == contents[created.index(True)]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("code", "times", "created"), [("PreconditionFailed", 9, False), ("ConditionalRequestConflict", 2, True)]
)
def test_create_bytes_handles_conditional_write_errors_from_s3(
    code: str, times: int, created: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers other than AWS do not say which precondition failed; AWS asks for a retry where requests conflict."""
    refusals = [code] * times

    answer = Exception()
    vars(answer)["response"] = {"Error": {"Code": code}}

    class Files:
        def pipe_file(self, path: str, content: bytes, mode: str) -> None:
            assert (path, content, mode) == ("b/x", b"", "create")
            if refusals:
                refusals.pop()
                raise OSError(22, "refused") from answer

    monkeypatch.setattr(storage, "open_url", lambda url: (Files(), url.removeprefix("s3://")))
    assert storage.create_bytes("s3://b/x", b"") is created


def test_publish_replaces_target_and_removes_source(tmp_path: Path) -> None:
    local = tmp_path / "new"
    local.write_bytes(b"new")
    target = tmp_path / "out" / "file"
    storage.write_bytes(str(target), b"old")
    storage.publish(str(local), str(target))
    assert target.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["file"]


def test_write_json_stores_nan_and_infinity_as_null(tmp_path: Path) -> None:
    url = str(tmp_path / "x.json")
    storage.write_json(url, {"a": [float("nan"), 1.5], "b": float("inf")})
    assert storage.read_json(url) == {"a": [None, 1.5], "b": None}


def test_fingerprint_changes_with_modification_time(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    first = checksums.fingerprint(str(path))
    assert checksums.fingerprint(str(path)) == first
    os.utime(path, ns=(1, 1))
    assert checksums.fingerprint(str(path)) != first
    assert checksums.digest({"a": 1, "b": 2}) == checksums.digest({"b": 2, "a": 1}) != checksums.digest({"a": 2, "b": 1})


def test_check_writable_leaves_no_files(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path / "deep" / "down"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no-such"):
        storage.open_url("no-such://x")


def test_stage_reruns_when_an_output_is_missing_or_an_input_changed(scene: SmallScene) -> None:
    from jobs.config.loader import load
    from jobs.prepare.stage import prepare
    from jobs.workflow.runner import run_stage

    config = load(str(scene.write_config()))
    assert run_stage(config, "prepare", prepare, keep_current=True)[1]
    assert not run_stage(config, "prepare", prepare, keep_current=True)[1]
    storage.remove(str(scene.folder / "work" / "stores" / "small.zarr"))
    assert run_stage(config, "prepare", prepare, keep_current=True)[1]
    os.utime(scene.folder / "radar.tif")
    assert run_stage(config, "prepare", prepare, keep_current=True)[1]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:secret@host:80/a.tif?sig=secret", "https://host:80/a.tif"),
        ("https://secret@host/a.tif", "https://host/a.tif"),
        ("postgresql+psycopg2://me:secret@host/runs", "postgresql+psycopg2://host/runs"),
        ("abfs://container@account.dfs.core.windows.net/a.tif", "abfs://container@account.dfs.core.windows.net/a.tif"),
        ("http://host:80/a@b:c", "http://host:80/a@b:c"),
    ],
)
def test_credentials_and_queries_are_removed_from_urls(url: str, expected: str) -> None:
    assert storage.redact_url(url) == expected
    assert storage.without_queries(f"'{url}' is gone") == f"'{expected}' is gone"


def test_path_with_two_colons_is_not_split_into_several_urls(tmp_path: Path) -> None:
    folder = f"{tmp_path}/a::b"
    group = zarr_store.open_zarr(f"{folder}/c.zarr", mode="w")
    group.create_array("v", data=np.arange(6, dtype=np.uint8).reshape(2, 3), dimension_names=("y", "x"))
    storage.write_json(f"{folder}/d.json", {"e": 1})
    assert sorted(p.name for p in Path(folder).iterdir()) == ["c.zarr", "d.json"]
    assert sorted(storage.names(folder)) == ["c.zarr", "d.json"]
    with open_raster(RasterFile(f"{folder}/c.zarr", "v", axes=("y", "x"))) as raster:
        assert (raster.read(Window(0, 0, 2, 3))[0] == [[[0, 1, 2], [3, 4, 5]]]).all()
    with pytest.raises(InputError, match="s3://bucket/a::b: contains `::`, which only local paths may"):
        storage.exists("s3://bucket/a::b")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("file://{}/a%20b", "a b"),
        ("file://localhost{}/a%20b", "a b"),
        ("file:{}/a%23b", "a#b"),
        ("file://{}/a%20b", "a%20b"),
        ("{}/a%20b", "a%20b"),
    ],
)
def test_file_url_is_decoded_unless_a_file_has_that_name(url: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("found")
    assert storage.read_bytes(url.format(tmp_path)) == b"found"
    assert storage.local_path(url.format(tmp_path)) == f"{tmp_path}/{name}"
