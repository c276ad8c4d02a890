"""`mibf prepare` on a real S3 server: identical bytes to local files, resuming after a kill, verification."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.buckets import in_bucket, mibf
from tests.support.models import write_model
from tests.support.s3_server import SECRET, ObjectStore, with_environment
from tests.support.scenes import SmallScene, make_scene, write_raster

pytestmark = pytest.mark.slow


def test_store_in_bucket_has_the_same_bytes_as_on_disk(
    scene: SmallScene, bucket: ObjectStore, capfd: pytest.CaptureFixture[str]
) -> None:
    config = in_bucket(scene, bucket, "same")
    done = mibf(bucket, "prepare", str(config), "--json")
    assert done.status == 0, done.stderr
    assert mibf(bucket, "prepare", str(scene.write_config())).status == 0
    objects = []
    for records in (
        (scene.folder / "work/stores/small.shards.json").read_text(),
        bucket.files.cat_file(f"{bucket.bucket}/same/work/stores/small.shards.json"),
    ):
        shards = json.loads(records)["shards"]
        objects.append({key: tuple(v) for shard in shards for key, v in shard["objects"].items()})
    assert objects[0] == objects[1]
    assert len(objects[0]) == 6
    checked = mibf(bucket, "verify", str(config), "--json")
    assert checked.status == 0, checked.stderr
    (found,) = json.loads(checked.stdout)["stores"]
    assert found["intact"]
    assert found["objects"] > 6
    folder = f"{bucket.bucket}/same/work/stores/"
    left = {name.removeprefix(folder).split("/")[0] for name in bucket.files.find(folder)}
    assert left == {"small.shards.json", "small.zarr"}, "no temporary files remain"
    assert SECRET not in done.stdout + done.stderr + "".join(capfd.readouterr())
    every = bucket.files.find(f"{bucket.bucket}/same/work")
    assert not any(SECRET.encode() in bucket.files.cat_file(name) for name in every)


def large_scene(folder: Path) -> SmallScene:
    """Write a scene of 6 x 6 shards."""
    scene = make_scene(folder)
    values = np.random.default_rng(0).integers(1, 9999, (3, 768, 768)).astype(np.uint16)
    write_raster(folder / "optical.tif", values)
    write_raster(folder / "radar.tif", values[:1])
    labels = np.random.default_rng(1).choice(np.array([1, 2, 5], np.uint8), (48, 48)).repeat(16, 0).repeat(16, 1)
    write_raster(folder / "labels.tif", labels[None])
    return scene


def test_killed_prepare_resumes_with_the_missing_shards(tmp_path: Path, bucket: ObjectStore) -> None:
    config = in_bucket(large_scene(tmp_path), bucket, "killed", prepare={"shard": 128})
    records = f"{bucket.bucket}/killed/work/stores/small.zarr.new.shards"
    running = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "prepare", str(config)],
        env=with_environment(bucket) | {"MIBF_LEASE_SECONDS": "2"},
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and running.poll() is None:
            if bucket.files.exists(records) and len(bucket.files.ls(records)) > 6:
                break
            time.sleep(0.05)
        assert running.poll() is None, "prepare ended before it could be killed"
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.communicate()
    written = {name: bucket.files.info(name) for name in bucket.files.ls(records) if not name.endswith("template.json")}
    assert 5 < len(written) < 36
    assert "prepare.json" not in str(bucket.files.find(f"{bucket.bucket}/killed/work")), (
        "an incomplete store must not look complete"
    )
    refused = mibf(bucket, "train", str(config))
    assert refused.status == 2
    assert "run `mibf prepare`" in refused.stderr
    first = [json.loads(bucket.files.cat_file(name)) for name in written]

    while (again := mibf(bucket, "prepare", str(config))).status == 4:
        assert f"process {running.pid} on" in again.stderr, "its lease has not expired yet"
    assert again.status == 0, again.stderr
    checked = mibf(bucket, "verify", str(config))
    assert checked.status == 0, checked.stderr
    assert "intact" in checked.stdout
    shards = json.loads(bucket.files.cat_file(f"{bucket.bucket}/killed/work/stores/small.shards.json"))["shards"]
    assert len(shards) == 36
    assert all(record in shards for record in first), "records with equal durations: these shards were not written again"


def test_verify_checks_map_in_bucket_and_reports_damage(
    scene: SmallScene, bucket: ObjectStore, capfd: pytest.CaptureFixture[str]
) -> None:
    section = {"tile_size": 64, "workers": 0, "model": str(scene.folder / "model")}
    config = in_bucket(scene, bucket, "mapped", map=section | {"model": "MODEL"})
    config.write_text(config.read_text().replace("MODEL", section["model"]))
    assert mibf(bucket, "prepare", str(config)).status == 0
    local = scene.write_config(map=section)
    assert mibf(bucket, "prepare", str(local)).status == 0
    write_model(scene.folder)
    done = mibf(bucket, "map", str(config))
    assert done.status == 0, done.stderr
    checked = mibf(bucket, "verify", str(config), "--sample", "1", "--json")
    assert checked.status == 0, checked.stderr
    (found,) = json.loads(checked.stdout)["maps"]
    assert found["intact"]
    assert (found["tiles"], found["sampled"]) == (9, 1)
    key = f"{bucket.bucket}/mapped/work/maps/small/main/class.tif"
    content = bucket.files.cat_file(key)
    bucket.files.pipe_file(key, content[:1000])
    broken = mibf(bucket, "verify", str(config), "--json")
    assert broken.status == 3, broken.stderr
    (found,) = json.loads(broken.stdout)["maps"]
    assert found["broken"][0] == f"class.tif: has 1,000 bytes instead of {len(content):,}"
    written = "".join(capfd.readouterr())  # by GDAL
    assert "Traceback" not in broken.stderr + written
    assert SECRET not in checked.stdout + broken.stdout + broken.stderr + written
    bucket.files.rm_file(key)
    assert "class.tif: is missing" in mibf(bucket, "verify", str(config)).stdout


def test_denied_access_and_missing_bucket_are_reported(scene: SmallScene, bucket: ObjectStore) -> None:
    config = in_bucket(scene, bucket, "refused")
    wrong = mibf(bucket, "prepare", str(config), AWS_SECRET_ACCESS_KEY="wrong")
    assert wrong.status == 2, wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert f"{bucket.url('refused')}/optical.tif" in wrong.stderr
    assert "access denied" in wrong.stderr
    assert "wrong" not in wrong.stderr
    assert not bucket.files.exists(f"{bucket.bucket}/refused/work")
    # Readable inputs, but a workspace that cannot be written:
    nowhere = mibf(bucket, "prepare", str(scene.write_config()), "--set", "workspace=s3://no-such-bucket-here/work")
    assert nowhere.status == 2, nowhere.stderr
    assert "workspace s3://no-such-bucket-here/work cannot be written" in nowhere.stderr
