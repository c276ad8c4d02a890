"""The shuffle buffer mixes windows and gathers patches: plain, augmented or without one source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

import pipeline.sampling.sampler
from jobs.workflow.workspace import Workspace
from mibf.normalization import Scaling, scaling_from_json
from mibf.training.batch import Batch, BatchPlacer, WindowBatch
from pipeline.codes import CODES, UNLABELLED
from pipeline.grid import Window, windows
from pipeline.io import storage
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore, scaled_window
from pipeline.store.template import CHUNK
from tests.support.memory_store import PATCH, MemoryStore, batch_bytes, make_sampler, places, plain_scaling, scattered_labels
from tests.support.scenes import COLUMNS, ROWS, SmallScene

Prepared = tuple[SmallScene, Workspace]


def test_batch_is_mixed_over_all_windows_of_its_group() -> None:
    """With sixteen windows of one class each, the windows in a batch are distributed like a random sample."""
    labels = np.full((4 * CHUNK, 4 * CHUNK), UNLABELLED, np.uint8)
    for number, window in enumerate(windows(labels.shape, CHUNK)):
        labels[window.slices][::4, ::4] = [3, 1, 7][number % 3]
    store = MemoryStore(labels, scales=(1, 1))
    batches = list(make_sampler(store).shuffled(batch=256, seed=1, epoch=0))
    for batch in batches:
        y, x = np.divmod(places(batch), labels.shape[1])
        counts = np.bincount(y // CHUNK * 4 + x // CHUNK, minlength=16)
        # Chi-squared with 15 degrees of freedom: above 45 once in 10,000 batches.
        assert ((counts - 16) ** 2 / 16).sum() < 45
    # Consecutive samples are no closer to each other on the ground than expected by chance.
    y, x = np.divmod(np.concatenate([places(b) for b in batches]), labels.shape[1])
    near = (np.abs(np.diff(y)) < 32) & (np.abs(np.diff(x)) < 32)
    assert near.mean() < 0.04  # expected by chance: (2 * 32 / 512)^2 = 0.016


def test_sparse_labels_are_mixed_over_more_windows_than_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.sampling.sampler, "GROUP_BYTES", 1)
    monkeypatch.setattr(pipeline.sampling.sampler, "FEWEST_WINDOWS", 1)
    store = MemoryStore(scattered_labels((4 * CHUNK, 4 * CHUNK), (0.001, 0.001, 0.001)), scales=(1, 1))
    (batch,) = islice(make_sampler(store).shuffled(batch=48, seed=0, epoch=0), 1)
    y, x = np.divmod(places(batch), store.shape[1])
    assert len(set(zip(y // CHUNK, x // CHUNK, strict=True))) > 8


def test_batches_mix_samples_of_all_scenes() -> None:
    one, other = (MemoryStore(scattered_labels((CHUNK, CHUNK), shares)) for shares in ((0.5, 0.3, 0), (0, 0, 0.8)))
    part = Sampler([one, other], plain_scaling(one), PATCH, "train")
    batches = list(part.shuffled(batch=100, seed=0, epoch=0))
    counts = np.array([np.bincount(b.labels, minlength=3) for b in batches])
    total = sum((store.labels != UNLABELLED).sum() for store in (one, other))
    assert counts.sum() == total // 100 * 100
    assert (np.abs(counts[:, 2] - 50) < 5 * 5).all()  # within 5 standard deviations of chance


@pytest.mark.parametrize("labelled", [0.9, 0.002])  # buffered as full windows, or as patches only
@pytest.mark.parametrize("scales", [(1, 1), (1, 2), (1, 4, 2)])
def test_patches_equal_plain_crops_at_each_source_scale(labelled: float, scales: tuple[int, ...]) -> None:
    store = MemoryStore(scattered_labels((150, 140), (labelled / 2, labelled / 4, labelled / 4)), scales=scales)
    seen = 0
    halo = PATCH // 2
    padded = [
        np.stack([np.pad(band, s.scale * halo, mode="reflect") for band in store.values[s.name]]) for s in store.sources
    ]
    for batch in islice(make_sampler(store).shuffled(batch=20, seed=0, epoch=0), 20):
        for number, place in enumerate(places(batch)):
            y, x = divmod(int(place), store.shape[1])
            for source, whole, found in zip(store.sources, padded, batch.sources, strict=True):
                s = source.scale
                cut = whole[:, y * s : (y + PATCH) * s, x * s : (x + PATCH) * s]
                assert found.shape[1:] == (2, PATCH * s, PATCH * s)
                assert (found[number] * np.float32([2**24, 1])[:, None, None] == cut).all()
            seen += 1
    assert seen >= 20


def test_patches_of_patch_store_equal_crops_of_scaled_scene(prepared: Prepared) -> None:
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


def test_patches_are_channels_last_in_memory(dense: MemoryStore) -> None:
    (batch,) = islice(make_sampler(dense).shuffled(batch=8, seed=0, epoch=0), 1)
    for source in batch.sources:
        assert source.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("labelled", [0.9, 0.002])
def test_augmentation_applies_same_square_symmetry_to_all_sources(labelled: float) -> None:
    store = MemoryStore(scattered_labels((150, 140), (labelled / 2, labelled / 4, labelled / 4)), scales=(1, 2))
    plain, turned = (
        list(islice(make_sampler(store, augment=on).shuffled(batch=20, seed=0, epoch=0), 200)) for on in (False, True)
    )
    met: Counter[int] = Counter()
    for one, other in zip(plain, turned, strict=True):
        assert (one.labels == other.labels).all(), "augmentation must not change the order"
        for number in range(len(one.labels)):
            for symmetry in range(8):
                wanted = [np.rot90(x[number], symmetry % 4, axes=(1, 2)) for x in one.sources]
                wanted = [np.flip(x, axis=2) for x in wanted] if symmetry >= 4 else wanted
                if all((x[number] == w).all() for x, w in zip(other.sources, wanted, strict=True)):
                    met[symmetry] += 1
                    break
            else:
                pytest.fail("no symmetry of the square maps the plain patches to the augmented ones")
    total = met.total()
    assert set(met) == set(range(8))
    assert all(abs(n - total / 8) < 5 * np.sqrt(total * 7 / 64) for n in met.values())


#: Each mirror by independent array operations on patches (C, y, x), y from north to south and x from west to east.
MIRRORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirror_east_west": lambda x: x[:, :, ::-1],
    "mirror_north_south": lambda x: x[:, ::-1],
    "mirror_northeast_southwest": lambda x: x.transpose(0, 2, 1),
    "mirror_northwest_southeast": lambda x: x[:, ::-1, ::-1].transpose(0, 2, 1),
}
#: Unit vectors (y, x) towards the sun that a mirror must not turn.
SUN = {
    "mirror_east_west": [(1, 0), (-1, 0)],
    "mirror_north_south": [(0, 1), (0, -1)],
    "mirror_northeast_southwest": [(1, 1), (-1, -1)],
    "mirror_northwest_southeast": [(1, -1), (-1, 1)],
}


@pytest.mark.parametrize("name", MIRRORS)
def test_mirror_keeps_the_direction_of_the_sun(name: str) -> None:
    """A plane that rises towards the sun is the same after the mirror, and one that rises to the side is not."""
    y, x = np.indices((5, 5)) - 2
    for towards in SUN[name]:
        assert (MIRRORS[name]((towards[0] * y + towards[1] * x)[None]) == towards[0] * y + towards[1] * x).all()
        aside = towards[1] * y - towards[0] * x
        assert (MIRRORS[name](aside[None]) == -aside).all()


@pytest.mark.parametrize("name", MIRRORS)
@pytest.mark.parametrize("labelled", [0.9, 0.002])
def test_named_mirror_is_applied_to_half_of_the_samples_and_nothing_else_is(name: str, labelled: float) -> None:
    store = MemoryStore(scattered_labels((150, 140), (labelled / 2, labelled / 4, labelled / 4)), scales=(1, 2))
    plain, mirrored = (
        list(islice(make_sampler(store, augment=how).shuffled(batch=20, seed=0, epoch=0), 200)) for how in (False, name)
    )
    changed = 0
    for one, other in zip(plain, mirrored, strict=True):
        assert (one.labels == other.labels).all()
        for number in range(len(one.labels)):
            before, after = ([x[number] for x in batch.sources] for batch in (one, other))
            if all((a == b).all() for a, b in zip(before, after, strict=True)):
                continue
            assert all((MIRRORS[name](a) == b).all() for a, b in zip(before, after, strict=True))
            changed += 1
    total = sum(len(batch.labels) for batch in plain)
    assert abs(changed - total / 2) < 5 * np.sqrt(total / 4)


def distinct_fill_scaling(store: MemoryStore) -> Scaling:
    """Return a scaling whose fill values become constants, distinct per band, that no pixel of the store has."""
    bands = plain_scaling(store)[store.sources[0].name]
    fills = (np.float32([2**24 * (0.9 - 0.1 * i), 1 / 3 + i]) for i in range(len(store.sources)))
    return {source.name: replace(bands, fill=fill) for source, fill in zip(store.sources, fills, strict=True)}


def with_dropout(store: MemoryStore, share: float, **more: Any) -> Sampler:
    return replace(make_sampler(store, **more), scaling=distinct_fill_scaling(store), source_dropout=share)


def dropped_sources(batch: Batch, scaling: Scaling) -> np.ndarray:
    """Return whether each sample's patch of each source equals the nodata constant, (B, sources)."""
    constants = (bands.apply(np.zeros((2, 1, 1)), np.zeros((1, 1), bool)) for bands in scaling.values())
    return np.stack([(x == c).all(axis=(1, 2, 3)) for x, c in zip(batch.sources, constants, strict=True)], axis=1)


@pytest.mark.parametrize("labelled", [0.9, 0.02])  # buffered as full windows, or as patches only
@pytest.mark.parametrize("scales", [(1, 2), (1, 2, 4)])
def test_source_dropout_removes_one_source_of_full_patch_and_nothing_else(labelled: float, scales: tuple[int, ...]) -> None:
    store = MemoryStore(scattered_labels((260, 240), (labelled / 2, labelled / 4, labelled / 4)), scales=scales)
    plain, dropped = (
        list(islice(with_dropout(store, share, augment=True).shuffled(batch=100, seed=0, epoch=0), 12))
        for share in (0.0, 0.5)
    )
    is_dropped = np.concatenate([dropped_sources(b, distinct_fill_scaling(store)) for b in dropped])
    assert not np.concatenate([dropped_sources(b, distinct_fill_scaling(store)) for b in plain]).any()
    assert set(is_dropped.sum(axis=1)) == {0, 1}, "at most one source may be dropped per sample"
    for number, (one, other) in enumerate(zip(plain, dropped, strict=True)):
        assert (one.labels == other.labels).all()
        for source, (x, y) in enumerate(zip(one.sources, other.sources, strict=True)):
            kept = ~is_dropped[number * 100 : (number + 1) * 100, source]
            assert (x[kept] == y[kept]).all(), "order, augmentation and other sources must be the same as without dropout"
    samples, sources = is_dropped.shape
    assert abs(is_dropped.sum() - samples / 2) < 5 * np.sqrt(samples / 4)
    for of_source in is_dropped.sum(axis=0):
        p = 0.5 / sources
        assert abs(of_source - samples * p) < 5 * np.sqrt(samples * p * (1 - p))


def test_dropped_source_equals_scaled_nodata(prepared: Prepared) -> None:
    """With fitted normalization limits, the values are bit-identical to those used in mapping."""
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
def test_source_dropout_depends_only_on_seed_epoch_and_rank(uneven: MemoryStore, workers: int) -> None:
    def epoch_drops(seed: int, epoch: int, rank: int, **more: Any) -> list[bytes]:
        part = with_dropout(uneven, 0.3, rank=rank, workers=workers, **more)
        return [dropped_sources(b, part.scaling).tobytes() for b in part.shuffled(batch=64, seed=seed, epoch=epoch)]

    first = epoch_drops(3, 1, 0)
    assert epoch_drops(3, 1, 0) == first
    assert epoch_drops(3, 1, 0, background=False) == first
    others = [epoch_drops(4, 1, 0), epoch_drops(3, 2, 0)] + ([epoch_drops(3, 1, 1)] if workers > 1 else [])
    assert all(other[: len(first)] != first[: len(other)] for other in others)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("start", [1, 50, 90])
def test_resumed_epoch_drops_same_sources(uneven: MemoryStore, start: int) -> None:
    part = with_dropout(uneven, 0.4, frequencies="balanced", augment=True)
    whole = batch_bytes(part.shuffled(batch=100, seed=0, epoch=0))
    assert batch_bytes(part.shuffled(batch=100, seed=0, epoch=0, start=start)) == whole[start:]


def test_validation_has_no_dropout_and_zero_dropout_has_no_effect(uneven: MemoryStore) -> None:
    plain = make_sampler(uneven, subset="validation", frequencies="sqrt", augment=True)
    assert batch_bytes(replace(plain, source_dropout=0.9).in_order(batch=100)) == batch_bytes(plain.in_order(batch=100))
    never = replace(plain, source_dropout=0.0).shuffled(batch=100, seed=2, epoch=1)
    assert batch_bytes(never) == batch_bytes(plain.shuffled(batch=100, seed=2, epoch=1))


def test_source_dropout_with_one_source_raises() -> None:
    store = MemoryStore(scattered_labels((40, 40), (0.5, 0.3, 0.1)), scales=(1,))
    with pytest.raises(ValueError, match="the only source"):
        next(make_sampler(store, source_dropout=0.5).shuffled(batch=10, seed=0, epoch=0))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("labelled", [0.9, 0.002])
@pytest.mark.parametrize("how", [{}, {"augment": True, "source_dropout": 0.4}])
def test_patches_gathered_from_windows_are_those_cut_for_a_cpu(labelled: float, how: dict[str, Any]) -> None:
    """Batches span two groups at times."""
    store = MemoryStore(scattered_labels((290, 150), (labelled / 2, labelled / 4, labelled / 4)), scales=(1, 4, 2))
    part = replace(make_sampler(store, **how), scaling=distinct_fill_scaling(store))
    placer, several = BatchPlacer(torch.device("cpu")), 0
    orders: list[tuple[Iterable[Batch], Iterable[WindowBatch]]] = []
    for start in (0, 1):
        order = {"batch": 33, "seed": 2, "epoch": 1, "start": start}
        orders.append((part.shuffled(**order), part.shuffled_windows(**order)))
    for cut, located in orders:
        for batch, windowed in islice(zip(cut, located, strict=True), 60):
            placed = placer.place(windowed)
            several += len(windowed.parts) > 1
            assert torch.equal(placed.labels, torch.from_numpy(batch.labels))
            assert np.array_equal(windowed.labels, batch.labels)
            whole = placed.patches(0, 33)
            pieces = [placed.patches(begin, end) for begin, end in ((0, 10), (10, 33))]
            for number, patches in enumerate(batch.sources):
                assert whole[number].is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(whole[number], torch.from_numpy(patches))
                assert torch.equal(torch.cat([piece[number] for piece in pieces]), whole[number])
    assert several or labelled < 0.1, "sparse labels fit one group"


def test_form_of_a_batch_follows_from_the_device(dense: MemoryStore) -> None:
    part = make_sampler(dense, subset="validation")
    for device, form in (("cpu", Batch), ("cuda", WindowBatch)):
        drawn = part.shuffled_for(torch.device(device), batch=8, seed=0, epoch=0)
        assert isinstance(next(drawn), form)
        drawn.close()
        batches = list(part.in_order_for(torch.device(device), batch=5000))
        assert all(isinstance(batch, form) for batch in batches)
        assert np.array_equal(
            np.concatenate([b.labels for b in batches]), np.concatenate([b.labels for b in part.in_order(batch=5000)])
        )
