"""Where a training's figures go as it runs: event files for TensorBoard, and MLflow where it is asked for.

For the one process that tells of a training, worker 0. A place that cannot be written never ends a training:
it is warned of once, and the training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from jobs.event_files import EventFiles
from jobs.mlflow_run import MlflowRun, check_mlflow, told
from jobs.progress import warn
from pipeline import storage

__all__ = ["Tracker", "check_mlflow"]

FOLDER = "tensorboard"
NOTE = "mlflow.json"
SUBSETS = ("train", "validation")


class _Place(Protocol):
    """One place that figures go to."""

    def add(self, step: int, figures: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self, *, failed: bool) -> None: ...


class Tracker:
    """Takes a training's figures; as a context manager it is closed at the end, and an error tells of a failed training.

    Steps count optimiser steps over the whole training, so that a resumed one goes on where the checkpoint was.
    """

    def __init__(self, *, tell: Callable[[str], None] = warn) -> None:
        """One that has no place yet; see `begin`."""
        self._tell = tell
        self._places: dict[str, _Place] = {}
        self._warned: set[str] = set()

    @classmethod
    def begin(
        cls,
        folder: str,
        *,
        name: str,
        parameters: Mapping[str, Any],
        mlflow: str | None = None,
        resumed_at: int = 0,
        tell: Callable[[str], None] = warn,
    ) -> Tracker:
        """Begin, or go on after the step `resumed_at` > 0 of the checkpoint.

        Args:
            folder: The run's folder, a URL: event files go to `tensorboard` below it, the MLflow run's id to `mlflow.json`.
            name: The MLflow run's name.
            parameters: What the training is configured by, nested or not, for MLflow.
            mlflow: The tracking URI as `check_mlflow` gave it, or None.
            resumed_at: The step that figures are already there up to. Those that an interrupted training
                left of later steps are not seen twice. 0 is a new training: event files of one before go.
            tell: Given a line where a place cannot be written. A worker on another machine has nobody to warn itself.
        """
        tracker = cls(tell=tell)
        with tracker._going_on(_EVENTS):
            tracker._places[_EVENTS] = EventFiles(storage.join(folder, FOLDER), resumed_at=resumed_at)
        if mlflow is not None:
            note = storage.join(folder, NOTE)
            with tracker._going_on(_MLFLOW):
                run = MlflowRun(mlflow, note, name=name, parameters=parameters, resumed_at=resumed_at)
                tracker._places[_MLFLOW] = run
                run.flush()  # the run is there to look at from the start
        return tracker

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures of the last few steps: `loss` becomes the curve steps/loss."""
        self._add(step, {f"steps/{name}": value for name, value in figures.items()})

    def epoch(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures of an epoch that ended with this step, and flush: `train_loss` becomes the curve train/loss."""
        self._add(step, {_tag(name): value for name, value in figures.items()})
        self.flush()

    def flush(self) -> None:
        """Have every figure so far at its place; worth it with each checkpoint, so that a resumed curve has no gap."""
        for what, place in self._places.items():
            with self._going_on(what):
                place.flush()

    def close(self, *, failed: bool = False) -> None:
        """Flush and end; nothing happens the second time."""
        places, self._places = self._places, {}
        for what, place in places.items():
            with self._going_on(what):
                place.close(failed=failed)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=error is not None)

    def _add(self, step: int, figures: Mapping[str, float]) -> None:
        for what, place in self._places.items():
            with self._going_on(what):
                place.add(step, {tag: float(value) for tag, value in figures.items()})

    @contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Have an error of a place warned of once."""
        try:
            yield
        except Exception as error:  # whatever a disk, an object store or MLflow says: a night's training is worth more
            if what not in self._warned:
                self._warned.add(what)
                self._tell(f"figures do not reach {what} ({told(error)}); the training goes on.")


_EVENTS = "TensorBoard's event files"
_MLFLOW = "MLflow"


def _tag(name: str) -> str:
    """The curve of an epoch's figure."""
    subset, _, figure = name.partition("_")
    return f"{subset}/{figure}" if subset in SUBSETS and figure else f"epochs/{name}"
