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
from jobs.prepare.scenes import open_scenes
from pipeline.grid import Window
from pipeline.parallel.executor import ThreadExecutor
from pipeline.scenes.reference_grid import reference_grid
from pipeline.scenes.source import open_source
from tests.support.paths import ROOT


def test_stand_in_embeddings_are_read_beside_the_image(
    shared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shared("data/terramind_282D_485L_3_3").parent
    script = runpy.run_path(str(ROOT / "examples/stand_in_embeddings.py"))
    script["main"](str(data / "terramind_282D_485L_3_3/s2_l2a.tif"), str(tmp_path / "work/embeddings/stand_in.tif"))
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


def test_example_of_the_sample_is_read_from_a_bare_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "examples/stand_in_embeddings.py"))
    names = [str(ROOT / f"jobs/sample/B0{number}.jp2") for number in (2, 3, 4, 8)]
    script["main"](*names, str(tmp_path / "work/sample_embeddings/stand_in.tif"))
    monkeypatch.setenv("MIBF_SAMPLE", str(ROOT / "jobs/sample"))
    monkeypatch.chdir(tmp_path)
    (scene,) = open_scenes(load(str(ROOT / "examples/sample_embeddings.yaml")), ThreadExecutor(1))
    assert scene.template.shape == (288, 288)
    embedding, optical = scene.sources
    assert (embedding.bands, optical.declared.kept) == (64, ("blue", "green", "red", "nir", "ndvi"))
    window = Window(100, 120, 40, 30)
    with rasterio.open(names[2]) as dataset:
        top, left = (dataset.height - 288) // 2, (dataset.width - 288) // 2
        red = dataset.read(1)[top : top + 288, left : left + 288][window.slices]
    values, valid = optical.read(window)
    assert valid.all()
    assert (values[2] == red).all()
    with rasterio.open(tmp_path / "work/sample_embeddings/stand_in.tif") as dataset:
        stored = dataset.read(7)[::-1][window.slices].astype(np.float64)
    assert embedding.read(window)[0][6] == pytest.approx(np.sign(stored) * (stored / 127.5) ** 2, abs=1e-6)
