"""Windows read by whole chunks that are kept: the same pixels, with few requests, within a number of bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from jobs.bench.harness.stub_workspace import stub_workspace
from jobs.workflow.workspace import Workspace
from pipeline.grid import Window, tile_grid, windows
from pipeline.io import zarr_store
from pipeline.io.chunk_cache import ChunkCache, ChunkDecoder, ChunkedArray
from pipeline.maps.predictor import mappable_pixels
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import CHUNK
from tests.support.counting_store import Requests, counted_requests

SHAPE, CHUNK_SIDE, SHARD_SIDE = (53, 46), 4, 16


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> tuple[zarr.Group, dict[str, np.ndarray]]:
    """An array with bands and one without, of random values, and these values."""
    url = str(tmp_path_factory.mktemp("arrays") / "store.zarr")
    random = np.random.default_rng(0)
    values = {"bands": random.integers(0, 999, (3, *SHAPE), np.uint16), "plane": random.integers(0, 99, SHAPE, np.uint8)}
    group = zarr.open_group(store=url, mode="w")
    for name, content in values.items():
        above = content.shape[:-2]
        array = group.create_array(
            name,
            shape=content.shape,
            chunks=(*above, CHUNK_SIDE, CHUNK_SIDE),
            shards=(*above, SHARD_SIDE, SHARD_SIDE),
            dtype=content.dtype,
            compressors=[BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()],
        )
        array[:] = content
    return zarr_store.open_strict(url), values


spans = st.tuples(st.integers(0, SHAPE[0] - 1), st.integers(1, 30), st.integers(0, SHAPE[1] - 1), st.integers(1, 30))


@settings(max_examples=60)
@given(
    reads=st.lists(st.tuples(st.sampled_from(["bands", "plane"]), spans, st.sampled_from([0, 1, 2])), max_size=8),
    limits=st.tuples(st.sampled_from([0, 300, 1 << 20]), st.sampled_from([0, 500, 1 << 20])),
    gap=st.sampled_from([0, 40, 1 << 20]),
)
def test_any_windows_hold_the_pixels_of_the_array(arrays: Any, reads: Any, limits: tuple[int, int], gap: int) -> None:
    group, values = arrays
    cache = ChunkCache(*limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_store, "LARGEST_GAP", gap)
        for name, (y, height, x, width), border in reads:
            rows, columns = slice(y, min(y + height, SHAPE[0])), slice(x, min(x + width, SHAPE[1]))
            found = ChunkedArray(group[name], cache).read(rows, columns, border=border)
            np.testing.assert_array_equal(found, values[name][..., rows, columns])
            assert cache.bytes <= sum(limits)


@pytest.fixture
def two_readers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Two threads that read overlapping windows: the second one begins, and finds chunks pending, before the first decodes.

    Called with an array, the columns of the two windows and a function that decodes; returns the threads' futures.
    """
    reads, waits = threading.Event(), threading.Event()
    begin, plain = ChunkCache.begin, ChunkDecoder.__call__

    def begun(self: ChunkCache, key: Any) -> Any:
        found = begin(self, key)
        if found is not None:
            waits.set()
        return found

    def read_both(array: Any, columns: list[slice], decoded: Callable[[], None]) -> list[Any]:
        cache = ChunkCache(0, 0)  # keeps nothing

        def decode(self: ChunkDecoder, content: Any) -> Any:
            reads.set()
            assert waits.wait(10), "the second thread does not wait for the first one's chunks"
            decoded()
            return plain(self, content)

        def second() -> Any:
            assert reads.wait(10)
            return ChunkedArray(array, cache).read(slice(0, 8), columns[1])

        monkeypatch.setattr(ChunkDecoder, "__call__", decode)
        with ThreadPoolExecutor(2) as pool:
            found = [pool.submit(ChunkedArray(array, cache).read, slice(0, 8), columns[0]), pool.submit(second)]
        assert not cache._pending
        return found

    monkeypatch.setattr(ChunkCache, "begin", begun)
    return read_both


def test_chunk_that_two_threads_need_is_decoded_once(arrays: Any, two_readers: Callable[..., list[Any]]) -> None:
    group, values = arrays
    columns, decoded = [slice(0, 8), slice(4, 12)], list[int]()
    found = two_readers(group["bands"], columns, lambda: decoded.append(1))
    for own, future in zip(columns, found, strict=True):
        np.testing.assert_array_equal(future.result(), values["bands"][:, :8, own])
    assert len(decoded) == 6, "two rows of three chunks, of which both threads need the middle ones"


def test_thread_that_waits_for_a_damaged_chunk_fails_as_well(arrays: Any, two_readers: Callable[..., list[Any]]) -> None:
    def damaged() -> None:
        raise ValueError("checksums do not match")

    for future in two_readers(arrays[0]["plane"], [slice(0, 4), slice(0, 4)], damaged):
        with pytest.raises(ValueError, match="checksums do not match"):
            future.result()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a store of 2 x 2 shards of 1024 pixels, with two sources of one band."""
    config = stub_workspace(tmp_path_factory.mktemp("scene"), shape_yx=(2048, 2048), tile=512, filled=True)
    return Workspace.of(config).store("bare")


@pytest.fixture
def counted(scene: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PatchStore, Requests]]:
    """The store, without chunks of earlier tests, and its requests. Its chunks are too small for gaps between them."""
    monkeypatch.setattr(zarr_store, "LARGEST_GAP", 0)
    with counted_requests() as requests:
        yield PatchStore(scene), requests


def test_tile_of_two_sources_takes_at_most_twenty_requests(counted: tuple[PatchStore, Requests]) -> None:
    store, requests = counted
    tiles = tile_grid("bare", store.shape, 512)
    for tile in tiles:
        mappable_pixels(store, tile.window, sources=["one", "two"], missing="declared")
        for source in store.sources:
            store.read_source(source.name, tile.window, halo=3)
    assert sum(requests.gets.values()) <= 20 * len(tiles)
    stored = sum(f.stat().st_size for f in Path(store.url).glob("sources/*/c/0/*/*"))
    assert sum(requests.bytes[f"sources/{name}"] for name in ("one", "two")) < 1.1 * stored


def test_windows_in_random_order_read_each_chunk_at_most_twice(
    counted: tuple[PatchStore, Requests], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.patch_store._CHUNKS", ChunkCache(4 * CHUNK**2, 8 << 20))  # four chunks
    store, requests = counted
    every = windows(store.shape, CHUNK)
    stored = sum(f.stat().st_size for f in Path(store.url).glob("sources/one/c/0/*/*"))
    for most in (2.1, 1.1):  # once for the borders that its neighbours need, once for itself; then for itself
        requests.clear()
        for position in np.random.default_rng(0).permutation(len(every)):
            store.read_source("one", every[position], halo=3, random=True)
        assert requests.bytes["sources/one"] < most * stored


def test_chunks_of_a_store_are_not_those_of_another_at_its_url(scene: str) -> None:
    first, second = PatchStore(scene), PatchStore(scene)
    with counted_requests() as requests:
        third = PatchStore(scene)
        window = Window(0, 0, 8, 8)
        found = [store.read_source("one", window, halo=1)[0] for store in (first, second, third)]
    np.testing.assert_array_equal(found[0], found[2])
    assert requests.gets["sources/one"], "a store that was opened again is read again"
