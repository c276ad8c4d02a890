"""Count the predictions of samples by spatial block, for intervals of metrics from a bootstrap over blocks.

Samples are classified in the order of the grid, window by window; their blocks are found by reading the windows' labels in
the same order. Memory grows with the blocks, of which there are at most `MOST_BLOCKS`, or one for each scene.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibf.metrics.block_bootstrap import BlockCounts
from mibf.metrics.calibration import Reliability
from pipeline.codes import UNLABELLED
from pipeline.io.retry import call_with_retry
from pipeline.sampling.sample_table import SampleTable
from pipeline.sampling.sampler import Sampler
from pipeline.sampling.store_catalog import sample_table

#: Largest number of blocks in which samples are counted; of more, neighboring ones are merged.
MOST_BLOCKS = 1000
#: A block: URL of its store, and its row and column in the grid of blocks.
Block = tuple[str, int, int]
#: Confusion matrix (classes, classes) and sums of the confidence bins (3, bins) of a block; see `BlockCounts`.
BlockSums = tuple[NDArray[np.int64], NDArray[np.float64]]


def block_side(samplers: Iterable[Sampler], side: int) -> int:
    """Return the side of the blocks in which the samples are counted: `side`, or as many times its double as needed."""
    tables = [sample_table(sampler.stores, sampler.subset, report=sampler.report) for sampler in samplers]
    while sum(_most_blocks(table, side) for table in tables) > max(MOST_BLOCKS, sum(len(list(t.parts())) for t in tables)):
        side *= 2
    return side


def _most_blocks(table: SampleTable, side: int) -> int:
    """Number of blocks that hold samples, or more: of a window with samples, all of its blocks are counted."""
    found = 0
    for part in table.parts():
        across = -(-part.shape_yx[1] // part.side)
        y, x = (each * part.side for each in np.divmod(part.numbers, across))
        if side >= part.side and side % part.side == 0:
            found += np.unique(np.stack([y // side, x // side]), axis=1).shape[1]
        else:
            found += len(part.numbers) * (math.ceil(part.side / side) + 1) ** 2
    return found


def sample_blocks(sampler: Sampler, side: int, *, first: int = 0) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield the blocks of the samples from number `first` on, window by window: the URL of the store, and (n, 2)."""
    table, before = sample_table(sampler.stores, sampler.subset, report=sampler.report), 0
    for index, total in enumerate(table.totals.tolist()):
        skipped = min(max(first - before, 0), total)
        before += total
        if skipped == total:
            continue
        position, window = table.place(index)
        store = sampler.stores[position]
        ids = call_with_retry(store.url, partial(store.samples, window), report=sampler.report)[sampler.subset]
        rows, columns = np.nonzero(ids != UNLABELLED)
        places = np.stack([(rows + window.y) // side, (columns + window.x) // side], axis=1)
        yield store.url, places[skipped:]


@dataclass
class BlockCounter:
    """Counts predictions by block; an observer of the batches that `sample_blocks` places."""

    reliability: Reliability  #: gives the probabilities
    blocks: Iterator[tuple[str, NDArray[np.int64]]]
    found: dict[Block, BlockSums] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._url, self._left = "", np.zeros((0, 2), np.int64)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch of logits (B, classes) and class positions (B,), in the order of the grid."""
        probabilities = self.reliability.log_probabilities(logits).exp().cpu().numpy()
        classes, done = labels.cpu().numpy(), 0
        while done < len(classes):
            if not len(self._left):
                self._url, self._left = next(self.blocks)
            taken = slice(done, done + min(len(self._left), len(classes) - done))
            number = taken.stop - taken.start
            self._count(probabilities[taken], classes[taken], self._left[:number])
            self._left, done = self._left[number:], taken.stop

    def _count(self, probabilities: NDArray[np.float32], labels: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Count the predictions of some samples of one window."""
        unique, block = np.unique(places, axis=0, return_inverse=True)
        counts = BlockCounts.of(probabilities, labels, block.reshape(-1), number=len(unique))
        here = {(self._url, int(y), int(x)): (counts.confusion[i], counts.bins[i]) for i, (y, x) in enumerate(unique)}
        add_blocks(self.found, here)


def add_blocks(total: dict[Block, BlockSums], more: Mapping[Block, BlockSums]) -> None:
    """Add the sums of blocks to those of others."""
    for key, (confusion, bins) in more.items():
        before = total.get(key)
        total[key] = (confusion, bins) if before is None else (before[0] + confusion, before[1] + bins)


def block_counts(found: Mapping[Block, BlockSums]) -> BlockCounts:
    """The sums of all blocks, at least one, in the order of their keys."""
    confusion, bins = zip(*(found[key] for key in sorted(found)), strict=True)
    return BlockCounts(np.stack(confusion), np.stack(bins))
