"""Draw a bounded number of a subset's pixels, window by window: memory grows with the pixels drawn, not with the scene.

What is drawn is a pure function of the seed and the stores' tables of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.codes import CODES, Subset
from pipeline.grid import Window
from pipeline.io.retry import call_with_retry
from pipeline.sampling.sample_table import SampleTable
from pipeline.sampling.store_catalog import sample_table
from pipeline.store.patch_store import PatchStore


@dataclass(frozen=True)
class DrawnPixels:
    """The drawn pixels of one window, row by row: positions in the window (n,) and class positions (n,)."""

    store: int  #: position of the store among those that were drawn from
    window: Window
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    labels: NDArray[np.int64]


def share_out(counts: NDArray[np.int64], *, limit: int, least: int) -> NDArray[np.int64]:
    """Numbers of pixels to draw per class, (class,) each: proportional to the counts, and all of them if they fit the limit.

    Every class gets at least `least` pixels, or all it has, as far as an equal share of the limit allows.

    >>> share_out(np.array([8000, 1900, 90, 10]), limit=100, least=5).tolist()
    [69, 20, 6, 5]
    """
    if counts.sum() <= limit:
        return counts
    floor = np.minimum(counts, min(least, limit // int(np.count_nonzero(counts))))
    exact = (limit - floor.sum()) * (counts - floor) / (counts - floor).sum()
    wanted = floor + exact.astype(np.int64)
    largest_remainders = np.argsort(exact.astype(np.int64) - exact, kind="stable")[: limit - wanted.sum()]
    wanted[largest_remainders] += 1
    return np.asarray(wanted)


def draw_pixels(
    stores: Sequence[PatchStore],
    subset: Subset,
    *,
    limit: int,
    least: int,
    seed: int,
    shuffled: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[DrawnPixels]:
    """Draw at most `limit` pixels of a subset without replacement, stratified by class as `share_out` says.

    The windows come in the order of the grid, or `shuffled`, so that the first ones are a sample of all.

    Raises:
        InputError: a store is damaged, or its labels do not match its table of samples.
    """
    table = sample_table(stores, subset, report=report)
    if not len(table):
        return
    generator = np.random.default_rng([seed, CODES[subset]])
    chosen = _ordinals(table.counts, limit=limit, least=least, generator=generator)
    begins = _begins(table, chosen)
    order = [*begins]
    if shuffled:
        every = np.arange(len(table), dtype=np.uint32)
        generator.shuffle(every)  # as a `permutation`, in half the memory
        order = every[np.isin(every, order)].tolist()
    for i in order:
        (position, window), samples, first = table.place(i), table.samples(i), begins[i]
        bounds = zip(chosen, first, first + samples, strict=True)
        own = [c[slice(*np.searchsorted(c, [a, b]))] - a for c, a, b in bounds]
        store = stores[position]
        ids = call_with_retry(store.url, partial(store.samples, window), report=report)[subset]
        yield _locate(store, position, window, ids, own, samples)


def every_pixel(
    stores: Sequence[PatchStore],
    subset: Subset,
    *,
    start: int = 0,
    stop: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[DrawnPixels]:
    """Yield all pixels of a subset, window by window: of the windows with samples from number `start` to `stop`, without it.

    Raises:
        InputError: a store is damaged, or its labels do not match its table of samples.
    """
    table = sample_table(stores, subset, report=report)
    for index in range(start, len(table) if stop is None else stop):
        (position, window), counts = table.place(index), table.samples(index)
        store = stores[position]
        ids = call_with_retry(store.url, partial(store.samples, window), report=report)[subset]
        yield _locate(store, position, window, ids, [np.arange(n) for n in counts], counts)


def subset_digest(stores: Sequence[PatchStore], subset: Subset, *, report: Callable[[str], None] = lambda line: None) -> str:
    """Hash the places and classes of all samples of a subset: two evaluations with the same hash are of the same pixels."""
    found = hashlib.sha256()
    for pixels in every_pixel(stores, subset, report=report):
        found.update(f"{pixels.store} {pixels.window.y} {pixels.window.x}\n".encode())
        for values in (pixels.rows, pixels.columns, pixels.labels):
            found.update(values.astype("<i8").tobytes())
    return found.hexdigest()


def cut_patches(
    values: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64], *, patch: int, scale: int
) -> NDArray[np.float32]:
    """Cut the patches around pixels of a window from one source: (n, B, patch * scale, patch * scale), contiguous.

    Args:
        values: the source's window with a halo of patch // 2 reference pixels, (B, rows * scale, columns * scale).
        rows: of the pixels, in reference pixels of the window without halo (n,).
        columns: likewise.
        patch: side in reference pixels.
        scale: pixels of the source per reference pixel along an axis.
    """
    side = patch * scale
    views = np.lib.stride_tricks.sliding_window_view(values, (side, side), axis=(1, 2))
    return np.ascontiguousarray(views[:, rows * scale, columns * scale].swapaxes(0, 1))


def _ordinals(
    counts: NDArray[np.int64], *, limit: int, least: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """For each class, which of its pixels are drawn, counted through all windows, in ascending order."""
    wanted = share_out(counts, limit=limit, least=least)
    return [
        np.sort(generator.choice(int(total), int(n), replace=False, shuffle=False))
        for total, n in zip(counts, wanted, strict=True)
    ]


def _begins(table: SampleTable, chosen: Sequence[NDArray[np.int64]]) -> dict[int, NDArray[np.int64]]:
    """The windows that hold chosen pixels, in order, each with the number of pixels per class before it (class,)."""
    found, before, window = {}, np.zeros(len(chosen), np.int64), 0
    for part in table.parts():
        ends = before + part.samples.cumsum(axis=0)
        if len(ends):
            own = [c[slice(*np.searchsorted(c, [a, b]))] for c, a, b in zip(chosen, before, ends[-1], strict=True)]
            places = [np.searchsorted(end, numbers, side="right") for end, numbers in zip(ends.T, own, strict=True)]
            for place in np.unique(np.concatenate(places)).tolist():
                found[window + place] = ends[place] - part.samples[place]
            before = ends[-1]
        window += len(ends)
    return found


def _locate(
    store: PatchStore,
    position: int,
    window: Window,
    ids: NDArray[np.uint8],
    own: Sequence[NDArray[np.int64]],
    expected: NDArray[np.int64],
) -> DrawnPixels:
    """Find the pixels of each class, given by their numbers in grid order, in a window's class ids."""
    places = [np.flatnonzero(ids == c.id) for c in store.classes]
    if [len(p) for p in places] != expected.tolist():
        raise InputError(
            f"{store.url}: the window at row {window.y}, column {window.x} holds {[len(p) for p in places]} samples per "
            f"class, but the store's table says {expected.tolist()}; run `mibf prepare` again."
        )
    flat = np.concatenate([p[numbers] for p, numbers in zip(places, own, strict=True)])
    labels = np.repeat(np.arange(len(own)), [len(numbers) for numbers in own])
    order = np.argsort(flat)
    rows, columns = np.divmod(flat[order], window.width)
    return DrawnPixels(position, window, rows, columns, labels[order])
