"""Classify samples on Ray workers, part by part, with the metrics of one process to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from jobs.runtime.ray_cluster import assigned_device
from jobs.runtime.worker_resources import WorkerResources
from jobs.workflow.errors import StageError
from mibf.bundle.bundle import Bundle
from mibf.metrics.prediction_sets import SetChoice
from pipeline.sampling.predictions import Counted, Part, PartResult, Predictions, joined, predict_part
from pipeline.sampling.sampler import Sampler

#: Times that a task whose process or node was lost is repeated, and tasks per worker that wait or run.
RETRIES, IN_FLIGHT = 3, 2


def predict_on_ray(
    requests: Sequence[tuple[Bundle, Sampler, Sequence[Part]]],
    share: WorkerResources,
    *,
    beta: float,
    counted: Counted,
    advance: Callable[[int], None],
    sets: SetChoice | None = None,
) -> list[Predictions]:
    """Classify the parts of the samplers' samples with their models, on workers with the resources of `share`.

    Args:
        requests: a model, a sampler and all its parts, each.
        share: number and resources of the workers.
        beta: weight of the KL term in the loss.
        counted: what is counted by spatial block.
        advance: called with a number of samples when they are done.
        sets: which prediction sets are counted; see `predict`.

    Raises:
        StageError: the processes or nodes of a task were lost, several times.
        Exception: what a task has raised.
    """
    task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpu_share, max_retries=RETRIES)(_classify)
    models = {id(bundle): ray.put(bundle) for bundle, _, _ in requests}
    found: list[list[PartResult | None]] = [[None for _ in parts] for _, _, parts in requests]
    waiting = ((i, j, part) for i, (_, _, parts) in enumerate(requests) for j, part in enumerate(parts))
    samplers: dict[int, Any] = {}
    running: dict[Any, tuple[int, int, int]] = {}
    try:
        while True:
            for i, j, part in islice(waiting, IN_FLIGHT * share.workers - len(running)):
                bundle, sampler, _ = requests[i]
                if i not in samplers:
                    samplers = {i: ray.put(replace(sampler, report=_ignore))}  # without what it has cached
                reference = task.remote(models[id(bundle)], samplers[i], beta, part, counted, sets, share.cpus)
                running[reference] = i, j, part.samples
            if not running:
                break
            done, _ = ray.wait(list(running))
            for reference in done:
                i, j, samples = running.pop(reference)
                found[i][j] = _result(reference)
                advance(samples)
    except BaseException:
        for reference in running:
            ray.cancel(reference)
        raise
    done_all = [[part for part in results if part is not None] for results in found]
    return [joined(bundle, results) for (bundle, _, _), results in zip(requests, done_all, strict=True)]


def _classify(
    bundle: Bundle, sampler: Sampler, beta: float, part: Part, counted: Counted, sets: SetChoice | None, threads: int
) -> PartResult:
    """Classify one part in a worker, on the device that Ray assigned to it."""
    torch.set_num_threads(threads)
    return predict_part(bundle, sampler, beta, part, counted, sets=sets, device=assigned_device().device)


def _ignore(line: str) -> None:
    """Drop a line about an object store that does not respond: the worker retries."""


def _result(reference: Any) -> PartResult:
    try:
        found: PartResult = ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        line = str(error).strip().splitlines()[0]
        raise StageError(f"Ray lost the process of a part of the samples {RETRIES + 1} times ({line})") from error
    return found
