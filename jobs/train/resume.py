"""Decide whether an interrupted training run can be resumed, and with which settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.config.config import Config
from jobs.config.train import TrainSection
from jobs.runtime.version import pinned_versions
from jobs.workflow.fingerprint import ALGORITHM_VERSIONS
from jobs.workflow.manifest import read_manifest
from jobs.workflow.provenance import environment
from jobs.workflow.runner import invalidate
from jobs.workflow.saved_config import save_training_config
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from mibf.network.spec import NetworkSpec
from pipeline.io import storage
from pipeline.io.checkpoints import Checkpoints
from pipeline.io.lease import Lease

#: Keys of `train` that may change between an interruption and resuming: they affect where and with which resources
#: training runs, not what is computed.
RESUME_SAFE_KEYS = (
    "workers",
    "max_workers",
    "threads",
    "max_failures",
    "checkpoint_steps",
    "log_steps",
    "mlflow",
    "seed",
    "seeds",
    "compile",
)


def training_identity(config: Config, workspace: Workspace, spec: NetworkSpec) -> dict[str, Any]:
    """Everything that the result of training depends on; checkpoints are only resumed if all of it is equal."""
    prepared = read_manifest(workspace, "prepare")
    wanted = config.train.model_dump(mode="json")
    found: dict[str, Any] = json.loads(
        json.dumps(
            {
                "algorithm": ALGORITHM_VERSIONS["train"],
                "data": None if prepared is None else prepared.fingerprint,
                "split": config.split.model_dump(mode="json"),
                "network": spec.to_json(),
                "model": {"beta": config.model.beta},
                "sampling": config.sampling.model_dump(mode="json"),
                "train": {key: value for key, value in wanted.items() if key not in RESUME_SAFE_KEYS},
            }
            | ({"libraries": pinned_versions()} if config.stale_on_upgrade else {})
        )
    )
    return found


def check_resumable(workspace: Workspace, identity: dict[str, Any], *, restart: bool) -> None:
    """Check that the checkpoints of an unfinished training run were written with this configuration and data.

    Raises:
        InputError: they were not; the message lists the differences.
    """
    previous, _ = started_training(workspace)
    if restart or previous is None or same_training(previous, identity) or storage.exists(workspace.manifest("train")):
        return
    folders = [storage.join(workspace.all_checkpoints, name) for name in storage.names(workspace.all_checkpoints)]
    if not any(Checkpoints(folder).positions() for folder in folders):
        return
    if "algorithm" not in previous:
        raise InputError(
            f"{workspace.run_folder}: contains checkpoints of an unfinished training run of an earlier version of "
            "mibf, which "
            "this version cannot resume. Finish the run with that version, train under another run name "
            "(`--set run=NAME`), or discard its checkpoints (`--restart`)."
        )
    then, now = flatten(_with_defaults(previous)), flatten(_with_defaults(identity))
    listed = "; ".join(
        f"{key} was {_format_value(then.get(key))} and is now {_format_value(now.get(key))}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    )
    raise InputError(
        f"{workspace.run_folder}: contains checkpoints of an unfinished training run with other settings: {listed}. "
        "Restore these settings to resume it, train under another run name (`--set run=NAME`), or discard its checkpoints "
        "(`--restart`)."
    )


def same_training(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities, one of which an earlier version may have written, are those of the same training."""
    return _with_defaults(one) == _with_defaults(other)


def _with_defaults(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Complete an identity: a key that an earlier version did not know had the effect of today's default.

    The recipe is left out: it only chose values for the other keys, and may have had another name.
    """
    defaults = TrainSection().model_dump(mode="json")
    known = {key: value for key, value in defaults.items() if key not in RESUME_SAFE_KEYS}
    train = known | dict(identity.get("train", {}))
    return dict(identity) | {"train": {key: value for key, value in train.items() if key != "recipe"}}


def started_training(workspace: Workspace) -> tuple[dict[str, Any] | None, list[int]]:
    """The identity and the seeds of the training that was started in a run's folder."""
    try:
        started = storage.read_json(workspace.started)
        return dict(started["identity"]), list(started["seeds"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, []


def flatten(value: Any, above: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    if not isinstance(value, Mapping):
        return {above: value}
    return {k: v for key, below in value.items() for k, v in flatten(below, f"{above}.{key}" if above else str(key)).items()}


def _format_value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def begin_run(
    config: Config, workspace: Workspace, fingerprint: str, lease: Lease, identity: dict[str, Any], *, restart: bool
) -> bool:
    """Create the run's folder and return whether it contains checkpoints to resume from.

    These are the checkpoints of an unfinished run with the same identity, or of a finished one with other seeds: the
    seeds that are complete are not trained again.
    """
    previous, seeds = started_training(workspace)
    seeds_to_train = list(config.train.every_seed)
    finished = storage.exists(workspace.manifest("train")) and sorted(seeds) == sorted(seeds_to_train)
    invalidate(workspace, "train", lease)
    resumable = previous is not None and same_training(previous, identity) and not finished and not restart
    if not resumable:
        for url in (workspace.all_checkpoints, workspace.metrics, workspace.step_metrics):
            lease.check()
            storage.remove(url)
    lease.check()
    storage.write_json(workspace.started, {"fingerprint": fingerprint, "identity": identity, "seeds": seeds_to_train})
    lease.check()
    save_training_config(config, workspace)
    found = environment(config, workspace)
    lease.check()
    storage.write_json(workspace.environment, found)
    return resumable and storage.exists(workspace.all_checkpoints)
