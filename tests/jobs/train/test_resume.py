"""Which interrupted trainings are resumed, and what is said about the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs.config.loader import load
from jobs.train.resume import begin_run, check_resumable, flatten, same_training, training_identity
from jobs.workflow import fingerprint
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from pipeline.io import storage
from pipeline.io.lease import Lease
from tests.support.scenes import SmallScene

SPEC = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW)), classes=3, patch=5)


def interrupted(scene: SmallScene, **changes: Any) -> tuple[Workspace, dict[str, Any]]:
    """A workspace with a checkpoint of an unfinished training, and the identity of that training."""
    config = load(str(scene.write_config(**changes)))
    workspace = Workspace.of(config)
    identity = training_identity(config, workspace, SPEC)
    storage.write_json(workspace.started, {"identity": identity, "seeds": [0]})
    storage.write_bytes(storage.join(workspace.checkpoints(0), "epoch-0001-step-000000.pt"), b"")
    return workspace, identity


def test_same_settings_are_resumable(scene: SmallScene) -> None:
    workspace, identity = interrupted(scene)
    check_resumable(workspace, identity, restart=False)


def test_changed_setting_is_refused_with_both_values(scene: SmallScene) -> None:
    workspace, identity = interrupted(scene)
    changed = identity | {"model": {"beta": 0.5}}
    with pytest.raises(InputError, match=r"model\.beta was 0\.0001 and is now 0\.5.*--restart"):
        check_resumable(workspace, changed, restart=False)
    check_resumable(workspace, changed, restart=True)


def test_training_without_centre_path_that_an_earlier_version_began_is_resumable(scene: SmallScene) -> None:
    workspace, identity = interrupted(scene)
    assert set(identity["network"]) == {"sources", "classes", "patch", "hidden", "without"}
    changed = training_identity(load(str(scene.folder / "small.yaml")), workspace, replace(SPEC, centre=True))
    with pytest.raises(InputError, match=r"network\.centre was None and is now True"):
        check_resumable(workspace, changed, restart=False)


#: Keys of `train` that the first versions did not have.
NEW = {
    "steps",
    "validate_steps",
    "band_dropout",
    "jitter",
    "mixup",
    "label_smoothing",
    "dropout",
    "batch_norm_samples",
}


def test_training_that_a_version_without_the_new_keys_began_is_resumable_at_their_defaults(scene: SmallScene) -> None:
    workspace, identity = interrupted(scene)
    train = {key: value for key, value in identity["train"].items() if key not in NEW} | {"recipe": "default"}
    assert len(train) == len(identity["train"]) - len(NEW)
    earlier = identity | {"train": train}
    assert same_training(earlier, identity)
    storage.write_json(workspace.started, {"identity": earlier, "seeds": [0]})
    check_resumable(workspace, identity, restart=False)
    path = str(scene.folder / "small.yaml")
    changed = training_identity(load(path, overrides=["train.mixup=0.2"]), workspace, SPEC)
    with pytest.raises(InputError, match=r"other settings: train\.mixup was 0\.0 and is now 0\.2\."):
        check_resumable(workspace, changed, restart=False)
    assert not same_training(earlier, changed)


def test_run_that_a_version_without_the_new_keys_began_keeps_its_checkpoints(scene: SmallScene) -> None:
    workspace, identity = interrupted(scene)
    train = {key: value for key, value in identity["train"].items() if key not in NEW} | {"recipe": "default"}
    storage.write_json(workspace.started, {"identity": identity | {"train": train}, "seeds": [0]})
    config = load(str(scene.folder / "small.yaml"))
    assert begin_run(config, workspace, "", Lease(), identity, restart=False)
    changed = training_identity(load(str(scene.folder / "small.yaml"), overrides=["train.jitter=0.1"]), workspace, SPEC)
    assert not begin_run(config, workspace, "", Lease(), changed, restart=False)


def test_new_algorithm_version_is_not_resumed(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = interrupted(scene)
    current = fingerprint.ALGORITHM_VERSIONS["train"]
    monkeypatch.setitem(fingerprint.ALGORITHM_VERSIONS, "train", 99)
    identity = training_identity(load(str(scene.folder / "small.yaml")), workspace, SPEC)
    with pytest.raises(InputError, match=f"algorithm was {current} and is now 99"):
        check_resumable(workspace, identity, restart=False)


def test_checkpoints_of_an_earlier_version_are_refused_with_what_can_be_done(scene: SmallScene) -> None:
    workspace, identity = interrupted(scene)
    earlier = {key: value for key, value in identity.items() if key != "algorithm"} | {"sampling": {"rate": 1.0}}
    storage.write_json(workspace.started, {"identity": earlier, "seeds": [0]})
    with pytest.raises(InputError, match=r"of an earlier version of mibf, which this version cannot resume.*--restart"):
        check_resumable(workspace, identity, restart=False)
    check_resumable(workspace, identity, restart=True)


def test_flatten_joins_nested_keys_by_dots() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
