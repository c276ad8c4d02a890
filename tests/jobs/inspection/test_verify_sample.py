"""`mibf verify --sample`: recomputed tiles, and differences that other hardware explains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jobs.inspection.verify_sample import sample_tiles
from pipeline.grid import Tile, Window
from pipeline.maps.ledger import Ledger, LedgerEvent
from pipeline.maps.predictor import TilePredictor
from tests.support.verified_map import Project


@pytest.fixture
def predicting_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the confidence of every recomputed tile differ by one step in two pixels."""
    compute = TilePredictor.compute

    def compute_with_difference(self: TilePredictor, tile: Any) -> Any:
        result = compute(self, tile)
        result["confidence"][0, 10, :2] -= 1
        return result

    monkeypatch.setattr(TilePredictor, "compute", compute_with_difference)


@pytest.mark.usefixtures("predicting_otherwise")
def test_recomputed_tile_that_differs_is_reported(project: Project) -> None:
    found = project.verify("--sample", "3", status=3)
    assert found["sampled"] == 3
    assert len(found["broken"]) == 3
    assert all("recomputed, confidence differs in 2 pixels from the published map" in line for line in found["broken"])


@pytest.mark.usefixtures("predicting_otherwise")
@pytest.mark.parametrize(
    ("worker", "rows", "why"),
    [
        ("{host}/1/cuda", "{rows}", "it was mapped on cuda, and recomputed on cpu"),
        ("{host}/1/cpu", "1", "it was mapped with 1 rows at a time, and recomputed with"),
        ("elsewhere/1/cpu", "{rows}", "it was mapped on another machine, elsewhere"),
    ],
)
def test_small_difference_explained_by_other_hardware_is_only_noted(
    project: Project, worker: str, rows: str, why: str
) -> None:
    redo_ledger(project, worker, rows)
    found = project.verify("--sample", "1")
    assert found["intact"]
    assert "recomputed, confidence differs in 2 pixels" in found["notes"][0]
    assert why in found["notes"][0]


def test_class_difference_is_reported_even_on_other_hardware(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    redo_ledger(project, "elsewhere/1/cuda", "{rows}")
    compute = TilePredictor.compute

    def compute_with_difference(self: TilePredictor, tile: Any) -> Any:
        result = compute(self, tile)
        return result | {"class": np.where(tile.wanted, 5, result["class"])}

    monkeypatch.setattr(TilePredictor, "compute", compute_with_difference)
    (line,) = project.verify("--sample", "1", status=3)["broken"]
    assert "class differs in" in line
    assert "it was mapped on cuda" in line


def redo_ledger(project: Project, worker: str, rows: str) -> None:
    """Record in the ledger that all tiles were mapped by another worker."""
    ledger = Ledger.open(str(project.map / "ledger"))
    for window, made in ledger.versions().items():
        host = made[-1].worker.partition("/")[0]
        recorded = {"worker": worker.format(host=host), "rows": int(rows.format(rows=made[-1].rows))}
        entry = LedgerEvent(
            tile=Tile("small", window), state="done", fingerprint=made[-1].fingerprint, checksum=made[-1].checksum
        )
        ledger.append([replace(entry, **recorded)])
    ledger.close()


def test_sample_depends_on_the_seed_and_larger_contains_smaller() -> None:
    windows = [Window(y, x, 64, 64) for y in range(0, 640, 64) for x in range(0, 640, 64)]
    five, ten = sample_tiles(windows, count=5, seed=0), sample_tiles(windows[::-1], count=10, seed=0)
    assert ten[:5] == five
    assert set(five) != set(sample_tiles(windows, count=5, seed=1))
    assert set(sample_tiles(windows, count=1000, seed=0)) == set(windows)
    assert len({window.y for window in ten}) > 3, "the sample is spread over the scene"
