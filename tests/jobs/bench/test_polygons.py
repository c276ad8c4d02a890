"""`mibf bench polygons`: both ways make polygons of the same map."""

from __future__ import annotations

from pathlib import Path

import geopandas
from affine import Affine
from odc.geo.geobox import GeoBox

from jobs.bench import polygons
from jobs.bench.harness.class_map import patchwork, random_codes, write_class_map
from mibf.bundle.classes import ClassName


def test_both_ways_cover_the_same_pixels(tmp_path: Path) -> None:
    grid = GeoBox((256, 256), Affine(10, 0, 400_000, 0, -10, 5_800_000), "EPSG:32633")
    classes = [ClassName(number, f"class {number}", "#808080") for number in range(1, 5)]
    url = write_class_map(tmp_path / "map", grid, classes, patchwork(4), random_codes(3000, 10_000))
    rows = [
        polygons._measured(how, work, url, str(tmp_path / f"{how}.gpkg"), 256)
        for how, work in (("mibf", polygons._ours), ("script", polygons._script))
    ]
    frames = [geopandas.read_file(tmp_path / f"{row.how}.gpkg") for row in rows]
    assert [len(frame) for frame in frames] == [row.polygons for row in rows]
    assert frames[0].area.sum() == frames[1].area.sum()
    lines = polygons.PolygonBench(rows).lines()
    assert [line.split()[3] for line in lines[3:5]] == ["mibf", "script"]
