"""The order of `sources`, which fingerprints do not contain: it is that of the store, and so of the network's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import yaml

import jobs.prepare.stage
from jobs.config.loader import load
from jobs.workflow.fingerprint import fingerprint
from jobs.workflow.runner import stale_dependencies
from pipeline.store.patch_store import PatchStore
from tests.support.commands import invoke, run
from tests.support.scenes import SmallScene


def write_turned(scene: SmallScene) -> Path:
    """Write the configuration with its sources in the other order."""
    config = scene.config()
    config["scenes"][0]["sources"] = dict(reversed(config["scenes"][0]["sources"].items()))
    path = scene.folder / "turned.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def interrupt(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


def test_changed_order_makes_the_store_stale(scene: SmallScene) -> None:
    """And leaves fingerprints as they are."""
    run(scene)
    before = load(str(scene.write_config()))
    assert stale_dependencies(before, "train") == []
    after = load(str(write_turned(scene)))
    assert fingerprint(after, "prepare") == fingerprint(before, "prepare")
    assert stale_dependencies(after, "train") == ["prepare"]


@pytest.mark.parametrize("written", ["shards", "store"])
def test_store_that_an_interrupted_run_left_in_another_order_is_written_again(
    written: str, scene: SmallScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the stores of several scenes could have different orders, and be read as if they had one."""
    with monkeypatch.context() as patch:
        if written == "shards":
            patch.setattr(jobs.prepare.stage, "collect_statistics", interrupt)
        run(scene, status=130 if written == "shards" else 0)
    (scene.folder / "work/manifests/prepare.json").unlink(missing_ok=True)
    invoke("prepare", str(write_turned(scene)))
    assert [source.name for source in PatchStore(str(scene.folder / "work/stores/small.zarr")).sources] == [
        "radar",
        "optical",
    ]
