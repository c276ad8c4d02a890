"""The tile mapper: tiles in order, prefetched and written in the background; failures are reported per tile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.grid import Tile, tile_grid
from pipeline.maps.map_store import MapStore, result_digest
from pipeline.maps.outcome import DeviceFailedError
from pipeline.maps.predictor import TileInput, TileReader, TileResult
from pipeline.maps.products import product
from pipeline.maps.tile_mapper import OPEN_SCENES, MapJob, TileLoader, TileMapper, _opened
from pipeline.maps.tile_threads import TileThreads
from pipeline.store.patch_store import PatchStore
from tests.support.scenes import SmallScene

SIDE = 64
CLASS = product("class")


class BrightnessPredictor:
    """Replaces the network: the class is the brightness of the first band. Logs its calls and fails on request."""

    rows = 64

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.threads: set[str] = set()
        self.unreadable: set[str] = set()
        self.failing: set[str] = set()
        self.error: Exception = ArithmeticError("division failed")
        self.read_ahead = threading.Event()

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        self.threads.add(threading.current_thread().name)
        self.log.append(("read", tile.key))
        if tile.key in self.unreadable:
            raise InputError(f"{store.url}: is damaged")
        values, valid = store.read_source("optical", tile.window)
        key = np.frombuffer(tile.key.encode(), np.uint8).astype(np.float32)
        return TileInput((values.astype(np.float32), key), valid, valid.astype(np.uint8))

    def compute(self, tile: TileInput) -> TileResult:
        key = tile.sources[1].astype(np.uint8).tobytes().decode()
        self.log.append(("compute", key))
        if key in self.failing:
            raise self.error
        classes = np.where(tile.wanted, tile.sources[0][0] // 100 % 200, 255).astype(np.uint8)
        return {"class": classes[None]}


@pytest.fixture
def job(prepared: tuple[SmallScene, Workspace], tmp_path: Path) -> MapJob:
    """A map job on the small scene with a created map store and a `BrightnessPredictor`."""
    store = PatchStore(prepared[1].store("small"))
    MapStore.create(str(tmp_path / "map.zarr"), store=store, products=[CLASS], tile=SIDE)
    bright = BrightnessPredictor()
    return MapJob(
        model="",
        digest="",
        stores={"small": store.url},
        map_stores={"small": str(tmp_path / "map.zarr")},
        products=(CLASS,),
        precision="float32",
        priors="trained",
        mc_samples=2,
        seed=0,
        missing="declared",
        predictor=lambda _: bright,
    )


def planned(job: MapJob) -> list[Tile]:
    return tile_grid("small", PatchStore(job.stores["small"]).shape, SIDE)


def test_tiles_are_mapped_in_order_with_the_checksum_of_the_stored_pixels(job: MapJob) -> None:
    mapper = TileMapper(job)
    done = list(mapper.map(planned(job)))
    assert [d.tile for d in done] == planned(job)
    work = MapStore(job.map_stores["small"])
    for d in done:
        assert not d.cause
        assert d.checksum == result_digest({"class": np.asarray(work.array(CLASS)[:, *d.tile.window.slices])})
        assert d.started <= d.finished
        assert d.rows == 64
    assert sum(d.pixels for d in done) == int((np.asarray(work.array(CLASS)[:]) != 255).sum())
    assert "MainThread" not in predictor(mapper).threads, "tiles are read in a background thread"


def predictor(mapper: TileMapper) -> BrightnessPredictor:
    assert isinstance(mapper.predictor, BrightnessPredictor)
    return mapper.predictor


def test_failed_tiles_are_reported_and_other_tiles_are_written(job: MapJob) -> None:
    mapper, (first, second, third, *_) = TileMapper(job), planned(job)
    predictor(mapper).unreadable = {first.key}
    predictor(mapper).failing = {third.key}
    done = {d.tile: d for d in mapper.map(planned(job))}
    assert done[first].cause.endswith("small.zarr: is damaged"), "messages of InputError are unchanged"
    assert done[third].cause == "ArithmeticError: division failed"
    assert ("compute", first.key) not in predictor(mapper).log
    assert {tile for tile, d in done.items() if d.cause} == {first, third}
    array = np.asarray(MapStore(job.map_stores["small"]).array(CLASS)[0])
    assert (array[first.window.slices] == 255).all()
    assert (array[third.window.slices] == 255).all()
    assert (array[second.window.slices] != 255).any()
    assert done[first].checksum == done[third].checksum == ""


STICKY = [
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: device-side assert triggered",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
]


@pytest.mark.parametrize("text", STICKY)
def test_failed_device_ends_the_mapper_after_the_finished_tiles(job: MapJob, text: str) -> None:
    mapper, tiles = TileMapper(job), planned(job)
    predictor(mapper).failing, predictor(mapper).error = {tiles[2].key}, RuntimeError(text)
    outcomes = mapper.map(tiles)
    done = [next(outcomes), next(outcomes)]
    with pytest.raises(DeviceFailedError, match=r"RuntimeError: (CUDA|cuDNN) error") as raised:
        next(outcomes)
    assert raised.value.tile == tiles[2]
    assert [outcome.tile for outcome in done] == tiles[:2]
    assert not any(outcome.cause for outcome in done)


def test_device_that_fails_while_a_tile_is_read_ends_the_mapper(job: MapJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU tiles are read into pinned memory, which a failed device does not provide."""
    mapper, tiles = TileMapper(job), planned(job)
    read = predictor(mapper).read

    def failing(store: PatchStore, tile: Tile) -> TileInput:
        if tile == tiles[1]:
            raise RuntimeError(STICKY[0])
        return read(store, tile)

    monkeypatch.setattr(predictor(mapper), "read", failing)
    done = []
    with pytest.raises(DeviceFailedError) as raised:
        done.extend(mapper.map(tiles))
    assert (raised.value.tile, [outcome.tile for outcome in done]) == (tiles[1], tiles[:1])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("shape mismatch"),
        ValueError("CUDA error"),
    ],
    ids=str,
)
def test_other_errors_are_failures_of_their_tile(job: MapJob, error: Exception) -> None:
    mapper, tiles = TileMapper(job), planned(job)
    predictor(mapper).failing, predictor(mapper).error = {tiles[1].key}, error
    assert [bool(outcome.cause) for outcome in mapper.map(tiles)] == [tile == tiles[1] for tile in tiles]


def test_unwritable_map_store_is_reported_as_a_cause(job: MapJob, tmp_path: Path) -> None:
    done = list(TileMapper(replace(job, map_stores={"small": str(tmp_path / "absent.zarr")})).map(planned(job)[:2]))
    assert [bool(d.cause) for d in done] == [True, True]
    assert not any(d.checksum for d in done)


def test_at_most_one_tile_is_prefetched(job: MapJob) -> None:
    mapper = TileMapper(job)
    taken = mapper.map(planned(job))
    next(taken)
    # One tile is returned, one is computed or written, one is waiting and one is being read.
    assert sum(step == "read" for step, _ in predictor(mapper).log) <= 4
    taken.close()
    assert not threads_left(), "closing the generator ends its threads"


class CountingPredictor(BrightnessPredictor):
    """Counts the tiles in memory, from the beginning of reading, and places them, as a predictor on a GPU does."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.reading, self.most_reading, self.placed = threading.Lock(), 0, 0, list[str]()
        self.unplaceable: set[str] = set()
        self.begun = 0
        self.most_held = 0
        self.written: Callable[[], int] = lambda: 0

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        with self.lock:
            self.begun += 1
            self.reading += 1
            self.most_reading = max(self.reading, self.most_reading)
            self.most_held = max(self.begun - self.written(), self.most_held)
        try:
            time.sleep(0.002)
            return super().read(store, tile)
        finally:
            with self.lock:
                self.reading -= 1

    def place(self, tile: TileInput) -> TileInput:
        key = tile.sources[1].astype(np.uint8).tobytes().decode()
        if key in self.unplaceable:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.placed.append(key)
        return tile


THREADS = TileThreads(readers=3, ahead=2, writers=2)


@pytest.fixture
def counted(job: MapJob, monkeypatch: pytest.MonkeyPatch) -> tuple[TileMapper, CountingPredictor]:
    """A mapper with the threads of a worker with a GPU, and its predictor."""
    counting, ended = CountingPredictor(), list[Tile]()
    counting.written = lambda: len(ended)
    mapper = TileMapper(replace(job, predictor=lambda _: counting), tile_threads=THREADS)
    write = mapper.write

    def written(done: Any, result: Any) -> Any:
        time.sleep(0.005)
        found = write(done, result)
        ended.append(done.tile)
        return found

    monkeypatch.setattr(mapper, "write", written)
    return mapper, counting


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mibf-")]


def test_several_readers_and_writers_keep_the_order_and_the_bound_of_tiles(
    job: MapJob, counted: tuple[TileMapper, CountingPredictor]
) -> None:
    mapper, counting = counted
    tiles = planned(job)
    reference = [done.checksum for done in TileMapper(job).map(tiles)]
    done = list(mapper.map(tiles * 3))
    assert [d.tile for d in done] == tiles * 3
    assert [d.checksum for d in done] == reference * 3
    assert [key for step, key in counting.log if step == "compute"] == [tile.key for tile in tiles] * 3
    assert counting.placed == [tile.key for tile in tiles] * 3
    assert 1 < counting.most_reading <= THREADS.readers
    assert counting.most_held <= THREADS.tiles
    assert not threads_left()


def test_calls_of_several_threads_share_the_bound_of_tiles(
    job: MapJob, counted: tuple[TileMapper, CountingPredictor]
) -> None:
    mapper, counting = counted
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: [d.cause for d in mapper.map(planned(job))], range(4)))
    assert found == [[""] * len(planned(job))] * 4
    assert counting.most_reading <= THREADS.readers
    assert counting.most_held <= THREADS.tiles
    assert not threads_left()


def test_tiles_that_cannot_be_read_placed_or_written_end_no_other(
    job: MapJob, counted: tuple[TileMapper, CountingPredictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    mapper, counting = counted
    tiles = planned(job)
    counting.unreadable, counting.unplaceable = {tiles[1].key}, {tiles[3].key}
    write = MapStore.write

    def full(self: MapStore, tile: Tile, result: TileResult) -> None:
        if tile == tiles[4]:
            raise OSError(28, "No space left on device")
        write(self, tile, result)

    monkeypatch.setattr(MapStore, "write", full)
    causes = {done.tile: done.cause for done in mapper.map(tiles)}
    assert list(causes) == tiles
    assert causes[tiles[1]].endswith("is damaged")
    assert causes[tiles[4]] == "OSError: [Errno 28] No space left on device"
    assert {tile for tile, cause in causes.items() if cause} == {tiles[1], tiles[4]}
    assert not threads_left()


@pytest.mark.parametrize("end", ["closed", "device failed"])
def test_map_that_ends_early_leaves_no_thread_and_no_tile(
    job: MapJob, counted: tuple[TileMapper, CountingPredictor], end: str
) -> None:
    mapper, counting = counted
    tiles = planned(job)
    if end == "closed":
        outcomes = mapper.map(tiles)
        assert next(outcomes).tile == tiles[0]
        outcomes.close()  # type: ignore[attr-defined]  # a generator
    else:
        counting.failing, counting.error = {tiles[2].key}, RuntimeError(STICKY[0])
        done = []
        with pytest.raises(DeviceFailedError) as raised:
            done.extend(mapper.map(tiles))
        assert (raised.value.tile, [outcome.tile for outcome in done]) == (tiles[2], tiles[:2])
        assert list(mapper.map(tiles)) == [], "it computes nothing more"
    assert not threads_left()
    assert all(mapper._tiles.acquire(blocking=False) for _ in range(THREADS.tiles)), "room was not given back"


def test_model_that_changed_during_the_map_is_refused(job: MapJob, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        digest = "another"

    monkeypatch.setattr("pipeline.io.model_bundle.read_bundle", lambda url: Other())
    with pytest.raises(InputError, match="was changed while the map was being made"):
        replace(job, predictor=None, digest="this").make_predictor()


def test_reader_of_a_worker_needs_no_model(job: MapJob) -> None:
    reader = TileReader(("optical",), {}, 3, "declared", has_networks=False, has_classifiers=False)
    loader = TileLoader(job, replace(job, predictor=None, reader=reader, model="no/such/model").make_reader())
    read = loader.load(planned(job)[0])
    assert not read.cause
    assert read.content is not None
    assert read.content.wanted.any()


def values(dtype: Any, dimensions: int) -> st.SearchStrategy[Any]:
    return arrays.arrays(dtype, arrays.array_shapes(min_dims=dimensions, max_dims=dimensions, max_side=4))


@given(st.lists(values(np.float32, 3), min_size=1, max_size=3), values(np.bool_, 2), values(np.uint8, 2))
def test_tile_input_round_trips_through_bytes(sources: list[Any], wanted: Any, present: Any) -> None:
    found = TileInput.from_bytes(TileInput(tuple(sources), wanted, present).to_bytes())
    for one, other in zip([*sources, wanted, present], [*found.sources, found.wanted, found.present], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_stores_of_the_scenes_used_last_stay_open() -> None:
    stores: dict[str, int] = {}
    opened = []

    def open_(scene: int) -> int:
        opened.append(scene)
        return scene

    for scene in (*range(OPEN_SCENES), 0, OPEN_SCENES, 0, 1):
        assert _opened(stores, str(scene), lambda scene=scene: open_(scene)) == scene  # type: ignore[misc]  # bound now
    assert opened == [*range(OPEN_SCENES + 1), 1], "scene 1 was the one not used for longest"
    assert len(stores) == OPEN_SCENES
