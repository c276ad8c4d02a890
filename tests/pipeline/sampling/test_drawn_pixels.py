"""Drawing a bounded number of pixels: strata, seeds, positions and damaged tables."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.codes import UNLABELLED
from pipeline.sampling.drawn_pixels import DrawnPixels, draw_pixels, share_out
from pipeline.store.patch_store import PatchStore
from tests.support.memory_store import MemoryStore


def draw(*stores: MemoryStore, limit: int, least: int = 1, seed: int = 0) -> list[DrawnPixels]:
    return list(draw_pixels(cast("list[PatchStore]", stores), "train", limit=limit, least=least, seed=seed))


def positions(drawn: list[DrawnPixels]) -> list[tuple[int, int, int, int]]:
    """Store, row, column and class position of every drawn pixel."""
    return [
        (d.store, d.window.y + int(row), d.window.x + int(column), int(label))
        for d in drawn
        for row, column, label in zip(d.rows, d.columns, d.labels, strict=True)
    ]


def of_class(store: MemoryStore, labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.array([(labels == c.id).sum() for c in store.classes])


def test_all_pixels_are_drawn_if_they_fit_the_limit(uneven: MemoryStore) -> None:
    found = positions(draw(uneven, limit=10**6))
    rows, columns = np.nonzero(uneven.labels != UNLABELLED)
    assert {(row, column) for _, row, column, _ in found} == set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(found) == len(rows)
    ids = [c.id for c in uneven.classes]
    assert all(uneven.labels[row, column] == ids[label] for _, row, column, label in found)


def test_draw_is_stratified_distinct_and_decided_by_the_seed(uneven: MemoryStore, dense: MemoryStore) -> None:
    drawn = draw(uneven, dense, limit=500, least=20)
    found = positions(drawn)
    assert len(found) == len(set(found)) == 500
    wanted = share_out(of_class(uneven, uneven.labels) + of_class(dense, dense.labels), limit=500, least=20)
    assert np.bincount([label for *_, label in found], minlength=3).tolist() == wanted.tolist()
    assert {store for store, *_ in found} == {0, 1}
    assert found == positions(draw(uneven, dense, limit=500, least=20))
    assert found != positions(draw(uneven, dense, limit=500, least=20, seed=1))


def test_shuffled_windows_hold_the_same_pixels_in_another_order(uneven: MemoryStore, dense: MemoryStore) -> None:
    stores = cast("list[PatchStore]", [uneven, dense])
    ordered, shuffled, again = (
        list(draw_pixels(stores, "train", limit=500, least=20, seed=3, shuffled=shuffled))
        for shuffled in (False, True, True)
    )
    assert positions(shuffled) == positions(again)
    assert positions(shuffled) != positions(ordered)
    assert sorted(positions(shuffled)) == sorted(positions(ordered))


@pytest.mark.parametrize(("limit", "least"), [(10, 3), (10, 50), (3, 50), (97, 0)])
def test_shares_add_up_and_rare_classes_stay(limit: int, least: int) -> None:
    counts = np.array([700_000, 2, 0, 1_000])
    wanted = share_out(counts, limit=limit, least=least)
    assert wanted.sum() == limit
    assert (wanted <= counts).all()
    if least:
        assert (wanted[counts > 0] >= 1).all()


def test_labels_that_differ_from_the_table_are_refused(uneven: MemoryStore) -> None:
    class Stale(MemoryStore):
        def samples(self, window: Any) -> dict[str, np.ndarray]:
            return {"train": np.full((window.height, window.width), UNLABELLED, np.uint8)}

    with pytest.raises(InputError, match=r"scene\.zarr: the window at row 0, column 0 holds \[0, 0, 0\] samples"):
        draw(Stale(uneven.labels), limit=10)
