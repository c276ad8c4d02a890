"""Maps on a real S3 server, with inputs, store, model, ledger and lease in a bucket: locking and resuming."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from tests.support.buckets import in_bucket, mibf
from tests.support.mapped_scene import MAP, TRAIN, Mapped, disturbed
from tests.support.s3_server import SECRET, ObjectStore, with_environment
from tests.support.scenes import make_scene
from tests.support.waiting import await_

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(bucket: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with everything in the bucket, prepared and trained there."""
    scene = make_scene(tmp_path_factory.mktemp("scene"))
    path = in_bucket(scene, bucket, "scene", train=TRAIN, map=MAP, prepare={"shard": 128})
    for stage in ("prepare", "train"):
        done = mibf(bucket, stage, str(path))
        assert done.status == 0, done.stderr
    return path


@contextmanager
def mapping(
    bucket: ObjectStore, config: Path, *parts: str, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Run `mibf map` in the background; kill it at the end of the block if it is still running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "map", str(config), *parts],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=with_environment(bucket) | dict(environment),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def await_segment(bucket: ObjectStore, run: str, process: subprocess.Popen[str], number: int) -> None:
    """Wait until a background map has written a ledger segment; the first one lists the pending tiles."""
    segment = f"{bucket.bucket}/scene/work/maps/small/{run}/ledger/{number:06d}.parquet"
    await_(lambda: process.poll() is not None or bucket.files.exists(segment))
    assert process.poll() is None


def pixels(bucket: ObjectStore, run: str, product: str) -> np.ndarray:
    """Return the pixels of a published raster, (band, y, x)."""
    content = bucket.files.cat_file(f"{bucket.bucket}/scene/work/maps/small/{run}/{product}.tif")
    with rasterio.MemoryFile(content) as file, file.open() as dataset:
        return np.asarray(dataset.read())


def assert_equals_local_map(bucket: ObjectStore, run: str, reference: Mapped) -> None:
    for product in ("class", "confidence"):
        assert (pixels(bucket, run, product) == reference.pixels(product)).all()
    folder = f"{bucket.bucket}/scene/work/maps/small/{run}"
    names = {name.removeprefix(f"{folder}/").partition("/")[0] for name in bucket.files.find(folder)}
    assert {"class.tif", "class.qml", "confidence.tif", "item.json", "quicklook.png", "ledger"} <= names
    assert "map.zarr" not in names, "no working map remains"
    collection = json.loads(bucket.files.cat_file(f"{bucket.bucket}/scene/work/collections/{run}.json"))
    assert f"../maps/small/{run}/item.json" in [link["href"] for link in collection["links"]]


def test_concurrent_map_runs_second_exits_with_lease_held(
    bucket: ObjectStore, config: Path, reference: Mapped, tmp_path: Path
) -> None:
    with mapping(bucket, config, environment=disturbed(tmp_path / "site", sleep=0.8)) as first:
        await_segment(bucket, "main", first, 1)
        second = mibf(bucket, "map", str(config))
        assert second.status == 4, second.stderr
        assert "another run holds the workspace (mibf map of small, run main, process" in second.stderr
        assert f"process {first.pid} on" in second.stderr
        assert first.wait(timeout=120) == 0
    assert_equals_local_map(bucket, "main", reference)
    assert mibf(bucket, "rerun", str(config)).stdout == ""
    status = mibf(bucket, "status", str(config))
    assert "small: 9 tiles: 9 done; published" in status.stdout
    for name in bucket.files.find(f"{bucket.bucket}/scene/work"):
        assert SECRET.encode() not in bucket.files.cat_file(name), name


def test_killed_map_is_resumed_after_its_lease_expires(
    bucket: ObjectStore, config: Path, reference: Mapped, tmp_path: Path
) -> None:
    """Uses another run name, with the first run's model given by URL."""
    other = ["--set", "run=killed", "--set", f"map.model={bucket.url('scene', 'work', 'models', 'main')}"]
    environment = disturbed(tmp_path / "site", sleep=1.5) | {"MIBF_LEASE_SECONDS": "2"}
    with mapping(bucket, config, *other, environment=environment) as process:
        await_segment(bucket, "killed", process, 2)
        process.kill()
    ledger = f"{bucket.bucket}/scene/work/maps/small/killed/ledger"
    before = bucket.files.find(ledger)
    while (again := mibf(bucket, "rerun", str(config), *other, "--json")).status == 4:
        assert f"process {process.pid} on" in again.stderr, "its lease has not expired yet"
    assert again.status == 0, again.stderr
    kept = sum(tiles_in(bucket, name) for name in before)
    assert 0 < kept < 9
    assert json.loads(again.stdout)["tiles_mapped"] == 9 - kept
    assert_equals_local_map(bucket, "killed", reference)


def tiles_in(bucket: ObjectStore, segment: str) -> int:
    """Count the tiles that a ledger segment records as done."""
    table = pq.read_table(pa.BufferReader(bucket.files.cat_file(segment)))
    return table["state"].to_pylist().count("done")
