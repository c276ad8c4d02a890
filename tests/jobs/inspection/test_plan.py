"""`mibf plan` of patch stores: the sizes that it predicts are those that `mibf prepare` writes."""

from __future__ import annotations

import pytest

from tests.support.commands import invoke, run
from tests.support.scenes import SmallScene
from tests.support.stores import SHARDS


def test_plan_writes_nothing_and_predicts_what_prepare_writes(large: SmallScene) -> None:
    before = set(large.folder.rglob("*"))
    planned = run(large, SHARDS, command="plan")["scenes"]["small"]
    assert set(large.folder.rglob("*")) - before <= {large.folder / "small.yaml"}
    assert planned["shards"] == 20
    done = run(large, SHARDS)["stages"][0]["figures"]["stores"]["small"]
    for key in ("shape", "shard", "shards", "objects", "uncompressed_bytes"):
        assert planned[key] == done[key], key
    assert planned["stored_bytes"] == pytest.approx(done["bytes"], rel=0.1)


@pytest.mark.parametrize(("change", "notes"), [("model.kind=mibf", 1), ("model.kind=boosting", 0), ("map.model=m", 0)])
def test_plan_says_once_what_a_network_of_one_source_lacks(scene: SmallScene, change: str, notes: int) -> None:
    (section,) = scene.config()["scenes"]
    section["sources"].pop("radar")
    arguments = ["plan", str(scene.write_config(scenes=[section])), "--set", change]
    assert invoke(*arguments).stdout.count("note: with one source, the network has neither") == notes
