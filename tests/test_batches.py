"""The batches of a worker: what is drawn how often, in which order, from where on, and by which threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, pairwise, takewhile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.batches
import pipeline.patience
from jobs.workspace import Workspace
from mibf.bundle import ClassName
from mibf.errors import InputError
from mibf.scaling import BandScaling, Scaling, scaling_from_json
from mibf.training import Batch
from pipeline import storage
from pipeline.ahead import Background
from pipeline.batches import Position, ReadError, Sampler, scaled_window
from pipeline.grid import Window, reflected, windows
from pipeline.labels import UNLABELLED
from pipeline.order import Draws, epoch_of, expected_draws, grouped, rounded_draws, times_drawn
from pipeline.patience import AwayError
from pipeline.split import CODES
from pipeline.store import CHUNK, PatchStore, StoredSource
from tests.conftest import COLUMNS, ROWS, SmallScene

Prepared = tuple[SmallScene, Workspace]
PATCH = 5


class MemoryStore:
    """A store in memory that counts what is read; each pixel of the first source holds its own place in the grid."""

    url = "/memory/scene.zarr"
    classes = tuple(ClassName(i, str(i), "#000000") for i in (3, 1, 7))

    def __init__(self, labels: np.ndarray, *, scales: tuple[int, ...] = (1, 2), torn: Window | None = None) -> None:
        self.labels, self.shape, self.torn = labels, labels.shape, torn
        self.sources = tuple(StoredSource(f"source {s}", 2, "exclude", s) for s in scales)
        self.reads: Counter[Window] = Counter()
        self.values = {}
        for source in self.sources:
            rows, columns = (size * source.scale for size in self.shape)
            place = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
            self.values[source.name] = np.stack([place, np.random.default_rng(0).random(place.shape, np.float32)])

    def windows_with_samples(self, _: str) -> list[tuple[Window, np.ndarray]]:
        found = []
        for window in windows(self.shape, CHUNK):
            ids = self.labels[window.slices]
            counts = np.array([(ids == c.id).sum() for c in self.classes])
            found += [(window, counts)] if counts.any() else []
        return found

    def samples(self, window: Window) -> dict[str, np.ndarray]:
        self.reads[window] += 1
        return dict.fromkeys(("train", "validation"), self.labels[window.slices])

    def read_source(self, name: str, window: Window, *, halo: int = 0) -> tuple[np.ndarray, np.ndarray]:
        if window == self.torn:
            raise OSError("checksum mismatch")
        s = next(source.scale for source in self.sources if source.name == name)
        rows, columns = (
            reflected((start - halo) * s, (start + size + halo) * s, whole * s)
            for start, size, whole in zip((window.y, window.x), (window.height, window.width), self.shape, strict=True)
        )
        values = self.values[name][:, rows[:, None], columns]
        return values, np.ones(values.shape[1:], bool)


def plain_scaling(store: MemoryStore) -> Scaling:
    """A scaling that changes no value but by a power of two."""
    bands = BandScaling(low=np.zeros(2, np.float32), high=np.float32([2**24, 1]), fill=np.zeros(2, np.float32))
    return {source.name: bands for source in store.sources}


def sampler(store: Any, **more: Any) -> Sampler:
    return Sampler([store], plain_scaling(store), PATCH, more.pop("subset", "train"), **more)


def scattered(shape: tuple[int, int], shares: Iterable[float], *, seed: int = 0) -> np.ndarray:
    """Labels of classes 3, 1 and 7, each on its share of the pixels."""
    shares = list(shares)
    ids = np.random.default_rng(seed).choice([3, 1, 7, UNLABELLED], size=shape, p=[*shares, 1 - sum(shares)])
    return ids.astype(np.uint8)


@pytest.fixture(scope="module")
def dense() -> MemoryStore:
    """Two by two windows, all labelled: one class common, one middling, one rare."""
    return MemoryStore(scattered((2 * CHUNK, 2 * CHUNK), (0.7, 0.28, 0.02)))


@pytest.fixture(scope="module")
def uneven() -> MemoryStore:
    """Windows of unequal numbers of samples, those at the far edges cut."""
    labels = scattered((300, 333), (0.03, 0.01, 0.001))
    labels[:CHUNK, :CHUNK] = scattered((CHUNK, CHUNK), (0.6, 0.3, 0.1))
    labels[CHUNK : 2 * CHUNK, :CHUNK] = UNLABELLED
    return MemoryStore(labels)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of one or two windows, so that a small scene has several."""
    monkeypatch.setattr(pipeline.batches, "GROUP_BYTES", 1)
    monkeypatch.setattr(pipeline.batches, "FEWEST", 1)
    monkeypatch.setattr(pipeline.batches, "KEPT_BYTES", 0)


def places(batch: Batch) -> np.ndarray:
    """Where each sample of a batch lies, (y * columns + x), from what the centre of its first source's patch holds."""
    return np.rint(batch.sources[0][:, 0, PATCH // 2, PATCH // 2] * 2.0**24).astype(np.int64)


def content(batches: Iterable[Batch]) -> list[bytes]:
    return [b"".join(np.ascontiguousarray(x).tobytes() for x in (*b.sources, b.labels)) for b in batches]


# ---------------------------------------------------------------------------------------------- what is drawn how often


@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=12).filter(any), st.sampled_from(["natural", "balanced", "sqrt"])
)
def test_shares_of_classes_are_what_they_are_called_and_add_up_to_the_samples(counts: list[int], how: Any) -> None:
    samples = np.array(counts)
    drawn = expected_draws(samples, how) * samples
    assert drawn.sum() == pytest.approx(samples.sum())
    present = samples[samples > 0]
    weight = {"natural": present, "balanced": np.ones(len(present)), "sqrt": np.sqrt(present)}[how]
    assert drawn[samples > 0] == pytest.approx(samples.sum() * weight / weight.sum())
    assert (drawn[samples == 0] == 0).all()


@given(st.lists(st.integers(0, 16384), min_size=3, max_size=3), st.integers(0, 2**31), st.integers(0, 99))
def test_draws_are_rounded_up_or_down_and_natural_ones_are_the_samples(counts: list[int], seed: int, place: int) -> None:
    samples, expected = np.array(counts), np.array([0.3, 1.0, 7.7])
    draws = rounded_draws(samples, expected, seed=seed, epoch=0, place=place, lap=0).draws
    assert (np.abs(draws - samples * expected) < 1).all()
    assert draws[1] == samples[1]


def test_rounding_keeps_the_expected_number_of_a_class_of_one_sample_a_window() -> None:
    drawn = sum(
        rounded_draws(np.array([1]), np.array([0.25]), seed=3, epoch=1, place=place, lap=0).draws[0] for place in range(4000)
    )
    assert drawn == pytest.approx(1000, abs=5 * np.sqrt(4000 * 0.25 * 0.75))


@pytest.mark.parametrize("how", ["balanced", "sqrt"])
def test_an_epochs_classes_have_the_frequencies_asked_for(uneven: MemoryStore, how: Any) -> None:
    samples = np.array([(uneven.labels == c.id).sum() for c in uneven.classes])
    wanted = expected_draws(samples, how) * samples / samples.sum()
    found = np.zeros(3)
    for rank in range(2):
        for batch in sampler(uneven, rank=rank, workers=2, frequencies=how).shuffled(batch=50, seed=0, epoch=0):
            found += np.bincount(batch.labels, minlength=3)
    assert found / found.sum() == pytest.approx(wanted, abs=0.01)  # less than a batch is left over
    assert np.abs(found / found.sum() - samples / samples.sum()).max() > 0.1, "the natural ones are others"


def test_samples_of_a_class_are_drawn_equally_often_but_for_one(dense: MemoryStore) -> None:
    batches = list(sampler(dense, frequencies="balanced").shuffled(batch=64, seed=0, epoch=0))
    drawn = np.bincount(np.concatenate([places(b) for b in batches]), minlength=dense.labels.size)
    for c, share in zip(dense.classes, (0.7, 0.28, 0.02), strict=True):
        times = drawn[dense.labels.ravel() == c.id]
        expected = 1 / 3 / share
        assert times.mean() == pytest.approx(expected, rel=0.05)
        # A window's draws are rounded; the next window's samples may be drawn once more or less.
        assert times.max() - times.min() <= 2


def test_all_workers_together_draw_every_sample_once(dense: MemoryStore) -> None:
    drawn = [
        places(b) for rank in range(2) for b in sampler(dense, rank=rank, workers=2).shuffled(batch=128, seed=5, epoch=2)
    ]
    assert (np.sort(np.concatenate(drawn)) == np.arange(dense.labels.size)).all()


@given(st.integers(1, 7), st.integers(2, 90), st.integers(0, 2**31))
@settings(max_examples=15)
def test_no_sample_is_drawn_twice_and_less_than_a_batch_a_worker_is_left(
    uneven: MemoryStore, workers: int, batch: int, seed: int
) -> None:
    drawn = [
        places(b)
        for rank in range(workers)
        for b in sampler(uneven, rank=rank, workers=workers).shuffled(batch=batch, seed=seed, epoch=0)
    ]
    times = np.bincount(np.concatenate(drawn), minlength=uneven.labels.size)
    labelled = uneven.labels.ravel() != UNLABELLED
    assert times.max() == 1
    assert not times[~labelled].any()
    assert labelled.sum() - times.sum() < batch * workers


def test_one_workers_epoch_repeats_no_sample_and_labels_are_its_own(uneven: MemoryStore) -> None:
    batches = list(sampler(uneven).shuffled(batch=64, seed=0, epoch=0))
    drawn = np.concatenate([places(b) for b in batches])
    assert len(drawn) == len(set(drawn))
    ids = np.array([c.id for c in uneven.classes])
    assert (ids[np.concatenate([b.labels for b in batches])] == uneven.labels.ravel()[drawn]).all()


# ------------------------------------------------------------------------------------------------ order, workers, steps


@given(st.integers(0, 2**40), st.integers(0, 50), st.integers(1, 5), st.sampled_from(["natural", "balanced"]))
@settings(max_examples=30)
def test_every_draw_is_dealt_once_and_shares_differ_by_one(seed: int, epoch: int, workers: int, how: Any) -> None:
    samples = np.random.default_rng(seed).integers(0, 400, (23, 3)) + 1
    drawn = [np.zeros(n, np.int64) for n in samples.sum(axis=1)]
    totals, whole = [], {}
    for rank in range(workers):
        parts = epoch_of(samples, frequencies=how, seed=seed, epoch=epoch, rank=rank, workers=workers)
        totals.append(0)
        for part in takewhile(lambda part: part.lap == 0, parts):
            times = times_drawn(part, np.random.default_rng(part.place))
            assert times.sum() == part.total
            assert (times > 0).sum() <= part.distinct
            drawn[part.place] += times
            whole[part.place] = times_drawn(replace(part, begin=0, end=part.draws.sum()), np.random.default_rng(part.place))
            totals[-1] += part.total
    assert max(totals) - min(totals) <= 1
    assert all((drawn[place] == whole[place]).all() for place in range(23))


def test_a_worker_that_is_dealt_no_window_takes_all() -> None:
    parts = epoch_of(np.array([[1, 1]]), frequencies="natural", seed=0, epoch=0, rank=0, workers=3)
    assert [(p.place, p.lap, p.total) for p in islice(parts, 3)] == [(0, 0, 2), (0, 1, 2), (0, 2, 2)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_a_group_is_of_as_many_windows_as_fit(sizes: list[int], limit: int) -> None:
    parts = [Draws.whole(i, i // 20, np.array([n]), np.array([n])) for i, n in enumerate(sizes)]
    groups = list(grouped(parts, size=lambda part: part.total, limit=limit))
    assert [part for group in groups for part in group.parts] == parts
    assert [group.number for group in groups] == list(range(len(groups)))
    for group in groups:
        assert len(group.parts) == 1 or group.total <= limit
        assert len({part.lap for part in group.parts}) == 1
    for one, after in pairwise(groups):
        assert one.total + after.parts[0].total > limit or one.parts[0].lap != after.parts[0].lap


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("how", ["natural", "sqrt"])
def test_an_epoch_is_a_function_of_seed_epoch_and_rank(uneven: MemoryStore, how: Any) -> None:
    def epoch(*, rank: int = 0, seed: int = 0, number: int = 0, background: bool = True) -> list[bytes]:
        part = sampler(uneven, rank=rank, workers=2, frequencies=how, augment=True, background=background)
        return content(part.shuffled(batch=100, seed=seed, epoch=number))

    assert epoch() == epoch() == epoch(background=False)
    for other in (epoch(number=1), epoch(rank=1), epoch(seed=1)):
        assert not set(epoch()) & set(other)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_every_worker_takes_equally_many_full_batches(uneven: MemoryStore, workers: int) -> None:
    total = int((uneven.labels != UNLABELLED).sum())
    for rank in range(workers):
        part = sampler(uneven, rank=rank, workers=workers, frequencies="balanced")
        sizes = [len(b.labels) for b in part.shuffled(batch=40, seed=0, epoch=0)]
        assert sizes == [40] * part.steps(40) == [40] * (total // (40 * workers))


def test_a_batch_larger_than_all_samples_is_filled_by_more_passes() -> None:
    few = MemoryStore(np.full((9, 9), UNLABELLED, np.uint8))
    few.labels[4, 2:7] = 3
    (batch,) = sampler(few).shuffled(batch=12, seed=0, epoch=0)
    assert sorted(Counter(places(batch)).values()) == [2, 2, 2, 3, 3]


def test_a_batch_is_mixed_from_all_the_windows_of_its_group() -> None:
    """Sixteen windows, each of its own class mixture: the classes and windows of a batch are as of a random sample."""
    labels = np.full((4 * CHUNK, 4 * CHUNK), UNLABELLED, np.uint8)
    for number, window in enumerate(windows(labels.shape, CHUNK)):
        labels[window.slices][::4, ::4] = [3, 1, 7][number % 3]
    store = MemoryStore(labels, scales=(1, 1))
    batches = list(sampler(store).shuffled(batch=256, seed=1, epoch=0))
    for batch in batches:
        y, x = np.divmod(places(batch), labels.shape[1])
        counts = np.bincount(y // CHUNK * 4 + x // CHUNK, minlength=16)
        # Chi-squared of 15 degrees of freedom: above 45 once in 10,000 batches.
        assert ((counts - 16) ** 2 / 16).sum() < 45
    # Neighbours in the order are no nearer to each other on the ground than chance has it.
    y, x = np.divmod(np.concatenate([places(b) for b in batches]), labels.shape[1])
    near = (np.abs(np.diff(y)) < 32) & (np.abs(np.diff(x)) < 32)
    assert near.mean() < 0.04  # (2 * 32 / 512)^2 = 0.016 by chance


def test_sparse_labels_are_mixed_over_more_windows_than_fit_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.batches, "GROUP_BYTES", 1)
    monkeypatch.setattr(pipeline.batches, "FEWEST", 1)
    store = MemoryStore(scattered((4 * CHUNK, 4 * CHUNK), (0.001, 0.001, 0.001)), scales=(1, 1))
    (batch,) = islice(sampler(store).shuffled(batch=48, seed=0, epoch=0), 1)
    y, x = np.divmod(places(batch), store.shape[1])
    assert len(set(zip(y // CHUNK, x // CHUNK, strict=True))) > 8


# --------------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(("rank", "workers"), [(0, 1), (0, 2), (2, 3)])
@pytest.mark.parametrize(("how", "augment"), [("natural", False), ("balanced", True)])
def test_resuming_equals_never_having_stopped(
    uneven: MemoryStore, background: bool, rank: int, workers: int, how: Any, augment: bool
) -> None:
    part = sampler(uneven, rank=rank, workers=workers, frequencies=how, augment=augment, background=background)
    whole = content(part.shuffled(batch=300, seed=4, epoch=1))
    for start in {0, 1, 2, len(whole) // 2, len(whole) - 1, len(whole)}:
        assert content(part.shuffled(batch=300, seed=4, epoch=1, start=start)) == whole[start:]


@pytest.mark.parametrize("background", [False, True])
def test_a_small_scene_is_read_once_and_gives_the_same_batches(
    dense: MemoryStore, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def epochs() -> list[Any]:
        part = sampler(dense, background=background, augment=True)
        return [content(part.shuffled(batch=256, seed=0, epoch=epoch)) for epoch in range(3)]

    dense.reads.clear()
    kept = epochs()
    assert set(dense.reads.values()) == {1}
    monkeypatch.setattr(pipeline.batches, "KEPT_BYTES", 0)
    dense.reads.clear()
    assert epochs() == kept
    assert set(dense.reads.values()) == {3}


@pytest.mark.usefixtures("narrow")
def test_resuming_reads_no_window_that_lies_before(dense: MemoryStore) -> None:
    part = sampler(dense)
    steps = part.steps(256)  # 64 a window
    for start, read in ((0, 4), (63, 4), (64, 3), (130, 2), (steps - 1, 1), (steps, 0)):
        dense.reads.clear()
        list(part.shuffled(batch=256, seed=0, epoch=0, start=start))
        assert dense.reads.total() == len(dense.reads) == read


def test_a_position_beyond_the_epoch_is_refused(dense: MemoryStore) -> None:
    part = sampler(dense)
    for step in (part.steps(64) + 1, -1):
        with pytest.raises(InputError, match=rf"step {step} of epoch 3: an epoch has 1024 steps of 64 samples a worker"):
            part.shuffled(batch=64, seed=0, epoch=3, start=step)


@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_position_survives_json(epoch: int, step: int) -> None:
    assert Position.from_json(Position(epoch, step).to_json()) == Position(epoch, step)


@pytest.mark.parametrize(
    "value", [None, {}, [1, 2], {"epoch": 1}, {"epoch": -1, "step": 0}, {"epoch": 0.5, "step": 0}, {"epoch": 0, "step": "1"}]
)
def test_what_is_no_position_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="no position in the training data"):
        Position.from_json(value)


def test_a_subset_without_samples_is_refused() -> None:
    empty = MemoryStore(np.full((20, 20), UNLABELLED, np.uint8))
    with pytest.raises(InputError, match="no sample in the subset 'train'"):
        sampler(empty).shuffled(batch=4, seed=0, epoch=0)
    assert list(sampler(empty).in_order(batch=4)) == []


# ---------------------------------------------------------------------------------------------------------------- patches


def test_samples_of_all_scenes_are_drawn_and_mixed() -> None:
    one, other = (MemoryStore(scattered((CHUNK, CHUNK), shares)) for shares in ((0.5, 0.3, 0), (0, 0, 0.8)))
    part = Sampler([one, other], plain_scaling(one), PATCH, "train")
    batches = list(part.shuffled(batch=100, seed=0, epoch=0))
    counts = np.array([np.bincount(b.labels, minlength=3) for b in batches])
    total = sum((store.labels != UNLABELLED).sum() for store in (one, other))
    assert counts.sum() == total // 100 * 100
    assert (np.abs(counts[:, 2] - 50) < 5 * 5).all()  # 5 standard deviations of what chance has


@pytest.mark.parametrize("labelled", [0.9, 0.002])  # windows held whole, and as patches alone
@pytest.mark.parametrize("scales", [(1, 1), (1, 2), (1, 4, 2)])
def test_patches_are_plain_cuts_in_each_sources_own_pixels(labelled: float, scales: tuple[int, ...]) -> None:
    store = MemoryStore(scattered((150, 140), (labelled / 2, labelled / 4, labelled / 4)), scales=scales)
    seen = 0
    halo = PATCH // 2
    padded = [
        np.stack([np.pad(band, s.scale * halo, mode="reflect") for band in store.values[s.name]]) for s in store.sources
    ]
    for batch in islice(sampler(store).shuffled(batch=20, seed=0, epoch=0), 20):
        for number, place in enumerate(places(batch)):
            y, x = divmod(int(place), store.shape[1])
            for source, whole, found in zip(store.sources, padded, batch.sources, strict=True):
                s = source.scale
                cut = whole[:, y * s : (y + PATCH) * s, x * s : (x + PATCH) * s]
                assert found.shape[1:] == (2, PATCH * s, PATCH * s)
                assert (found[number] * np.float32([2**24, 1])[:, None, None] == cut).all()
            seen += 1
    assert seen >= 20


def test_patches_of_a_real_store_are_cuts_of_its_scaled_scene(prepared: Prepared) -> None:
    store = PatchStore(prepared[1].store("small"))
    scaling = scaling_from_json(storage.read_json(prepared[1].scaling))
    whole = scaled_window(store, Window(0, 0, ROWS, COLUMNS), scaling, halo=2)
    labels = store.array("labels")[:]
    chosen = (labels != UNLABELLED) & (store.array("split")[:] == CODES["validation"])
    rows, columns = np.nonzero(chosen & store.array("valid/optical")[:].astype(bool))
    wanted = {
        whole[0][:, y : y + 5, x : x + 5].tobytes(): (whole[1][:, y : y + 5, x : x + 5], labels[y, x])
        for y, x in zip(rows, columns, strict=True)
    }
    ids = [c.id for c in store.classes]
    part = Sampler([store], scaling, 5, "validation")
    assert part.samples() == len(rows) == len(wanted)
    seen = set()
    for batch in part.in_order(batch=37):
        for optical, radar, label in zip(*batch.sources, batch.labels, strict=True):
            key = np.ascontiguousarray(optical).tobytes()
            assert (radar == wanted[key][0]).all()
            assert ids[label] == wanted[key][1]
            seen.add(key)
    assert seen == set(wanted)


def test_patches_lie_channels_last(dense: MemoryStore) -> None:
    (batch,) = islice(sampler(dense).shuffled(batch=8, seed=0, epoch=0), 1)
    for source in batch.sources:
        assert source.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("labelled", [0.9, 0.002])
def test_augmented_patches_are_the_squares_eight_symmetries_the_same_in_all_sources(labelled: float) -> None:
    store = MemoryStore(scattered((150, 140), (labelled / 2, labelled / 4, labelled / 4)), scales=(1, 2))
    plain, turned = (
        list(islice(sampler(store, augment=on).shuffled(batch=20, seed=0, epoch=0), 200)) for on in (False, True)
    )
    met: Counter[int] = Counter()
    for one, other in zip(plain, turned, strict=True):
        assert (one.labels == other.labels).all(), "the order is the same"
        for number in range(len(one.labels)):
            for symmetry in range(8):
                wanted = [np.rot90(x[number], symmetry % 4, axes=(1, 2)) for x in one.sources]
                wanted = [np.flip(x, axis=2) for x in wanted] if symmetry >= 4 else wanted
                if all((x[number] == w).all() for x, w in zip(other.sources, wanted, strict=True)):
                    met[symmetry] += 1
                    break
            else:
                pytest.fail("no symmetry leads from the plain patches to the turned ones")
    total = met.total()
    assert set(met) == set(range(8))
    assert all(abs(n - total / 8) < 5 * np.sqrt(total * 7 / 64) for n in met.values())


# ------------------------------------------------------------------------------------------------------------------ dropout


def off_the_middle(store: MemoryStore) -> Scaling:
    """A scaling whose fill values are scaled to constants that no pixel of the store has, another one for each band."""
    bands = plain_scaling(store)[store.sources[0].name]
    fills = (np.float32([2**24 * (0.9 - 0.1 * i), 1 / 3 + i]) for i in range(len(store.sources)))
    return {source.name: replace(bands, fill=fill) for source, fill in zip(store.sources, fills, strict=True)}


def dropping(store: MemoryStore, share: float, **more: Any) -> Sampler:
    return replace(sampler(store, **more), scaling=off_the_middle(store), source_dropout=share)


def lost(batch: Batch, scaling: Scaling) -> np.ndarray:
    """Whether each sample's patch of each source is what there is without data, (B, sources)."""
    constants = (bands.apply(np.zeros((2, 1, 1)), np.zeros((1, 1), bool)) for bands in scaling.values())
    return np.stack([(x == c).all(axis=(1, 2, 3)) for x, c in zip(batch.sources, constants, strict=True)], axis=1)


@pytest.mark.parametrize("labelled", [0.9, 0.02])  # windows held whole, and as patches alone
@pytest.mark.parametrize("scales", [(1, 2), (1, 2, 4)])
def test_a_dropped_sample_loses_one_source_for_the_whole_patch_and_nothing_else(
    labelled: float, scales: tuple[int, ...]
) -> None:
    store = MemoryStore(scattered((260, 240), (labelled / 2, labelled / 4, labelled / 4)), scales=scales)
    plain, dropped = (
        list(islice(dropping(store, share, augment=True).shuffled(batch=100, seed=0, epoch=0), 12)) for share in (0.0, 0.5)
    )
    gone = np.concatenate([lost(b, off_the_middle(store)) for b in dropped])
    assert not np.concatenate([lost(b, off_the_middle(store)) for b in plain]).any()
    assert set(gone.sum(axis=1)) == {0, 1}, "at the most one source each"
    for number, (one, other) in enumerate(zip(plain, dropped, strict=True)):
        assert (one.labels == other.labels).all()
        for source, (x, y) in enumerate(zip(one.sources, other.sources, strict=True)):
            kept = ~gone[number * 100 : (number + 1) * 100, source]
            assert (x[kept] == y[kept]).all(), "order, turns and the other sources are as without dropout"
    samples, sources = gone.shape
    assert abs(gone.sum() - samples / 2) < 5 * np.sqrt(samples / 4)
    for of_source in gone.sum(axis=0):
        p = 0.5 / sources
        assert abs(of_source - samples * p) < 5 * np.sqrt(samples * p * (1 - p))


def test_a_lost_source_is_what_the_scaling_gives_where_there_is_no_data(prepared: Prepared) -> None:
    """Of real limits: bit for bit what mapping shows."""
    store = PatchStore(prepared[1].store("small"))
    scaling = scaling_from_json(storage.read_json(prepared[1].scaling))
    part = Sampler([store], scaling, 5, "train", source_dropout=0.9)
    (batch,) = islice(part.shuffled(batch=200, seed=0, epoch=0), 1)
    for found, (name, bands) in zip(batch.sources, scaling.items(), strict=True):
        values, valid = store.read_source(name, Window(0, 0, 5, 5))
        shown = bands.apply(values, np.zeros_like(valid))
        assert (shown == bands.filled[:, None, None]).all()
        assert 50 < (found == shown).all(axis=(1, 2, 3)).sum() < 130


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("workers", [1, 2])
def test_draws_of_dropout_are_of_seed_epoch_and_worker_alone(uneven: MemoryStore, workers: int) -> None:
    def gone(seed: int, epoch: int, rank: int, **more: Any) -> list[bytes]:
        part = dropping(uneven, 0.3, rank=rank, workers=workers, **more)
        return [lost(b, part.scaling).tobytes() for b in part.shuffled(batch=64, seed=seed, epoch=epoch)]

    first = gone(3, 1, 0)
    assert gone(3, 1, 0) == first
    assert gone(3, 1, 0, background=False) == first
    others = [gone(4, 1, 0), gone(3, 2, 0)] + ([gone(3, 1, 1)] if workers > 1 else [])
    assert all(other[: len(first)] != first[: len(other)] for other in others)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("start", [1, 50, 90])
def test_a_resumed_epoch_loses_the_same_sources(uneven: MemoryStore, start: int) -> None:
    part = dropping(uneven, 0.4, frequencies="balanced", augment=True)
    whole = content(part.shuffled(batch=100, seed=0, epoch=0))
    assert content(part.shuffled(batch=100, seed=0, epoch=0, start=start)) == whole[start:]


def test_validation_loses_nothing_and_no_dropout_changes_nothing(uneven: MemoryStore) -> None:
    plain = sampler(uneven, subset="validation", frequencies="sqrt", augment=True)
    assert content(replace(plain, source_dropout=0.9).in_order(batch=100)) == content(plain.in_order(batch=100))
    never = replace(plain, source_dropout=0.0).shuffled(batch=100, seed=2, epoch=1)
    assert content(never) == content(plain.shuffled(batch=100, seed=2, epoch=1))


def test_the_only_source_cannot_be_lost() -> None:
    store = MemoryStore(scattered((40, 40), (0.5, 0.3, 0.1)), scales=(1,))
    with pytest.raises(ValueError, match="the only source"):
        next(sampler(store, source_dropout=0.5).shuffled(batch=10, seed=0, epoch=0))


# --------------------------------------------------------------------------------------------------- validation, in order


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("workers", [1, 3])
def test_in_order_each_sample_comes_once_in_the_grids_order(uneven: MemoryStore, workers: int) -> None:
    drawn = []
    for rank in range(workers):
        batches = list(sampler(uneven, subset="validation", rank=rank, workers=workers).in_order(batch=50))
        assert all(len(b.labels) == 50 for b in batches[:-1])
        assert 0 < len(batches[-1].labels) <= 50
        y, x = np.divmod(np.concatenate([places(b) for b in batches]), uneven.shape[1])
        order = np.lexsort((x, y, x // CHUNK, y // CHUNK))  # windows row by row, and pixels within
        assert (order == np.arange(len(order))).all()
        drawn.append(y * uneven.shape[1] + x)
    assert (np.sort(np.concatenate(drawn)) == np.flatnonzero(uneven.labels != UNLABELLED)).all()


# ------------------------------------------------------------------------------------------------------------------ threads


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mibf-")]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("taken", [0, 1, 40])
def test_closing_early_ends_the_threads(dense: MemoryStore, taken: int) -> None:
    batches = sampler(dense).shuffled(batch=64, seed=0, epoch=0)
    list(islice(batches, taken))
    assert sorted(ours()) == (["mibf-cut", "mibf-read"] if taken else [])
    batches.close()  # type: ignore[attr-defined]  # it is a generator
    assert not ours()


def test_an_epoch_taken_whole_ends_the_threads(dense: MemoryStore) -> None:
    assert len(list(sampler(dense).in_order(batch=5000))) == 14
    assert not ours()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("background", [True, False])
def test_a_window_that_cannot_be_read_is_named_with_its_cause(background: bool) -> None:
    torn = Window(CHUNK, 0, CHUNK, CHUNK)
    store = MemoryStore(scattered((2 * CHUNK, 2 * CHUNK), (0.5, 0.2, 0.1)), torn=torn)
    taken = []
    with pytest.raises(ReadError, match=r"/memory/scene.zarr: the window .* row 128, column 0 .*checksum") as caught:
        taken.extend(sampler(store, background=background).in_order(batch=100))
    assert isinstance(caught.value.__cause__, OSError)
    before = int((store.labels[:CHUNK] != UNLABELLED).sum())
    assert len(taken) == before // 100, "every whole batch before it was given out"
    assert not ours()


def test_a_table_of_samples_that_is_not_the_labels_is_refused() -> None:
    store = MemoryStore(scattered((CHUNK, CHUNK), (0.5, 0.2, 0.1)))
    part = sampler(store)
    assert part.samples()
    store.labels = np.full_like(store.labels, 3)
    with pytest.raises(ReadError, match="table says"):
        list(part.in_order(batch=100))


def test_no_more_is_made_ahead_than_asked_for() -> None:
    made = []

    def items() -> Any:
        for number in range(10):
            made.append(number)
            yield number

    taken = Background().ahead(items(), depth=3, name="mibf-test")
    assert next(taken) == 0
    time.sleep(0.1)
    assert made == [0, 1, 2, 3]
    taken.close()
    assert not ours()


def test_the_maker_is_closed_in_its_own_thread() -> None:
    closed = []

    def items() -> Any:
        try:
            yield from range(10)
        finally:
            closed.append(threading.current_thread().name)

    taken = Background().ahead(items(), depth=1, name="mibf-test")
    assert next(taken) == 0
    taken.close()
    assert closed == ["mibf-test"]


class AwayStore(MemoryStore):
    """A store in an object store that does not answer for some tries at anything."""

    url = "s3://bucket/scene.zarr"

    def __init__(self, labels: np.ndarray, *, away: int) -> None:
        super().__init__(labels)
        self.away = away

    def _answer(self) -> None:
        self.away -= 1
        if self.away >= 0:
            raise ConnectionError("nobody there")

    def windows_with_samples(self, subset: str) -> list[tuple[Window, np.ndarray]]:
        self._answer()
        return super().windows_with_samples(subset)

    def read_source(self, name: str, window: Window, *, halo: int = 0) -> tuple[np.ndarray, np.ndarray]:
        self._answer()
        return super().read_source(name, window, halo=halo)


@pytest.mark.parametrize("background", [False, True])
def test_a_store_that_is_away_for_a_while_gives_the_same_batches_later(
    dense: MemoryStore, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.patience, "FIRST_WAIT", 0.01)
    told: list[str] = []
    store = AwayStore(dense.labels, away=2)
    away = sampler(store, background=background, tell=told.append)
    assert away.samples() == sampler(dense).samples()
    store.away = 5
    for one, other in zip(
        away.shuffled(batch=512, seed=1, epoch=0), sampler(dense).shuffled(batch=512, seed=1, epoch=0), strict=True
    ):
        assert (one.labels == other.labels).all()
        assert all((a == b).all() for a, b in zip(one.sources, other.sources, strict=True))
    assert told
    assert all(line.startswith("s3://bucket/scene.zarr: does not answer (ConnectionError: nobody there)") for line in told)


@pytest.mark.parametrize("background", [False, True])
def test_a_store_that_stays_away_ends_it_with_its_name(
    dense: MemoryStore, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AwayStore(dense.labels, away=0)
    drawn = sampler(store, background=background)
    assert drawn.samples()
    store.away = 10**9
    monkeypatch.setattr(pipeline.patience, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(pipeline.patience, "PATIENCE", 0.1)
    with pytest.raises(AwayError, match=r"s3://bucket/scene\.zarr: has not answered for 0 s"):
        next(drawn.shuffled(batch=512, seed=1, epoch=0))


def test_who_wants_no_more_batches_does_not_wait_for_a_store_that_is_away(dense: MemoryStore) -> None:
    """As when training is interrupted: the threads end, rather than after ten minutes."""
    store = AwayStore(dense.labels, away=0)
    drawn = sampler(store, group_windows=1)
    batches = drawn.shuffled(batch=512, seed=1, epoch=0)
    next(batches)
    store.away = 10**9
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mibf-")]
