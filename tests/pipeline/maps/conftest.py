"""Fixtures of the tests of maps: patch stores, and an untrained model of the small scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine

from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.normalization import scaling_from_json
from pipeline.io import storage
from pipeline.rasters.header import RasterFile
from pipeline.scenes.source import Source
from pipeline.store.patch_store import PatchStore
from tests.support.maps import build_small_store
from tests.support.scenes import TRANSFORM, SmallScene, write_raster

Prepared = tuple[SmallScene, Workspace]


@pytest.fixture(scope="module")
def bundle(prepared: Prepared) -> Bundle:
    """An untrained network with the scene's normalization."""
    torch.manual_seed(0)
    store = PatchStore(prepared[1].store("small"))
    spec = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW)), classes=3, patch=5)
    scaling = scaling_from_json(storage.read_json(prepared[1].scaling))
    return Bundle.of_network(spec, MIBFNet(spec).state_dict(), scaling, store.classes)


@pytest.fixture
def store(prepared: Prepared) -> PatchStore:
    return PatchStore(prepared[1].store("small"))


@pytest.fixture
def quartered(tmp_path: Path) -> PatchStore:
    """An 80 x 70 store: optical data in the upper half, radar data (scale 2) on the left."""
    rows, columns = 80, 70
    optical = np.random.default_rng(0).integers(100, 200, (3, rows, columns)).astype(np.uint16)
    radar = np.random.default_rng(1).random((1, 2 * rows, 2 * columns)).astype(np.float32)
    optical[:, 40:] = 0
    radar[:, :, 61:] = np.nan  # from the middle of reference column 30 onwards
    write_raster(tmp_path / "optical.tif", optical, nodata=0)
    write_raster(tmp_path / "radar.tif", radar, transform=TRANSFORM @ Affine.scale(0.5), nodata=np.nan)
    files = [((RasterFile(str(tmp_path / f"{name}.tif")),),) for name in ("optical", "radar")]
    declared = [Source("optical", files[0]), Source("radar", files[1], missing="fill", scale=2)]
    return build_small_store(tmp_path, declared)
