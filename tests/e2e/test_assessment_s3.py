"""What comes after the map, with workspace, samples and outputs on a real S3 server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest

from tests.support.buckets import in_bucket, mibf
from tests.support.mapped_scene import MAP, TRAIN, Mapped
from tests.support.s3_server import ObjectStore

pytestmark = pytest.mark.slow


@pytest.fixture
def config(bucket: ObjectStore, reference: Mapped, tmp_path: Path) -> str:
    """A configuration whose workspace, with a trained and mapped scene, is in the bucket."""
    scene = reference.copy(tmp_path / "scene").scene
    bucket.files.put(str(scene.folder / "work"), f"{bucket.bucket}/after/work", recursive=True)
    path = in_bucket(scene, bucket, "after", train=TRAIN, map=MAP, prepare={"shard": 128})
    shutil.rmtree(scene.folder / "work")
    return str(path)


def test_map_in_a_bucket_is_sampled_estimated_and_improved(bucket: ObjectStore, config: str, tmp_path: Path) -> None:
    work = f"{bucket.bucket}/after/work"

    def does(command: str, *arguments: str) -> Any:
        done = mibf(bucket, command, config, *arguments, "--json")
        assert done.status == 0, done.stderr
        return done.json

    def read(name: str) -> Any:
        return json.loads(bucket.files.cat_file(f"{work}/{name}"))

    # A sample; its labels, whatever they say, come back elsewhere in the bucket.
    does("sample", "--n", "40", "--minimum", "6")
    points = tmp_path / "points.gpkg"
    bucket.files.get_file(f"{work}/runs/main/samples/sample/points.gpkg", str(points))
    table = geopandas.read_file(points)
    table["label"] = [("water", "2", "town")[number % 3] for number in range(len(table))]
    table.to_file(points)
    labelled = bucket.url("after", "labelled.gpkg")
    bucket.files.put_file(str(points), labelled)
    found = does("estimate", "--sample", labelled)
    assert found == read("runs/main/estimates.json")
    properties = read("maps/small/main/item.json")["properties"]
    assert properties["mibf:estimates"]["overall_accuracy"] == found["overall_accuracy"]
    # Places to label next; polygons next to the map.
    does("suggest", "--n", "5")
    suggested = tmp_path / "suggested.gpkg"
    bucket.files.get_file(f"{work}/runs/main/suggestions/small.gpkg", str(suggested))
    assert len(geopandas.read_file(suggested)) == 5
    does("polygons", "--sieve", "10")
    bucket.files.get_file(f"{work}/maps/small/main/polygons.parquet", str(tmp_path / "polygons.parquet"))
    regions = geopandas.read_parquet(tmp_path / "polygons.parquet")
    assert regions["pixels"].sum() == np.sum([*properties["mibf:class_pixels"].values()])
    # The thresholds of prediction sets are fitted again, to the same pixels.
    before = read("models/main/model.json")
    does("calibrate")
    assert read("models/main/model.json") == before
    names = bucket.files.find(work)
    assert not [name for name in names if ".staging" in name or name.endswith(".part")], "nothing half-written is left"
