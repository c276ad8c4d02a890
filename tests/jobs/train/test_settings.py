"""The network that a configuration asks for, its training's flags, and what stops it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.config.loader import load
from jobs.train import networks
from jobs.train.settings import WorkerContext, network_spec
from jobs.workflow.errors import StageError
from mibf.network.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from tests.support.scenes import SmallScene
from tests.support.trainers import trainer

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


@given(st.integers(2, 5000), st.integers(1, 64))
def test_workers_share_a_batch_as_evenly_as_possible(batch: int, workers: int) -> None:
    parts = [WorkerContext(rank, workers, torch.device("cpu")).part(batch) for rank in range(workers)]
    assert sum(parts) == batch
    assert max(parts) - min(parts) <= 1


def test_training_is_deterministic_whatever_the_process_has_set(
    prepared: tuple[SmallScene, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    worker = WorkerContext(0, 1, torch.device("cpu"))
    trainer(str(prepared[0].folder / "small.yaml"), str(tmp_path), worker)
    assert torch.backends.cudnn.deterministic


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nMore"),
            r"stopped: a step does not fit .*\(CUDA out of memory\.\)",
        ),
        (MemoryError(), r"a step does not fit into memory \(MemoryError\)\. .* raise train\.accumulate_steps"),
        (
            RuntimeError("CUDA error: unspecified launch failure"),
            r"stopped: the device failed \(CUDA error.*resume",
        ),
    ],
    ids=str,
)
def test_device_that_fails_or_is_too_small_stops_training(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(networks, "run", fail)
    with pytest.raises(StageError, match=message):
        networks._train_locally(None, torch.device("cpu"), 1, None)  # type: ignore[arg-type]  # not looked at
