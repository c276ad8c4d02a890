"""Patch stores built on a Ray cluster whose nodes die."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store.records import StoreRecords
from tests.support.commands import run
from tests.support.mapped_scene import disturbed
from tests.support.scenes import SmallScene
from tests.support.simulated_cluster import cluster_of
from tests.support.stores import SHARDS, objects
from tests.support.waiting import await_

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1200)]


def test_store_from_two_nodes_of_which_one_dies_is_that_of_threads(
    large: SmallScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(large, SHARDS, f"workspace={large.folder / 'threads'}")
    with monkeypatch.context() as patch:
        for name, value in disturbed(tmp_path / "site", sleep=0.5).items():
            patch.setenv(name, value)  # inherited by the nodes and their workers
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        with cluster_of(2) as (cluster, nodes):
            patch.setenv("RAY_ADDRESS", cluster.address)
            patch.setenv("MIBF_TESTS_SLEEP", "0")
            command = [sys.executable, "-m", "jobs.cli", "prepare", str(large.write_config()), "--json", "--set", SHARDS]
            with (tmp_path / "errors").open("w") as errors:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            written = large.folder / "work/stores/small.zarr.new.shards"
            await_(lambda: process.poll() is not None or len(list(written.glob("*_*.json"))) >= 4)
            assert process.poll() is None, (tmp_path / "errors").read_text()
            cluster.remove_node(nodes[1], allow_graceful=False)
            summary, _ = process.communicate(timeout=200)
            assert process.returncode == 0, (tmp_path / "errors").read_text()
    (stage,) = json.loads(summary)["stages"]  # nothing else is printed to standard output
    assert stage["figures"]["stores"]["small"]["shards"] == 20
    assert "using Ray tasks on 2 CPUs" in (tmp_path / "errors").read_text()
    assert objects(large) == objects(large, "threads")
    for name in ("scaling.json", "split.json"):
        assert (large.folder / "work" / name).read_bytes() == (large.folder / "threads" / name).read_bytes()
    shards = StoreRecords.read(str(large.folder / "work/stores/small.shards.json")).shards
    assert len(shards) == len({shard.window for shard in shards}) == 20
