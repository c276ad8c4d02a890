"""The network that a configuration asks for."""

from __future__ import annotations

from types import SimpleNamespace

from jobs.config.loader import load
from jobs.train.settings import network_spec
from mibf.network.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from tests.support.scenes import SmallScene

STORE = SimpleNamespace(
    sources=[SimpleNamespace(name="optical", bands=3, scale=1), SimpleNamespace(name="radar", bands=1, scale=2)],
    classes=("water", "forest", "town"),
)


def test_network_has_a_centre_path_only_if_the_configuration_asks_for_it(scene: SmallScene) -> None:
    path = str(scene.write_config(model={"patch": 5}))
    sources = (SourceSpec("optical", 3, WIDE), SourceSpec("radar", 1, NARROW, scale=2))
    assert network_spec(load(path), STORE) == NetworkSpec(sources, classes=3, patch=5)
    asked = load(path, overrides=["model.centre=true"])
    assert network_spec(asked, STORE) == NetworkSpec(sources, classes=3, patch=5, centre=True)
