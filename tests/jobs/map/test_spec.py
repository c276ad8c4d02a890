"""The settings that the fingerprints of tiles contain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from jobs.config.loader import load
from jobs.map import spec as map_spec
from jobs.map.spec import MapSpec
from tests.support.bundles import make_bundle
from tests.support.scenes import SmallScene


@pytest.mark.parametrize(("choice", "stale"), [("trained", False), ("natural", True), ("uniform", True)])
def test_new_version_of_the_prior_correction_makes_only_corrected_tiles_stale(
    scene: SmallScene, monkeypatch: pytest.MonkeyPatch, choice: str, stale: bool
) -> None:
    config = load(str(scene.write_config(prediction={"priors": choice})))
    store: Any = SimpleNamespace(grid=GeoBox((8, 8), Affine.scale(10, -10), "EPSG:32633"), sources=())
    spec = MapSpec(config, "model", make_bundle(), "digest", ())
    before = spec.settings(store)
    monkeypatch.setattr(map_spec, "CORRECTION_VERSION", map_spec.CORRECTION_VERSION + 1)
    assert (spec.settings(store) != before) == stale
