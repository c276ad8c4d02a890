"""Fixtures of the read-only commands: a mapped scene that tests damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.models import write_model
from tests.support.scenes import SmallScene, make_large_scene, make_scene
from tests.support.stores import SHARDS
from tests.support.verified_map import Project, configure


@pytest.fixture(scope="session")
def prepared_large(tmp_path_factory: pytest.TempPathFactory) -> SmallScene:
    """A prepared scene of 5 x 4 shards. Shared by the session: tests work on copies of its workspace."""
    scene = make_large_scene(tmp_path_factory.mktemp("prepared-large"))
    run(scene, SHARDS)
    return scene


@pytest.fixture(scope="session")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a prepared and mapped scene: 150 x 130 pixels in 3 x 3 tiles. Shared by the session: read only."""
    scene = make_scene(tmp_path_factory.mktemp("mapped"))
    configure(scene)
    project = Project(scene.folder)
    project.run("prepare", "--set", "prepare.shard=128")
    write_model(scene.folder)
    project.run("map")
    return scene.folder


@pytest.fixture
def project(mapped: Path, tmp_path: Path) -> Project:
    """A copy of the mapped scene; its input files are still read from the original folder."""
    shutil.copytree(mapped, tmp_path / "copy")
    path = tmp_path / "copy/small.yaml"
    path.write_text(path.read_text().replace(f"{mapped}/work", f"{tmp_path}/copy/work"))
    return Project(tmp_path / "copy")
