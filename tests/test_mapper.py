"""One worker of a map: tiles in their order, read ahead and written behind; what fails is told of and harms nothing else."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline.mapper import Job, Mapper
from pipeline.maps import MapInWork, digest
from pipeline.predict import TileInput, TileResult
from pipeline.products import product
from pipeline.store import PatchStore
from pipeline.tiles import Tile, tiles
from tests.conftest import SmallScene

SIDE = 64
CLASS = product("class")


class Brightness:
    """In a network's place: the class is the first band's brightness. Knows what it was asked for, and how it is to fail."""

    rows = 64

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.threads: set[str] = set()
        self.unreadable: set[str] = set()
        self.too_hard: set[str] = set()
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
        if key in self.too_hard:
            raise ArithmeticError("cannot be divided")
        classes = np.where(tile.wanted, tile.sources[0][0] // 100 % 200, 255).astype(np.uint8)
        return {"class": classes[None]}


@pytest.fixture
def job(prepared: tuple[SmallScene, Workspace], tmp_path: Path) -> Job:
    """A job on the small scene, whose map is laid down, with a predictor of its own."""
    store = PatchStore(prepared[1].store("small"))
    MapInWork.lay_down(str(tmp_path / "map.zarr"), store=store, products=[CLASS], tile=SIDE)
    bright = Brightness()
    return Job(
        model="",
        digest="",
        stores={"small": store.url},
        works={"small": str(tmp_path / "map.zarr")},
        products=(CLASS,),
        precision="float32",
        priors="trained",
        draws=2,
        seed=0,
        missing="declared",
        predictor=lambda _: bright,
    )


def planned(job: Job) -> list[Tile]:
    return tiles("small", PatchStore(job.stores["small"]).shape, SIDE)


def test_tiles_come_in_order_with_the_checksum_of_what_was_written(job: Job) -> None:
    mapper = Mapper(job)
    done = list(mapper.map(planned(job)))
    assert [d.tile for d in done] == planned(job)
    work = MapInWork(job.works["small"])
    for d in done:
        assert not d.cause
        assert d.checksum == digest({"class": np.asarray(work.array(CLASS)[:, *d.tile.window.slices])})
        assert d.started <= d.finished
        assert d.rows == 64
    assert sum(d.pixels for d in done) == int((np.asarray(work.array(CLASS)[:]) != 255).sum())
    assert "MainThread" not in predictor(mapper).threads, "reading is beside the network's work"


def predictor(mapper: Mapper) -> Brightness:
    assert isinstance(mapper.predictor, Brightness)
    return mapper.predictor


def test_what_fails_is_told_of_and_the_rest_is_written(job: Job) -> None:
    mapper, (first, second, third, *_) = Mapper(job), planned(job)
    predictor(mapper).unreadable = {first.key}
    predictor(mapper).too_hard = {third.key}
    done = {d.tile: d for d in mapper.map(planned(job))}
    assert done[first].cause.endswith("small.zarr: is damaged"), "our own message, as it is"
    assert done[third].cause == "ArithmeticError: cannot be divided"
    assert ("compute", first.key) not in predictor(mapper).log
    assert {tile for tile, d in done.items() if d.cause} == {first, third}
    array = np.asarray(MapInWork(job.works["small"]).array(CLASS)[0])
    assert (array[first.window.slices] == 255).all()
    assert (array[third.window.slices] == 255).all()
    assert (array[second.window.slices] != 255).any()
    assert done[first].checksum == done[third].checksum == ""


def test_a_place_that_cannot_be_written_is_a_cause_too(job: Job) -> None:
    done = list(Mapper(replace(job, works={"small": "no/such/map.zarr"})).map(planned(job)[:2]))
    assert [bool(d.cause) for d in done] == [True, True]
    assert not any(d.checksum for d in done)


def test_no_more_than_a_tile_is_read_ahead(job: Job) -> None:
    mapper = Mapper(job)
    taken = mapper.map(planned(job))
    next(taken)
    # One is told of, one is in work or written, one waits and one is being read.
    assert sum(step == "read" for step, _ in predictor(mapper).log) <= 4
    taken.close()  # type: ignore[attr-defined]  # it is a generator
    assert not [t for t in threading.enumerate() if t.name.startswith("mibf-")], "its threads end with it"


def test_a_model_that_was_exchanged_meanwhile_is_refused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        digest = "another"

    monkeypatch.setattr("pipeline.bundles.read_bundle", lambda url: Other())
    with pytest.raises(InputError, match="was changed while the map was being made"):
        replace(job, predictor=None, digest="this").make_predictor()


def values(dtype: Any, dimensions: int) -> st.SearchStrategy[Any]:
    return arrays.arrays(dtype, arrays.array_shapes(min_dims=dimensions, max_dims=dimensions, max_side=4))


@given(st.lists(values(np.float32, 3), min_size=1, max_size=3), values(np.bool_, 2), values(np.uint8, 2))
def test_what_was_read_travels_unchanged(sources: list[Any], wanted: Any, present: Any) -> None:
    found = TileInput.from_bytes(TileInput(tuple(sources), wanted, present).to_bytes())
    for one, other in zip([*sources, wanted, present], [*found.sources, found.wanted, found.present], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
