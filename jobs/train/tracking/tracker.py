"""Send training metrics to trackers during a run: TensorBoard event files, and MLflow if configured.

Used by worker 0 only. A tracker that cannot be written never stops training: a warning is issued once, and training
continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from jobs.runtime.progress import warn
from jobs.train.tracking.mlflow import MlflowRun, describe_error
from jobs.train.tracking.tensorboard import EventFiles
from pipeline.io import storage

FOLDER = "tensorboard"
RUN_RECORD = "mlflow.json"
SUBSETS = ("train", "validation")


class _Backend(Protocol):
    """A backend that metrics are written to."""

    def add(self, step: int, figures: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self, *, failed: bool) -> None: ...


class Tracker:
    """Records the metrics of a training run. As a context manager it closes at the end; an exception marks the run failed.

    Steps are optimiser steps counted over the entire training run, so a resumed run continues from its checkpoint's step.
    """

    def __init__(self, *, report: Callable[[str], None] = warn) -> None:
        """A tracker without backends, which discards metrics; see `begin`."""
        self._report = report
        self._backends: dict[str, _Backend] = {}
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
        report: Callable[[str], None] = warn,
    ) -> Tracker:
        """Start tracking, or continue after the checkpoint's step `resumed_at` > 0.

        Args:
            folder: URL of the run's folder: event files go to `tensorboard` below it, the MLflow run's id to `mlflow.json`.
            name: The MLflow run's name.
            parameters: The training configuration for MLflow, nested or flat.
            mlflow: The tracking URI as returned by `check_mlflow`, or None.
            resumed_at: The last step whose metrics are already recorded. Metrics that an interrupted run left for
                later steps are not shown twice. 0 starts a new run: event files of an earlier run are deleted.
            report: Called with a warning if a backend cannot be written. A worker on another machine cannot print to the
                user itself.
        """
        tracker = cls(report=report)
        with tracker._continue_on_error(_EVENTS):
            tracker._backends[_EVENTS] = EventFiles(storage.join(folder, FOLDER), resumed_at=resumed_at)
        if mlflow is not None:
            record_url = storage.join(folder, RUN_RECORD)
            with tracker._continue_on_error(_MLFLOW):
                run = MlflowRun(mlflow, record_url, name=name, parameters=parameters, resumed_at=resumed_at)
                tracker._backends[_MLFLOW] = run
                run.flush()  # makes the run visible from the start
        return tracker

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Record metrics of the last few steps: `loss` becomes the curve steps/loss."""
        self._add(step, {f"steps/{name}": value for name, value in figures.items()})

    def epoch(self, step: int, figures: Mapping[str, float]) -> None:
        """Record metrics of an epoch that ended with this step, and flush: `train_loss` becomes the curve train/loss."""
        self._add(step, {_tag(name): value for name, value in figures.items()})
        self.flush()

    def flush(self) -> None:
        """Write all metrics so far to the backends. Call it at each checkpoint to avoid gaps in a resumed run's curves."""
        for what, backend in self._backends.items():
            with self._continue_on_error(what):
                backend.flush()

    def close(self, *, failed: bool = False) -> None:
        """Flush and close the backends; a second call does nothing."""
        backends, self._backends = self._backends, {}
        for what, backend in backends.items():
            with self._continue_on_error(what):
                backend.close(failed=failed)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=error is not None)

    def _add(self, step: int, figures: Mapping[str, float]) -> None:
        for what, backend in self._backends.items():
            with self._continue_on_error(what):
                backend.add(step, {tag: float(value) for tag, value in figures.items()})

    @contextmanager
    def _continue_on_error(self, what: str) -> Iterator[None]:
        """Turn an error of a backend into a warning, once per backend."""
        try:
            yield
        except Exception as error:  # whatever a disk, object store or MLflow raises, training must not stop
            if what not in self._warned:
                self._warned.add(what)
                self._report(f"metrics cannot be written to {what} ({describe_error(error)}); training continues.")


_EVENTS = "TensorBoard event files"
_MLFLOW = "MLflow"


def _tag(name: str) -> str:
    """The name of the curve of an epoch metric."""
    subset, _, figure = name.partition("_")
    return f"{subset}/{figure}" if subset in SUBSETS and figure else f"epochs/{name}"
