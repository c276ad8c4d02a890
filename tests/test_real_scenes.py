"""Real scenes: the embedded sample, and Zion where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio

from jobs.config import load
from jobs.prepare import prepare
from jobs.sample import demo_config
from jobs.stages import run_stage
from pipeline.store import PatchStore
from tests.test_layers import ROOT

pytestmark = pytest.mark.slow


def test_the_embedded_sample_is_brought_to_ten_metres(tmp_path: Path) -> None:
    config = load(demo_config(), overrides=[f"workspace={tmp_path}"])
    manifest, _ = run_stage(config, "prepare", prepare, keep_current=False)
    store = PatchStore(manifest.outputs[0])
    assert store.shape == (768, 1536)
    assert [(s.name, s.bands) for s in store.sources] == [("s2_10m", 4), ("s2_20m", 6)]
    with rasterio.open(Path(demo_config()).parent / "B03.jp2") as dataset:
        assert (store.array("sources/s2_10m")[1] == dataset.read(1)).all(), "on the grid: taken as it is"
    with rasterio.open(Path(demo_config()).parent / "B11.jp2") as dataset:
        coarse = dataset.read(1)
    fine = store.array("sources/s2_20m")[4]
    assert (fine == coarse.repeat(2, axis=0).repeat(2, axis=1)).all(), "the grids nest: no value is made up"
    counts = manifest.figures["counts"]
    assert all(n > 0 for subset in counts.values() for n in subset.values())
    assert sum(sum(subset.values()) for subset in counts.values()) < 427_000  # labelled pixels, less the buffers
    assert manifest.figures["overlap"] == {"brandenburg": 0.0}


def test_zion_has_the_pixels_that_its_split_says(
    shared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three coordinate systems; the counts of split.tif are known."""
    monkeypatch.setenv("DATA", str(shared("data/zion").parent))
    config = load(str(ROOT / "examples/zion.yaml"), overrides=[f"workspace={tmp_path}"])
    manifest, _ = run_stage(config, "prepare", prepare, keep_current=False)
    totals = {subset: sum(counts.values()) for subset, counts in manifest.figures["counts"].items()}
    assert totals == {"train": 717_300, "validation": 254_340, "test": 410_544}
    assert manifest.figures["overlap"] == {"zion": 0.0}
    store = PatchStore(manifest.outputs[0])
    elevation = store.array("sources/elevation")[0][store.array("valid/elevation")[:].astype(bool)]
    assert elevation.min() > 1000
    assert elevation.max() < 2900
    assert 0.98 < store.array("valid/elevation")[:].mean() < 0.99
