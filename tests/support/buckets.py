"""Scenes in a bucket and `mibf` commands that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.support import commands
from tests.support.mapped_scene import Result
from tests.support.s3_server import ObjectStore
from tests.support.scenes import SmallScene


def mibf(bucket: ObjectStore, *arguments: str, **environment: str) -> Result:
    """Run a `mibf` command in this process with access to the bucket."""
    with bucket.used(**environment):
        return commands.mibf(*arguments)


def in_bucket(scene: SmallScene, bucket: ObjectStore, folder: str, **changes: Any) -> Path:
    """Upload a scene's inputs and write a configuration with all inputs and outputs in the bucket."""
    for path in scene.folder.glob("*.tif"):
        bucket.files.put_file(str(path), f"{bucket.bucket}/{folder}/{path.name}")
    text = yaml.safe_dump(scene.config(**changes), sort_keys=False)
    text = text.replace(str(scene.folder / "work"), bucket.url(folder, "work")).replace(
        str(scene.folder), bucket.url(folder)
    )
    path = scene.folder / "bucket.yaml"
    path.write_text(text)
    return path
