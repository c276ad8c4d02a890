"""The settings that the fingerprints of tiles contain."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from jobs.config.loader import load
from jobs.config.resolve import class_names
from jobs.map import spec as map_spec
from jobs.map.spec import MapSpec
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from mibf.network.spec import NetworkSpec, SourceSpec
from pipeline.io import model_bundle
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


def spec_with(scene: SmallScene, model: Path, **changes: Any) -> MapSpec:
    """What the small scene is mapped with, given a model of its optical source alone."""
    alone = NetworkSpec((SourceSpec("optical", 3),), classes=3, patch=5, without=("noise", "relation"))
    config = load(str(scene.write_config(map={"model": str(model), **changes})))
    model_bundle.write_bundle(str(model), make_bundle(spec=alone, classes=class_names(config)))
    return MapSpec.of(config, Workspace.of(config))


def test_weights_of_sources_are_refused_of_a_given_model_of_one_source(scene: SmallScene, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"map\.products contains gate, .*/model has only one source \(optical\); remove"):
        spec_with(scene, tmp_path / "model", products=["class", "gate"])


def test_model_of_one_source_needs_no_source_dropout(scene: SmallScene, tmp_path: Path) -> None:
    assert spec_with(scene, tmp_path / "model", missing="map").sources == ("optical",)
