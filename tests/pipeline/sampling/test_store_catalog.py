"""The catalog of stores: the same samples and pixels as without it, and none of its metadata is read again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codes import SUBSETS
from pipeline.grid import Window, windows
from pipeline.sampling.sample_table import StoreSamples
from pipeline.sampling.store_catalog import StoreList, sample_table, write_catalog
from pipeline.store.patch_store import PatchStore, SubsetHiddenError
from pipeline.store.template import CHUNK
from tests.support.scenes import SmallScene


@pytest.fixture
def catalog(prepared: tuple[SmallScene, Any], tmp_path: Path) -> tuple[dict[str, str], str]:
    url = str(shutil.copytree(prepared[0].folder / "work/stores/small.zarr", tmp_path / "small.zarr"))
    stores = {"one": url, "two": url}
    write_catalog(str(tmp_path / "catalog.parquet"), stores, fingerprint="f", report=print)
    return stores, str(tmp_path / "catalog.parquet")


def test_catalog_has_what_the_stores_have(catalog: tuple[dict[str, str], str]) -> None:
    urls, url = catalog
    store = PatchStore(urls["one"])
    described, plain = (StoreList.read(urls, catalog=url, fingerprint=f) for f in ("f", "of another prepare"))
    assert described.packed("train") is not None
    assert plain.packed("train") is None
    for subset in SUBSETS:
        found, read = (sample_table(stores, subset) for stores in (described, plain))
        expected = [(i, *entry) for i in range(2) for entry in store.windows_with_samples(subset)]
        assert [found.place(i) for i in range(len(found))] == [(i, window) for i, window, _ in expected]
        assert [read.place(i) for i in range(len(read))] == [(i, window) for i, window, _ in expected]
        assert all((found.samples(i) == counts).all() for i, (_, _, counts) in enumerate(expected))
        assert (found.totals == [counts.sum() for _, _, counts in expected]).all()
    window = Window(0, 0, 8, 8)
    expected_values = {source.name: store.read_source(source.name, window)[0] for source in store.sources}
    for metadata in Path(urls["one"]).rglob("zarr.json"):
        metadata.unlink()
    assert described[1].grid == store.grid
    for name, values in expected_values.items():
        assert (described[1].read_source(name, window)[0] == values).all()


def test_hidden_subset_is_not_in_memory(catalog: tuple[dict[str, str], str]) -> None:
    urls, url = catalog
    stores = StoreList.read(urls, catalog=url, fingerprint="f", without=("test",))
    with pytest.raises(SubsetHiddenError):
        sample_table(stores, "test")
    assert stores._entries is not None
    assert set(stores._entries[0].samples) == {"train", "validation"}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet"])
def test_damaged_catalog_is_not_used(catalog: tuple[dict[str, str], str], content: bytes) -> None:
    urls, url = catalog
    Path(url).write_bytes(content)
    assert StoreList.read(urls, catalog=url, fingerprint="f").packed("train") is None


def test_few_stores_stay_open(catalog: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    urls, _ = catalog
    monkeypatch.setattr("pipeline.sampling.store_catalog.OPEN_STORES", 2)
    stores = StoreList([urls["one"]] * 5)
    assert stores[0] is stores[0]
    first = stores[0]
    assert len(list(stores)) == 5
    assert stores[0] is not first
    assert len(stores._open) == 2


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 4), st.integers(0, 10**6))
def test_packed_windows_are_unpacked_as_they_were(rows: int, columns: int, classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    every = windows((rows, columns), CHUNK)
    counts = generator.integers(0, CHUNK**2 + 1, (classes, len(every))) * (generator.random((classes, len(every))) < 0.4)
    shape = (classes, -(-rows // CHUNK), -(-columns // CHUNK))
    found = StoreSamples.unpack(StoreSamples.of_grid((rows, columns), CHUNK, counts.reshape(shape)).pack())
    expected = [(w, c) for w, c in zip(every, counts.T, strict=True) if c.any()]
    assert [found.window(i) for i in range(len(found.numbers))] == [w for w, _ in expected]
    assert (found.samples == np.array([c for _, c in expected]).reshape(-1, classes)).all()
    other = StoreSamples.of_windows((rows, columns), CHUNK, expected, classes=classes)
    assert other.pack() == found.pack()
    heights, widths = found.sides()
    assert [(w.height, w.width) for w, _ in expected] == list(zip(heights.tolist(), widths.tolist(), strict=True))
