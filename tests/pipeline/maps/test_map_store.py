"""Map stores: shard-aligned writes, tile checksums, and the coverage check before publishing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mibf.bundle.bundle import Bundle
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.normalization import BandScaling
from pipeline.codes import UNLABELLED
from pipeline.grid import Tile, Window, windows
from pipeline.maps.map_store import IncompleteMapError, MapStore, check_coverage, result_digest
from pipeline.maps.predictor import MissingDataPolicy
from pipeline.maps.products import Product, product
from pipeline.store.patch_store import PatchStore
from tests.support.maps import ALL_PRODUCTS, write_map
from tests.support.scenes import COLUMNS, ROWS

CLASS, CONFIDENCE = product("class"), product("confidence")


def coverage(
    work: MapStore,
    store: PatchStore,
    *,
    missing: MissingDataPolicy = "declared",
    products: Sequence[Product] = ALL_PRODUCTS,
) -> int:
    """Check all tiles of 64 of a map; return the number of mapped pixels."""
    found = 0
    for window in windows(store.shape, 64):
        result = {p.name: np.asarray(work.array(p)[:, *window.slices]) for p in products}
        found += check_coverage(result, store, window, products, sources=work.sources, missing=missing)
    return found


def test_coverage_check_requires_exactly_the_usable_pixels(store: PatchStore, bundle: Bundle, tmp_path: Path) -> None:
    work = write_map(store, bundle, tmp_path / "map.zarr", 64)
    assert coverage(work, store) == ROWS * COLUMNS - 24
    work.array(CONFIDENCE)[0, 70:72, 65] = CONFIDENCE.nodata
    with pytest.raises(IncompleteMapError, match="2 pixels of confidence in the tile at y 64, x 64"):
        coverage(work, store)
    work.array(CLASS)[0, 0, 0] = 1  # a pixel without data
    with pytest.raises(IncompleteMapError, match="1 pixels of class in the tile at y 0, x 0"):
        coverage(work, store)


def test_write_that_is_not_a_full_shard_is_refused(store: PatchStore, tmp_path: Path) -> None:
    work = MapStore.create(str(tmp_path / "map.zarr"), store=store, products=[CLASS], tile=128)
    for window in (Window(0, 0, 64, 64), Window(64, 0, 86, 128)):
        result = {"class": np.zeros((1, window.height, window.width), np.uint8)}
        with pytest.raises(ValueError, match="not a whole shard"):
            work.write(Tile("small", window), result)
    with pytest.raises(ValueError, match="class of tile small/y0_x0 is float32; the map store expects uint8"):
        work.write(Tile("small", Window(0, 0, 128, 128)), {"class": np.zeros((1, 128, 128), np.float32)})


#: Per policy, whether pixels are mapped that have data in (both sources, the first only, the second only, neither).
MAPPED: dict[MissingDataPolicy, tuple[bool, bool, bool, bool]] = {
    "declared": (True, True, False, False),  # exclude pixels without the first source, fill the second
    "nodata": (True, False, False, False),
    "map": (True, True, True, False),
}


@pytest.mark.parametrize("missing", MAPPED)
def test_missing_data_policy_selects_the_mapped_pixels(
    quartered: PatchStore, tmp_path: Path, missing: MissingDataPolicy
) -> None:
    torch.manual_seed(0)
    spec = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW, scale=2)), classes=3, patch=5)
    scaling = {
        "optical": BandScaling(np.full(3, 100.0), np.full(3, 200.0), np.full(3, 0.5)),
        "radar": BandScaling(np.zeros(1), np.ones(1), np.full(1, 0.5)),
    }
    bundle = Bundle.of_network(spec, MIBFNet(spec).state_dict(), scaling, quartered.classes)
    work = write_map(quartered, bundle, tmp_path / "map.zarr", 64, missing=missing)
    y, x = np.mgrid[:80, :70]
    optical, radar = y < 40, x < 30
    mask = work.array(product("sources"))[0]
    np.testing.assert_array_equal(mask, optical + 2 * radar)
    there = work.array(CLASS)[0] != UNLABELLED
    for case, at in zip(
        MAPPED[missing], (optical & radar, optical & ~radar, ~optical & radar, ~optical & ~radar), strict=True
    ):
        assert (there[at] == case).all()
    assert coverage(work, quartered, missing=missing) == there.sum()
    for other in MAPPED.keys() - {missing}:
        with pytest.raises(IncompleteMapError):
            coverage(work, quartered, missing=other)
    work.array(product("sources"))[0, 50, 50] = 1
    with pytest.raises(IncompleteMapError, match="1 pixels of sources in the tile at y 0, x 0"):
        coverage(work, quartered, missing=missing)


def test_tile_checksum_covers_names_dtypes_shapes_and_pixels() -> None:
    layer = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
    assert result_digest({"class": layer}) == result_digest({"class": np.asfortranarray(layer.astype(">u2"))})
    others: list[dict[str, NDArray[np.generic]]] = [
        {"second_class": layer},
        {"class": layer.astype(np.uint8)},
        {"class": layer.reshape(1, 4, 3)},
        {"class": layer + np.uint16(1)},
        {"class": layer, "second_class": layer},
        {"second_class": layer, "class": layer},
    ]
    assert len({result_digest({"class": layer}), *map(result_digest, others)}) == 1 + len(others)
