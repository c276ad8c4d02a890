"""The example with embeddings: its stand-in has the form of AlphaEarth's files and is read as one more source."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from jobs.config import resolve
from jobs.config.loader import load
from pipeline.grid import Window
from pipeline.scenes.reference_grid import reference_grid
from pipeline.scenes.source import open_source
from tests.support.paths import ROOT


def test_stand_in_embeddings_are_read_beside_the_image(
    shared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shared("data/terramind_282D_485L_3_3").parent
    script = runpy.run_path(str(ROOT / "examples/stand_in_embeddings.py"))
    script["main"](str(data / "terramind_282D_485L_3_3"), str(tmp_path / "work/embeddings/stand_in.tif"))
    with rasterio.open(tmp_path / "work/embeddings/stand_in.tif") as dataset:
        assert (dataset.count, {*dataset.dtypes}, dataset.nodata) == (64, {"int8"}, -128)
        assert dataset.transform.e > 0, "bottom-up"
    monkeypatch.setenv("DATA", str(data))
    monkeypatch.chdir(tmp_path)
    sources = resolve.sources(load(str(ROOT / "examples/embeddings.yaml")).scenes[0])
    grid = reference_grid(sources["optical"])
    optical, embedding = (open_source(source, grid) for source in sources.values())
    assert optical.declared.kept[-1] == "ndvi"
    assert [str(part.alignment) for part in [*optical.parts, *embedding.parts]] == ["exact", "exact"]
    values, valid = embedding.read(Window(60, 70, 40, 30))
    assert valid.all()
    assert np.abs(np.linalg.norm(values, axis=0) - 1).max() < 0.02, "unit length, but for the 8 bits"
