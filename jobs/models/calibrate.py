"""`mibf calibrate`: fit the thresholds of prediction sets of a run's model again, for example of an earlier version's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from jobs.config.config import Config
from jobs.evaluate.stage import check_trained_on
from jobs.models.prediction_sets import describe, with_prediction_sets
from jobs.runtime.progress import warn
from jobs.workflow.manifest import check_dependencies, read_manifest
from jobs.workflow.stores import open_stores
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from mibf.metrics.prediction_sets import PredictionSets
from pipeline.io import storage
from pipeline.io.lease import acquire
from pipeline.maps.predictor import check_sources


@dataclass(frozen=True)
class Calibrated:
    """The thresholds that were fitted to a model."""

    url: str
    sets: PredictionSets

    def lines(self) -> list[str]:
        """Say what was fitted."""
        return [describe(self.sets), f"written to {self.url}"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"model": self.url, **self.sets.to_json()}


def calibrate(config: Config) -> Calibrated:
    """Fit the thresholds of the run's model again, and write them into its bundle.

    Raises:
        InputError: there is no model, it is of another split, or there are no validation pixels.
        LeaseHeldError: another run holds the workspace lease.
    """
    check_dependencies(config, "evaluate")
    workspace = Workspace.of(config)
    check_trained_on(config, workspace)
    manifest = read_manifest(workspace, "train")
    assert manifest is not None  # checked above
    with acquire(workspace.url, what=f"mibf calibrate of {config.name}, run {config.run}") as lease:
        bundle = workspace.read_bundle()
        stores = open_stores(workspace, (scene.name for scene in config.scenes), without=("test",), report=warn)
        for store in stores:
            check_sources(store, bundle)
        found = with_prediction_sets(config, bundle, stores)
        if found.prediction_sets is None:
            raise InputError(
                f"{workspace.split}: the split has no validation pixels, to which prediction sets are fitted; add some "
                "(split.fractions, split.validation) and train again."
            )
        workspace.write_bundle(found, lease)
        # The model is another result now, so what was made with it is not current.
        lease.check()
        changed = replace(manifest, finished=datetime.now(UTC).isoformat(), workspace=workspace.url)
        storage.write_json(workspace.manifest("train"), vars(changed))
    return Calibrated(workspace.bundle, found.prediction_sets)
