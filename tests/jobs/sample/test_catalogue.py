"""The catalogue of the demonstration: searched and combined, its cloudy days give the sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.loader import load
from jobs.config.resolve import sources
from jobs.prepare.ground import scene_ground
from jobs.sample import demo_config
from jobs.sample.catalogue import BANDS, BRIGHT, DAYS, search_config, write_catalogue
from jobs.search.frozen import freeze
from jobs.workflow.found_items import found_items
from pipeline.grid import Window
from pipeline.scenes.source import open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "catalogue"
    write_catalogue(folder)
    return folder


def test_catalogue_is_valid_and_every_day_is_cloudy_elsewhere(folder: Path) -> None:
    catalogue = pystac.Catalog.from_file(str(folder / "catalog.json"))
    items = list(catalogue.get_items(recursive=True))
    assert [item.datetime.date().isoformat() for item in items if item.datetime] == list(DAYS)
    assert set(items[0].assets) == {*BANDS, "scl"}
    cloudy = []
    for item in items:
        with rasterio.open(item.assets["B05"].href) as dataset:
            cloudy.append(dataset.read(1) == BRIGHT)
    assert [0.15 < c.mean() < 0.25 for c in cloudy] == [True] * 3
    assert not np.logical_and.reduce(cloudy).any()


@pytest.mark.parametrize("name", ["s2_10m", "s2_20m"])
def test_found_and_combined_days_are_what_the_demo_reads_from_files(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIBF_CATALOGUE", "")
    monkeypatch.setenv("MIBF_SAMPLE", "")
    plain = sources(load(demo_config()).scenes[0])
    config = load(search_config(folder), overrides=[f"workspace={tmp_path}"])
    freeze(config, refresh=False)
    scene = found_items(config).scenes[0]
    found = sources(scene)
    ground = scene_ground(scene, found, smallest=3)
    assert tuple(ground.grid.shape) == (768, 1536)
    window = Window(300, 500, 128, 256)
    values, valid = open_source(found[name], ground.grid, area=ground.area).read(window)
    expected, _ = open_source(plain[name], ground.grid).read(window)
    assert valid.all()
    assert np.array_equal(values, expected)


def test_demo_with_search_refuses_a_workspace_that_has_no_folder_beside_it() -> None:
    done = CliRunner().invoke(app, ["demo", "--search", "--workspace", "s3://bucket/demo"])
    assert done.exit_code == 2
    assert "must be a folder with --search" in done.stderr
