"""The network that a configuration asks for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

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


@pytest.mark.parametrize(
    ("asked", "without"),
    [
        ("[]", ("noise", "relation")),
        ("[relation]", ("noise", "relation")),
        ("[bottleneck]", ("noise", "relation", "bottleneck")),
        ("[relation, noise]", ("noise", "relation")),
    ],
)
@pytest.mark.parametrize("kind", ["mibf", "boosting", "linear"])
def test_model_of_one_source_has_no_parts_between_sources(scene: SmallScene, asked: str, without: str, kind: str) -> None:
    path = str(scene.write_config(model={"patch": 5, "kind": kind}))
    config = load(path, overrides=["model.sources=[radar]", f"model.without={asked}"])
    spec = network_spec(config, STORE)
    assert [source.name for source in spec.sources] == ["radar"]
    assert spec.without == without
