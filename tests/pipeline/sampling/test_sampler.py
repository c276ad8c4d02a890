"""Batches of a worker: class frequencies, order, resume position, grid order, prefetch threads and store outages."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.io.retry
import pipeline.sampling.sampler
from mibf.errors import InputError
from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.io.retry import StorageUnavailableError
from pipeline.sampling.epoch_plan import expected_draws
from pipeline.sampling.sampler import ReadError
from pipeline.store.template import CHUNK
from tests.support.memory_store import MemoryStore, batch_bytes, make_sampler, places, scattered_labels

# --- class frequencies ---


@pytest.mark.parametrize("how", ["balanced", "sqrt"])
def test_epoch_has_requested_class_frequencies(uneven: MemoryStore, how: Any) -> None:
    samples = np.array([(uneven.labels == c.id).sum() for c in uneven.classes])
    wanted = expected_draws(samples, how) * samples / samples.sum()
    found = np.zeros(3)
    for rank in range(2):
        for batch in make_sampler(uneven, rank=rank, workers=2, frequencies=how).shuffled(batch=50, seed=0, epoch=0):
            found += np.bincount(batch.labels, minlength=3)
    assert found / found.sum() == pytest.approx(wanted, abs=0.01)  # less than one batch is left over
    assert np.abs(found / found.sum() - samples / samples.sum()).max() > 0.1, "natural frequencies must differ"


def test_samples_of_a_class_are_drawn_nearly_equally_often(dense: MemoryStore) -> None:
    batches = list(make_sampler(dense, frequencies="balanced").shuffled(batch=64, seed=0, epoch=0))
    drawn = np.bincount(np.concatenate([places(b) for b in batches]), minlength=dense.labels.size)
    for c, share in zip(dense.classes, (0.7, 0.28, 0.02), strict=True):
        times = drawn[dense.labels.ravel() == c.id]
        expected = 1 / 3 / share
        assert times.mean() == pytest.approx(expected, rel=0.05)
        # The draws are rounded per window, so samples of another window may be drawn once more or less.
        assert times.max() - times.min() <= 2


def test_workers_together_draw_every_sample_once(dense: MemoryStore) -> None:
    drawn = [
        places(b)
        for rank in range(2)
        for b in make_sampler(dense, rank=rank, workers=2).shuffled(batch=128, seed=5, epoch=2)
    ]
    assert (np.sort(np.concatenate(drawn)) == np.arange(dense.labels.size)).all()


@given(st.integers(1, 7), st.integers(2, 90), st.integers(0, 2**31))
@settings(max_examples=15)
def test_no_sample_is_drawn_twice_and_less_than_one_batch_per_worker_is_left(
    uneven: MemoryStore, workers: int, batch: int, seed: int
) -> None:
    drawn = [
        places(b)
        for rank in range(workers)
        for b in make_sampler(uneven, rank=rank, workers=workers).shuffled(batch=batch, seed=seed, epoch=0)
    ]
    times = np.bincount(np.concatenate(drawn), minlength=uneven.labels.size)
    labelled = uneven.labels.ravel() != UNLABELLED
    assert times.max() == 1
    assert not times[~labelled].any()
    assert labelled.sum() - times.sum() < batch * workers


def test_single_worker_epoch_has_unique_samples_with_matching_labels(uneven: MemoryStore) -> None:
    batches = list(make_sampler(uneven).shuffled(batch=64, seed=0, epoch=0))
    drawn = np.concatenate([places(b) for b in batches])
    assert len(drawn) == len(set(drawn))
    ids = np.array([c.id for c in uneven.classes])
    assert (ids[np.concatenate([b.labels for b in batches])] == uneven.labels.ravel()[drawn]).all()


# --- order, workers and steps ---


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("how", ["natural", "sqrt"])
def test_epoch_is_determined_by_seed_epoch_and_rank(uneven: MemoryStore, how: Any) -> None:
    def epoch(*, rank: int = 0, seed: int = 0, number: int = 0, background: bool = True) -> list[bytes]:
        part = make_sampler(uneven, rank=rank, workers=2, frequencies=how, augment=True, background=background)
        return batch_bytes(part.shuffled(batch=100, seed=seed, epoch=number))

    assert epoch() == epoch() == epoch(background=False)
    for other in (epoch(number=1), epoch(rank=1), epoch(seed=1)):
        assert not set(epoch()) & set(other)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_every_worker_yields_same_number_of_full_batches(uneven: MemoryStore, workers: int) -> None:
    total = int((uneven.labels != UNLABELLED).sum())
    for rank in range(workers):
        part = make_sampler(uneven, rank=rank, workers=workers, frequencies="balanced")
        sizes = [len(b.labels) for b in part.shuffled(batch=40, seed=0, epoch=0)]
        assert sizes == [40] * part.steps(40) == [40] * (total // (40 * workers))


def test_batch_larger_than_sample_count_repeats_samples_evenly() -> None:
    few = MemoryStore(np.full((9, 9), UNLABELLED, np.uint8))
    few.labels[4, 2:7] = 3
    (batch,) = make_sampler(few).shuffled(batch=12, seed=0, epoch=0)
    assert sorted(Counter(places(batch)).values()) == [2, 2, 2, 3, 3]


# --- resume ---


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(("rank", "workers"), [(0, 1), (0, 2), (2, 3)])
@pytest.mark.parametrize(("how", "augment"), [("natural", False), ("balanced", True)])
def test_resume_at_any_step_yields_remaining_batches(
    uneven: MemoryStore, background: bool, rank: int, workers: int, how: Any, augment: bool
) -> None:
    part = make_sampler(uneven, rank=rank, workers=workers, frequencies=how, augment=augment, background=background)
    whole = batch_bytes(part.shuffled(batch=300, seed=4, epoch=1))
    for start in {0, 1, 2, len(whole) // 2, len(whole) - 1, len(whole)}:
        assert batch_bytes(part.shuffled(batch=300, seed=4, epoch=1, start=start)) == whole[start:]


@pytest.mark.parametrize("background", [False, True])
def test_small_scene_is_read_once_and_yields_same_batches(
    dense: MemoryStore, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def epochs() -> list[Any]:
        part = make_sampler(dense, background=background, augment=True)
        return [batch_bytes(part.shuffled(batch=256, seed=0, epoch=epoch)) for epoch in range(3)]

    dense.reads.clear()
    kept = epochs()
    assert set(dense.reads.values()) == {1}
    monkeypatch.setattr(pipeline.sampling.sampler, "CACHE_BYTES", 0)
    dense.reads.clear()
    assert epochs() == kept
    assert set(dense.reads.values()) == {3}


@pytest.mark.usefixtures("narrow")
def test_resume_does_not_read_earlier_windows(dense: MemoryStore) -> None:
    part = make_sampler(dense)
    steps = part.steps(256)  # 64 per window
    for start, read in ((0, 4), (63, 4), (64, 3), (130, 2), (steps - 1, 1), (steps, 0)):
        dense.reads.clear()
        list(part.shuffled(batch=256, seed=0, epoch=0, start=start))
        assert dense.reads.total() == len(dense.reads) == read


def test_position_outside_epoch_raises(dense: MemoryStore) -> None:
    part = make_sampler(dense)
    for step in (part.steps(64) + 1, -1):
        with pytest.raises(InputError, match=rf"step {step} of epoch 3: an epoch has 1024 steps of 64 samples per worker"):
            part.shuffled(batch=64, seed=0, epoch=3, start=step)


def test_shuffled_raises_for_subset_without_samples() -> None:
    empty = MemoryStore(np.full((20, 20), UNLABELLED, np.uint8))
    with pytest.raises(InputError, match="no samples in the subset 'train'"):
        make_sampler(empty).shuffled(batch=4, seed=0, epoch=0)
    assert list(make_sampler(empty).in_order(batch=4)) == []


# --- validation in grid order ---


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("workers", [1, 3])
def test_in_order_yields_each_sample_once_in_grid_order(uneven: MemoryStore, workers: int) -> None:
    drawn = []
    for rank in range(workers):
        batches = list(make_sampler(uneven, subset="validation", rank=rank, workers=workers).in_order(batch=50))
        assert all(len(b.labels) == 50 for b in batches[:-1])
        assert 0 < len(batches[-1].labels) <= 50
        y, x = np.divmod(np.concatenate([places(b) for b in batches]), uneven.shape[1])
        order = np.lexsort((x, y, x // CHUNK, y // CHUNK))  # windows row by row, then pixels within each window
        assert (order == np.arange(len(order))).all()
        drawn.append(y * uneven.shape[1] + x)
    assert (np.sort(np.concatenate(drawn)) == np.flatnonzero(uneven.labels != UNLABELLED)).all()


# --- prefetch threads ---


def prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mibf-")]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("taken", [0, 1, 40])
def test_closing_early_stops_threads(dense: MemoryStore, taken: int) -> None:
    batches = make_sampler(dense).shuffled(batch=64, seed=0, epoch=0)
    list(islice(batches, taken))
    assert sorted(prefetch_threads()) == (["mibf-cut", "mibf-read"] if taken else [])
    batches.close()
    assert not prefetch_threads()


def test_exhausting_epoch_stops_threads(dense: MemoryStore) -> None:
    assert len(list(make_sampler(dense).in_order(batch=5000))) == 14
    assert not prefetch_threads()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("background", [True, False])
def test_unreadable_window_raises_with_location_and_cause(background: bool) -> None:
    unreadable = Window(CHUNK, 0, CHUNK, CHUNK)
    store = MemoryStore(scattered_labels((2 * CHUNK, 2 * CHUNK), (0.5, 0.2, 0.1)), unreadable=unreadable)
    taken = []
    with pytest.raises(ReadError, match=r"/memory/scene.zarr: the window .* row 128, column 0 .*checksum") as caught:
        taken.extend(make_sampler(store, background=background).in_order(batch=100))
    assert isinstance(caught.value.__cause__, OSError)
    before = int((store.labels[:CHUNK] != UNLABELLED).sum())
    assert len(taken) == before // 100, "every full batch before the window must be yielded"
    assert not prefetch_threads()


def test_sample_table_that_disagrees_with_labels_raises() -> None:
    store = MemoryStore(scattered_labels((CHUNK, CHUNK), (0.5, 0.2, 0.1)))
    part = make_sampler(store)
    assert part.samples()
    store.labels = np.full_like(store.labels, 3)
    with pytest.raises(ReadError, match="table says"):
        list(part.in_order(batch=100))


class UnavailableStore(MemoryStore):
    """Store at an object-store URL whose first `failures` requests fail."""

    url = "s3://bucket/scene.zarr"

    def __init__(self, labels: np.ndarray, *, failures: int) -> None:
        super().__init__(labels)
        self.failures = failures

    def _answer(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise ConnectionError("timed out")

    def windows_with_samples(self, subset: str) -> list[tuple[Window, np.ndarray]]:
        self._answer()
        return super().windows_with_samples(subset)

    def read_source(self, name: str, window: Window, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        self._answer()
        return super().read_source(name, window, **how)


@pytest.mark.parametrize("background", [False, True])
def test_store_outage_is_retried_and_yields_same_batches(
    dense: MemoryStore, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.io.retry, "FIRST_WAIT", 0.01)
    messages: list[str] = []
    store = UnavailableStore(dense.labels, failures=2)
    away = make_sampler(store, background=background, report=messages.append)
    assert away.samples() == make_sampler(dense).samples()
    store.failures = 5
    for one, other in zip(
        away.shuffled(batch=512, seed=1, epoch=0), make_sampler(dense).shuffled(batch=512, seed=1, epoch=0), strict=True
    ):
        assert (one.labels == other.labels).all()
        assert all((a == b).all() for a, b in zip(one.sources, other.sources, strict=True))
    assert messages
    assert all(line.startswith("s3://bucket/scene.zarr: does not respond (ConnectionError: timed out)") for line in messages)


@pytest.mark.parametrize("background", [False, True])
def test_lasting_store_outage_raises_with_url(dense: MemoryStore, background: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    store = UnavailableStore(dense.labels, failures=0)
    drawn = make_sampler(store, background=background)
    assert drawn.samples()
    store.failures = 10**9
    monkeypatch.setattr(pipeline.io.retry, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(pipeline.io.retry, "RETRY_SECONDS", 0.1)
    with pytest.raises(StorageUnavailableError, match=r"s3://bucket/scene\.zarr: has not responded for 0 s"):
        next(drawn.shuffled(batch=512, seed=1, epoch=0))


class StoreLostAfterFirstWindow(UnavailableStore):
    """Store that becomes unavailable when the second window is read."""

    def read_source(self, name: str, window: Window, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        if len(self.reads) > 1:
            self.failures = 10**9
        return super().read_source(name, window, **how)


def test_closing_batches_does_not_wait_for_unavailable_store(dense: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When training is interrupted, the threads stop at once instead of when the retries end."""
    monkeypatch.setattr(pipeline.io.retry, "FIRST_WAIT", 6.0)
    monkeypatch.setattr(pipeline.io.retry, "RETRY_SECONDS", 10.0)
    retrying = threading.Event()
    store = StoreLostAfterFirstWindow(dense.labels, failures=0)
    drawn = make_sampler(store, group_windows=1, report=lambda line: retrying.set())
    batches = drawn.shuffled(batch=512, seed=1, epoch=0)
    next(batches)
    assert retrying.wait(5), "the second window must be read while the first is in use"
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 3
    assert not prefetch_threads()
