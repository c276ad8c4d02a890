"""Assign blocks to subsets by iterative stratification, for millions of blocks.

The result is that of the plain algorithm, which assigns one block after the other, to the last bit. But the order of the
blocks depends on the counts alone, not on where blocks go, so it is found for many blocks at a time; and only the choice
among the subsets, which depends on the choices before it, is made one by one, with plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import CODES, SUBSETS, Subset
from pipeline.stratification.block_counts import BlockCounts

#: Version of the assignments of blocks by seeds other than 0. Only their stores become stale when it changes.
SEEDED_ASSIGNMENT_VERSION = 2
#: Assignments of blocks that a seed draws from at most; fewer, but at least two, of more than `MOST_BLOCKS` blocks in all.
CANDIDATES, MOST_BLOCKS = 64, 20_000
#: Standard deviations of the logarithms of the factors that randomize an assignment, from the first to the last.
JITTER = (0.05, 1.0)
#: Imbalance above the best one that a seed may cost: the mean over classes of the share of pixels in the wrong subset.
CLOSE = 0.02
#: Number of assignments that a seed chooses from although they are less even; there are fewer if no others are complete.
LEAST_CHOICES = 4
#: Needs of subsets that differ by at most this are equal.
EQUAL = 1e-9
#: Random numbers drawn at a time, and blocks whose order is found at a time: at least, at most.
CHUNK, FEWEST, MOST = 1 << 20, 16, 1 << 15


def assign_blocks(
    counts: NDArray[np.integer] | BlockCounts, fractions: dict[Subset, float], *, seed: int
) -> NDArray[np.uint8]:
    """Assign each block, (..., classes) counts, to a subset to match the fractions of every class as closely as possible.

    Only the subsets that have a fraction get blocks.

    Iterative stratification (Sechidis et al. 2011), weighted by pixels: for the class with the fewest pixels left, the
    largest block goes to the subset that still needs that class most. Blocks without labels are assigned at random
    according to the fractions, which keeps the buffers complete.

    That is the assignment of seed 0. As block sizes differ, it leaves nothing to chance, so another seed draws from
    `CANDIDATES` randomized ones: among those that miss no more subsets of a class than the best and whose imbalance is
    close to the best, at least `LEAST_CHOICES` of them.

    Returns:
        The subset codes, in the shape of the counts without classes; (blocks,) of `BlockCounts`.
    """
    shape = (counts.blocks,) if isinstance(counts, BlockCounts) else counts.shape[:-1]
    sparse = counts if isinstance(counts, BlockCounts) else BlockCounts.of(counts)
    generator = np.random.default_rng(seed)
    names = [name for name in SUBSETS if name in fractions]
    share = np.array([fractions[name] for name in names])
    codes = _drawn(generator, share / share.sum(), sparse.blocks)
    blocks = _LabelledBlocks.of(sparse, generator)
    if len(blocks):
        found = [_Stratification(blocks, share).codes()]
        if seed:
            candidates = min(CANDIDATES, max(2, MOST_BLOCKS // len(blocks)))
            for jitter in np.linspace(*JITTER, candidates):
                order, favor = _factors(generator, blocks, len(share), jitter=float(jitter))
                found.append(_Stratification(blocks, share, order, favor).codes())
            found = _nearly_even(found, blocks, share)
            found = [found[generator.integers(len(found))]]
        codes[blocks.numbers] = found[0]
    return np.array([0, *(CODES[name] for name in names)], np.uint8)[codes].reshape(shape)


def _drawn(generator: np.random.Generator, share: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """What `generator.choice(len(share), size, p=share) + 1` draws, but in a byte each."""
    below = share.cumsum()
    below /= below[-1]
    codes = np.empty(size, np.uint8)
    for begin in range(0, size, CHUNK):
        part = codes[begin : begin + CHUNK]
        part[:] = below.searchsorted(generator.random(len(part)), side="right") + 1
    return codes


@dataclass(frozen=True)
class _LabelledBlocks:
    """The blocks that have labels, numbered from 0, with their places in a random order that breaks ties."""

    counts: BlockCounts
    numbers: NDArray[np.uint32]  #: of the blocks among all
    begins: NDArray[np.int64]  #: first entry of each block in `counts`, and the number of entries at the end
    entry_block: NDArray[np.uint32]  #: of each entry
    place: NDArray[np.uint32]  #: in the random order

    @classmethod
    def of(cls, counts: BlockCounts, generator: np.random.Generator) -> _LabelledBlocks:
        new = np.concatenate([[True], np.diff(counts.block) != 0]) if len(counts.block) else np.zeros(0, bool)
        begins, own = np.flatnonzero(new), np.cumsum(new, dtype=np.uint32)
        numbers = counts.block[begins]
        shuffled = np.arange(counts.blocks, dtype=np.uint32)
        generator.shuffle(shuffled)  # as `generator.permutation` does, in half the memory
        is_labelled = np.zeros(counts.blocks, bool)
        is_labelled[numbers] = True
        order = shuffled[is_labelled[shuffled]]
        del shuffled, is_labelled
        place = np.empty(len(numbers), np.uint32)
        place[np.searchsorted(numbers, order)] = np.arange(len(numbers), dtype=np.uint32)
        return cls(counts, numbers, np.append(begins, len(counts.block)), own - np.uint32(1), place)

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def totals(self) -> NDArray[np.float64]:
        """Number of pixels of each class."""
        return self.counts.totals().astype(np.float64)

    def dense(self, blocks: NDArray[np.uint32]) -> NDArray[np.float64]:
        """Counts (n, classes) of some of the blocks."""
        return self.counts.dense(blocks, begins=self.begins)

    def largest_first(self, position: int, waiting: NDArray[np.bool_], order: NDArray[np.float64] | None) -> _Queue:
        """The waiting blocks with pixels of a class, those with the most first; `order` are factors of the entries."""
        entries = np.flatnonzero(self.counts.position == position)
        entries = entries[waiting[self.entry_block[entries]]]
        size = self.counts.pixels[entries].astype(np.float64)
        if order is not None:
            size *= order[entries]
        block = self.entry_block[entries]
        return _Queue(block[np.lexsort((self.place[block], -size))])


@dataclass
class _Queue:
    """Blocks in the order in which a class asks for them."""

    blocks: NDArray[np.uint32]
    at: int = 0

    def look(self, number: int, waiting: NDArray[np.bool_]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Up to `number` waiting blocks, at least one, and where the queue stands after each."""
        width = number
        while True:
            part = self.blocks[self.at : self.at + width]
            found = np.flatnonzero(waiting[part])
            if len(found) or self.at + width >= len(self.blocks):
                found = found[:number]
                return part[found], found + self.at + 1
            self.at, width = self.at + width, 2 * width


class _Stratification:
    """One assignment of blocks.

    Factors `order` (entries,) on the counts change the order in which blocks are assigned, factors `favor` (blocks, subsets)
    on the needs of the subsets change where they go.
    """

    def __init__(
        self,
        blocks: _LabelledBlocks,
        share: NDArray[np.float64],
        order: NDArray[np.float64] | None = None,
        favor: NDArray[np.float64] | None = None,
    ) -> None:
        self._blocks, self._share, self._order, self._favor = blocks, share, order, favor
        self._wanted = share[:, None] * blocks.totals  # (subsets, classes), pixels still needed
        # Sums of `_wanted` in another order of addition differ by less.
        self._rounding = 1e-13 * float(self._wanted.sum()) + 1e-12

    def codes(self) -> NDArray[np.uint8]:
        """The number of each block's subset, from 1."""
        blocks = self._blocks
        left = blocks.totals.copy()
        waiting, codes = np.ones(len(blocks), bool), np.zeros(len(blocks), np.uint8)
        queues: dict[int, _Queue] = {}
        assigned, number = 0, FEWEST
        while assigned < len(blocks):
            rarest = int(np.where(left > 0.5, left, np.inf).argmin())
            if rarest not in queues:
                queues[rarest] = blocks.largest_first(rarest, waiting, self._order)
            following, ends = queues[rarest].look(number, waiting)
            counts = blocks.dense(following)
            after = left - counts.cumsum(axis=0)
            # The class stays the rarest until another one has fewer pixels left.
            changed = np.flatnonzero(np.where(after > 0.5, after, np.inf).argmin(axis=1) != rarest)
            run = int(changed[0]) + 1 if len(changed) else len(following)
            number = min(MOST, max(FEWEST, 2 * run))
            following, left = following[:run], after[run - 1]
            codes[following] = self._choose(rarest, following, counts[:run])
            waiting[following] = False
            queues[rarest].at = int(ends[run - 1])
            assigned += run
        return codes

    def _choose(self, position: int, blocks: NDArray[np.uint32], counts: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Choose the subset, from 1, of each of some blocks with these counts, one after the other, for one class."""
        wanted = self._wanted
        full = np.maximum(self._share * self._blocks.totals[position], 1e-9).tolist()
        own, sums = wanted[:, position].tolist(), wanted.sum(axis=1).tolist()
        need = [w / f for w, f in zip(own, full, strict=True)]
        favor = None if self._favor is None else self._favor[blocks].tolist()
        codes = np.zeros(len(blocks), np.uint8)
        chosen: list[int] = []
        written = 0
        for number, (pixels, size) in enumerate(zip(counts[:, position].tolist(), counts.sum(axis=1).tolist(), strict=True)):
            felt = need if favor is None else [n * f if n > 0 else n for n, f in zip(need, favor[number], strict=True)]
            limit = max(felt) - EQUAL
            best = [s for s, n in enumerate(felt) if n >= limit]
            subset = best[0]
            if len(best) > 1:
                subset, *others = sorted(best, key=lambda s: -sums[s])
                if sums[subset] - sums[others[0]] <= self._rounding:  # as the plain sums decide, bit by bit
                    codes[written:number] = chosen[written:]
                    self._subtract(codes[written:number], counts[written:number])
                    written = number
                    subset = best[int(wanted[best].sum(axis=1).argmax())]
            chosen.append(subset)
            own[subset] -= pixels
            sums[subset] -= size
            need[subset] = own[subset] / full[subset]
        codes[written:] = chosen[written:]
        self._subtract(codes[written:], counts[written:])
        return codes + np.uint8(1)

    def _subtract(self, subsets: NDArray[np.uint8], counts: NDArray[np.float64]) -> None:
        """Subtract the counts of blocks from what their subsets want, one after the other, as rounding depends on it."""
        for subset in range(len(self._wanted)):
            rows = counts[subsets == subset]
            if len(rows):
                self._wanted[subset] = np.subtract.reduce(np.concatenate([self._wanted[subset][None], rows]), axis=0)


def _factors(
    generator: np.random.Generator, blocks: _LabelledBlocks, subsets: int, *, jitter: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Random factors on the counts (entries,) and on the needs of the subsets (blocks, subsets).

    They are drawn for every block, class and subset, and most are dropped: what a block gets does not depend on others.
    """
    counts = blocks.counts
    order, favor = np.empty(len(counts.block)), np.empty((len(blocks), subsets))
    rows = max(1, CHUNK // counts.classes)
    for begin in range(0, counts.blocks, rows):
        drawn = generator.standard_normal((min(rows, counts.blocks - begin), counts.classes))
        part = slice(*np.searchsorted(counts.block, [begin, begin + rows]))
        order[part] = np.exp(jitter * drawn[counts.block[part] - begin, counts.position[part]])
    for begin in range(0, counts.blocks, rows):
        drawn = generator.standard_normal((min(rows, counts.blocks - begin), subsets))
        part = slice(*np.searchsorted(blocks.numbers, [begin, begin + rows]))
        favor[part] = np.exp(jitter * drawn[blocks.numbers[part] - begin])
    return order, favor


def _nearly_even(
    assigned: Sequence[NDArray[np.uint8]], blocks: _LabelledBlocks, share: NDArray[np.float64]
) -> list[NDArray[np.uint8]]:
    """The distinct assignments among which a seed chooses, the most even one first."""
    counts, present = blocks.counts, blocks.totals > 0
    ranked = []
    for codes in {codes.tobytes(): codes for codes in assigned}.values():
        cells = (codes[blocks.entry_block] - np.uint8(1)) * np.int64(counts.classes) + counts.position
        got = np.bincount(cells, weights=counts.pixels, minlength=len(share) * counts.classes)
        got = got.reshape(len(share), -1)[:, present]
        shares = got / got.sum(axis=0)
        ranked.append((int((got == 0).sum()), float(abs(shares - share[:, None]).sum(axis=0).mean() / 2), codes))
    ranked.sort(key=lambda entry: entry[:2])
    missing, imbalance, _ = ranked[0]
    complete = [entry for entry in ranked if entry[0] == missing]
    close = sum(entry[1] <= imbalance + CLOSE for entry in complete)
    return [codes for _, _, codes in complete[: max(close, LEAST_CHOICES)]]
