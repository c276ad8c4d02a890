"""Train one small MIBF-Net on samples in memory, and predict other samples after given numbers of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import LambdaLR

from jobs.trials.patches import TrialPatches
from jobs.trials.samples import TrialSamples
from jobs.trials.trajectory import Clock, Trajectory, follow
from mibf.device import best_device, ieee_float32, to_device
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import BETWEEN, PARTS, NetworkSpec
from mibf.training.batch import Batch, BatchPlacer, WindowBatch
from mibf.training.ema import ExponentialMovingAverage
from mibf.training.epoch import TrainState, train_epoch
from mibf.training.optimizer import make_optimizer
from pipeline.sampling.shuffle_buffer import SYMMETRIES

#: Samples that a network classifies at a time.
BATCH = 1024
#: Limit of the moving average's decay, which its warm-up does not reach within any trial: after n steps it covers about the
#: last n / 9, wherever training stops.
_DECAY = 1 - 1e-6


@dataclass(frozen=True)
class NetworkRecipe:
    """How a network of a trial is trained.

    With a constant learning rate after the warm-up and averaged weights, every number of steps is a result that can be
    used. With a cosine, which falls until the last step, only the last one is.
    """

    name: str
    sources: tuple[str, ...] | None = None  #: names of the sources used; all by default
    centre: bool | None = None  #: with or without the centre path; as the given spec by default
    learning_rate: float = 2e-3
    weight_decay: float = 5e-4
    beta: float = 1e-4
    batch_size: int = 256
    warmup: int = 20  #: steps
    schedule: Literal["constant", "cosine"] = "constant"
    augment: bool = True  #: turn and mirror patches, all eight ways equally often
    ema: bool = True  #: average weights over the last ninth of the steps

    def spec(self, spec: NetworkSpec) -> NetworkSpec:
        """Return the network of this recipe, given that of all sources."""
        sources = tuple(s for s in spec.sources if self.sources is None or s.name in self.sources)
        without = spec.without
        if len(sources) == 1:
            without = tuple(part for part in PARTS if part in (*without, *BETWEEN))
        centre = spec.centre if self.centre is None else self.centre
        return replace(spec, sources=sources, without=without, centre=centre)


def train_network(
    samples: TrialSamples,
    training: NDArray[np.int64],
    predicted: NDArray[np.int64],
    *,
    spec: NetworkSpec,
    recipe: NetworkRecipe,
    checkpoints: Sequence[int],
    seconds: float,
    seed: int,
    clock: Clock = time.monotonic,
) -> Trajectory:
    """Train a network on some samples and predict others at each checkpoint.

    Args:
        samples: all samples.
        training: positions of those to train on, at least two.
        predicted: positions of those to predict (m,).
        spec: of a network of all sources of the samples.
        recipe: what to use of it, and how to train it.
        checkpoints: numbers of steps at which to predict, in ascending order.
        seconds: no checkpoint after the first is started that would probably exceed them.
        seed: of weights, order, symmetries and noise: the same seed gives the same logits.
        clock: returns a time in seconds.
    """
    if recipe.schedule == "cosine":
        checkpoints = checkpoints[-1:]
    network, state = _initial(recipe.spec(spec), recipe, steps=checkpoints[-1], seed=seed)
    names = [source.name for source in network.spec.sources]
    patches = TrialPatches.of(samples, names, patch=network.spec.patch, as_places=state.device.type == "cuda")
    batches = _batches(patches, training, recipe, seed=seed)
    done = 0

    def predict(steps: int) -> NDArray[np.float32]:
        nonlocal done
        train_epoch(state, islice(batches, steps - done), start=done, seed=lambda step: _noise_seed(seed, step))
        done = steps
        return _predict(state.eval_network, patches, predicted)

    return follow(checkpoints, predict, seconds=seconds, clock=clock)


def _initial(spec: NetworkSpec, recipe: NetworkRecipe, *, steps: int, seed: int) -> tuple[MIBFNet, TrainState]:
    """Build the network and its optimizer before the first step."""
    torch.backends.cudnn.deterministic = True  # the same seed gives the same result
    torch.manual_seed(seed)
    network = to_device(MIBFNet(spec), best_device())
    warmup = min(recipe.warmup, steps // 2)
    optimizer, schedule = make_optimizer(
        network.parameters(),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        steps=steps,
        warmup=warmup,
    )
    if recipe.schedule == "constant":
        schedule = LambdaLR(optimizer, lambda step: min(1.0, step / max(1, warmup)))
    average = ExponentialMovingAverage(network, decay=_DECAY) if recipe.ema else None
    return network, TrainState(network, optimizer, schedule, beta=recipe.beta, average=average)


def _noise_seed(seed: int, step: int) -> int:
    """The seed of a step's random numbers."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _batches(
    patches: TrialPatches, training: NDArray[np.int64], recipe: NetworkRecipe, *, seed: int
) -> Iterator[Batch | WindowBatch]:
    """Yield full batches without end: all training samples in random order, again and again."""
    size = min(recipe.batch_size, len(training))
    waiting = np.empty(0, np.int64)
    for epoch in count():
        generator = np.random.default_rng([seed, epoch])
        waiting = np.concatenate([waiting, generator.permutation(training)])
        while len(waiting) >= size:
            chosen, waiting = waiting[:size], waiting[size:]
            yield patches.batch(chosen, generator.integers(0, SYMMETRIES, size) if recipe.augment else None)


def _predict(network: MIBFNet, patches: TrialPatches, predicted: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits (m, classes) of some samples."""
    device = next(network.parameters()).device
    placer = BatchPlacer(device)
    network.eval()
    found = [np.empty((0, network.spec.classes), np.float32)]
    for start in range(0, len(predicted), BATCH):
        placed = placer.place(patches.batch(predicted[start : start + BATCH]))
        with torch.inference_mode(), ieee_float32(device):
            output = network(placed.patches(0, len(placed.labels)))
        found.append(output.logits.float().cpu().numpy())
    return np.concatenate(found)
