"""Maps in a bucket: polygons, transitions and their files on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio

from jobs.bench.harness.class_map import write_class_map
from tests.support.buckets import mibf
from tests.support.published_maps import CLASSES, UTM
from tests.support.s3_server import ObjectStore


@pytest.mark.slow
def test_products_of_maps_in_a_bucket(bucket: ObjectStore, tmp_path: Path) -> None:
    urls = []
    for name, other in (("a", 2), ("b", 5)):
        ids = np.ones(UTM.shape, np.uint8)
        ids[100:200, 50:150] = other
        write_class_map(tmp_path / name, UTM, CLASSES, lambda window, ids=ids: ids[window.slices])
        bucket.files.put(str(tmp_path / name), f"{bucket.bucket}/maps/{name}", recursive=True)
        urls.append(bucket.url("maps", name))
    done = mibf(bucket, "polygons", urls[0])
    assert done.status == 0, done.stderr
    for name in ("polygons.gpkg", "polygons.parquet"):
        bucket.files.get_file(f"{bucket.bucket}/maps/a/{name}", str(tmp_path / name))
    assert len(geopandas.read_file(tmp_path / "polygons.gpkg")) == 2
    assert len(geopandas.read_parquet(tmp_path / "polygons.parquet")) == 2
    done = mibf(bucket, "change", *urls, "--raster", bucket.url("maps", "t.tif"), "--output", bucket.url("maps", "t.csv"))
    assert done.status == 0, done.stderr
    bucket.files.get_file(f"{bucket.bucket}/maps/t.tif", str(tmp_path / "t.tif"))
    with rasterio.open(tmp_path / "t.tif") as dataset:
        assert set(np.unique(dataset.read())) == {1001, 2005}
    assert bucket.files.cat_file(f"{bucket.bucket}/maps/t.csv").startswith(b"from,to,pixels,hectares\n")
    done = mibf(bucket, "polygons", urls[0], "--output", "s3://no-such-bucket-here/polygons.gpkg")
    assert done.status == 2, done.stderr
    assert "Name the files with --output" in done.stderr
