"""Tile fingerprints: a change makes stale only the tiles whose pixels it can change, and is reported by name."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mibf.errors import InputError
from pipeline.grid import Window, reflected, windows
from pipeline.maps.fingerprints import PARTS, difference, fingerprints, tiles_without_data
from pipeline.store.records import ShardRecord, StoreRecords

SOURCES = ("optical", "radar")
#: Rows and columns of scenes; sides of tiles and shards. All are small, to reach every combination of overlaps.
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SIDES = st.integers(1, 16)


def records_of(shape: tuple[int, int], side: int) -> StoreRecords:
    """Records of a store in which each shard has one object per array."""
    kinds = [*(f"{kind}/{name}" for kind in ("sources", "valid") for name in (*SOURCES, "optical2")), "labels", "split"]
    shards = [
        ShardRecord(window, {f"{kind}/c/{window.y // side}/{window.x // side}": (1, "as it was") for kind in kinds}, {})
        for window in windows(shape, side)
    ]
    return StoreRecords("of the store", {"zarr.json": (1, "the template")}, shards)


def with_change(records: StoreRecords, index: int, kind: str) -> StoreRecords:
    """Return the records with a changed object of one array in one shard."""
    shard = records.shards[index]
    key = next(key for key in shard.objects if key.startswith(f"{kind}/c/"))
    changed = replace(shard, objects=shard.objects | {key: (1, "changed")})
    return replace(records, shards=[*records.shards[:index], changed, *records.shards[index + 1 :]])


def fingerprints_of(
    records: StoreRecords, shape: tuple[int, int], *, tile: int, side: int, halo: int, model: str = "m", settings: str = "s"
) -> dict[Window, str]:
    return fingerprints(windows(shape, tile), records, model=model, settings=settings, sources=SOURCES, halo=halo, side=side)


def reads(tile: Window, shard: Window, shape: tuple[int, int], halo: int) -> bool:
    """Whether a tile reads a pixel of a shard, given the store's reflection beyond the scene's edges."""
    rows = reflected(tile.y - halo, tile.y + tile.height + halo, shape[0])
    columns = reflected(tile.x - halo, tile.x + tile.width + halo, shape[1])
    down = (rows >= shard.y) & (rows < shard.y + shard.height)
    across = (columns >= shard.x) & (columns < shard.x + shard.width)
    return bool(down.any() and across.any())


@given(SHAPES, SIDES, SIDES, st.integers(0, 50), st.randoms(use_true_random=False), st.sampled_from(["sources", "valid"]))
def test_changed_shard_changes_only_fingerprints_of_tiles_that_read_it(
    shape: tuple[int, int], tile: int, side: int, halo: int, random: Random, kind: str
) -> None:
    records = records_of(shape, side)
    index = random.randrange(len(records.shards))
    changed = with_change(records, index, f"{kind}/radar")
    before = fingerprints_of(records, shape, tile=tile, side=side, halo=halo)
    after = fingerprints_of(changed, shape, tile=tile, side=side, halo=halo)
    stale = {window for window in before if before[window] != after[window]}
    assert stale == {window for window in before if reads(window, records.shards[index].window, shape, halo)}
    assert {difference(before[window], after[window]) for window in stale} <= {"the input"}


@pytest.mark.parametrize("kind", ["labels", "split", "sources/optical2", "valid/optical2"])
def test_arrays_that_no_tile_reads_do_not_change_fingerprints(kind: str) -> None:
    """Labels, the split, and a source that the model does not use, although its name starts with the name of one it uses."""
    records = records_of((20, 20), 8)
    changed = with_change(records, 0, kind)
    assert fingerprints_of(changed, (20, 20), tile=4, side=8, halo=1) == fingerprints_of(
        records, (20, 20), tile=4, side=8, halo=1
    )


@given(st.permutations(range(9)))
def test_fingerprints_do_not_depend_on_shard_write_order(order: list[int]) -> None:
    records = records_of((20, 20), 8)
    shuffled = replace(records, shards=[records.shards[i] for i in order])
    assert fingerprints_of(shuffled, (20, 20), tile=4, side=8, halo=1) == fingerprints_of(
        records, (20, 20), tile=4, side=8, halo=1
    )


def test_swapped_shards_change_the_fingerprint() -> None:
    """The set of digests is equal; only their positions differ."""
    records = with_change(records_of((8, 16), 8), 0, "sources/optical")
    other = with_change(records_of((8, 16), 8), 1, "sources/optical")
    before, after = (fingerprints_of(r, (8, 16), tile=16, side=8, halo=0) for r in (records, other))
    assert before != after


@given(st.booleans(), st.booleans(), st.booleans())
def test_difference_names_the_changed_parts(model: bool, settings: bool, shard: bool) -> None:
    shape, records = (8, 8), records_of((8, 8), 8)
    (before,) = fingerprints_of(records, shape, tile=8, side=8, halo=0).values()
    (after,) = fingerprints_of(
        with_change(records, 0, "sources/optical") if shard else records,
        shape,
        tile=8,
        side=8,
        halo=0,
        model="other" if model else "m",
        settings="other" if settings else "s",
    ).values()
    expected = [name for name, is_changed in zip(PARTS, (model, settings, shard), strict=True) if is_changed]
    assert difference(before, after) == " and ".join(expected)
    assert (before == after) == (not expected)


def test_difference_with_another_format_names_the_format() -> None:
    assert difference("of an earlier version", "a.b.c") == "the fingerprint format"


@pytest.mark.parametrize("lacking", range(4))
def test_records_with_a_missing_shard_are_refused(lacking: int) -> None:
    records = records_of((16, 16), 8)
    others = replace(records, shards=[shard for i, shard in enumerate(records.shards) if i != lacking])
    with pytest.raises(InputError, match=f"row {lacking // 2}, column {lacking % 2}; run `mibf prepare` again"):
        fingerprints_of(others, (16, 16), tile=8, side=8, halo=1)


@given(SHAPES, SIDES, SIDES, st.randoms(use_true_random=False))
def test_tiles_without_data_are_those_whose_shards_have_none(
    shape: tuple[int, int], tile: int, side: int, random: Random
) -> None:
    valid = [
        {"optical": random.choice([0, 0, 3]), "radar": random.choice([0, 0, 2]), "dem": 9} for _ in windows(shape, side)
    ]
    records = records_of(shape, side)
    records = replace(records, shards=[replace(s, valid=v) for s, v in zip(records.shards, valid, strict=True)])
    found = tiles_without_data(windows(shape, tile), records, sources=SOURCES, side=side)
    for window in windows(shape, tile):
        there = [s for s in records.shards if reads(window, s.window, shape, 0)]
        assert (window in found) == all(s.valid["optical"] == s.valid["radar"] == 0 for s in there)
