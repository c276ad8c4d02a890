"""Samples of trials: values, positions, bounds, and no test pixel."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from jobs.trials.samples import TrialSamples, read_trial_samples
from mibf.errors import InputError
from pipeline.classifiers.pixel_features import pixel_features
from pipeline.codes import UNLABELLED
from pipeline.grid import Window, windows
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import CHUNK
from tests.support.memory_store import PATCH, MemoryStore, plain_scaling, scattered_labels


class SplitStore(MemoryStore):
    """Columns from `border` on are of the validation subset, and the test subset is hidden."""

    border = 20
    without = ("test",)

    def subset(self, name: str) -> np.ndarray:
        assert name in ("train", "validation")
        inside = (np.arange(self.shape[1]) >= self.border) == (name == "validation")
        return np.where(inside, self.labels, UNLABELLED)

    def windows_with_samples(self, subset: str) -> list[tuple[Window, np.ndarray]]:
        ids = self.subset(subset)
        found = [(w, np.array([(ids[w.slices] == c.id).sum() for c in self.classes])) for w in windows(self.shape, CHUNK)]
        return [(window, counts) for window, counts in found if counts.any()]

    def samples(self, window: Window) -> dict[str, np.ndarray]:
        return {name: self.subset(name)[window.slices] for name in ("train", "validation")}


def read(*stores: MemoryStore, **more: Any) -> TrialSamples:
    scaling = plain_scaling(stores[0])
    return read_trial_samples(cast("list[PatchStore]", stores), scaling, patch=PATCH, **{"seed": 0, **more})


@pytest.fixture(scope="module")
def small() -> SplitStore:
    return SplitStore(scattered_labels((24, 30), (0.1, 0.05, 0.01)))


def test_all_samples_have_their_own_patches_features_and_positions(small: SplitStore) -> None:
    other = SplitStore(scattered_labels((10, 30), (0.1, 0.05, 0.01), seed=1))
    found = read(small, other)
    expected = {(i, y, x) for i, s in enumerate((small, other)) for y, x in np.argwhere(s.labels != UNLABELLED)}
    assert set(zip(found.store, found.row, found.column, strict=True)) == expected
    assert len(found) == len(expected)
    np.testing.assert_array_equal(found.is_validation, found.column >= SplitStore.border)
    assert not found.is_validation[: (~found.is_validation).sum()].any()
    assert [p.shape[1:] for p in found.patches] == [(2, PATCH, PATCH), (2, 2 * PATCH, 2 * PATCH)]
    for sample in range(0, len(found), 7):
        store = (small, other)[found.store[sample]]
        y, x, reach = found.row[sample], found.column[sample], PATCH // 2
        assert store.classes[found.labels[sample]].id == store.labels[y, x]
        for source, patches in zip(found.sources, found.patches, strict=True):
            values, _ = store.read_source(source.name, Window(y, x, 1, 1), halo=reach)
            np.testing.assert_array_equal(patches[sample], values / np.float32([2**24, 1])[:, None, None])
        features = pixel_features(cast(PatchStore, store), Window(y, x, 1, 1), found.sources)
        np.testing.assert_array_equal(found.features[sample], features[:, 0, 0])


def test_limits_bound_samples_and_bytes_and_keep_both_subsets(small: SplitStore) -> None:
    found = read(small, limit=24)
    assert len(found) == 24
    assert 6 <= found.is_validation.sum() < 18
    assert set(found.labels) == {0, 1, 2}
    each = sum(p[0].nbytes for p in found.patches)
    assert len(read(small, patch_bytes=10 * each)) == 10
    np.testing.assert_array_equal(found.row, read(small, limit=24).row)
    assert not np.array_equal(found.row, read(small, limit=24, seed=1).row)


def test_without_validation_pixels_training_pixels_are_used_alone() -> None:
    store = SplitStore(scattered_labels((24, 20), (0.1, 0.05, 0.01)))
    found = read(store, limit=20)
    assert len(found) == 20
    assert not found.is_validation.any()


def test_without_training_pixels_samples_are_refused(small: SplitStore) -> None:
    labels = np.where(np.arange(30) < SplitStore.border, UNLABELLED, small.labels).astype(np.uint8)
    with pytest.raises(InputError, match="no samples in the subset 'train'"):
        read(SplitStore(labels))


def test_a_store_that_shows_its_test_subset_is_refused(small: SplitStore) -> None:
    shown = SplitStore(small.labels)
    shown.without = ()  # type: ignore[assignment]  # a store like this one is refused
    with pytest.raises(ValueError, match="test subset"):
        read(small, shown)


def test_sources_without_scaling_are_left_out(small: SplitStore) -> None:
    scaling = plain_scaling(small)
    del scaling["source 1"]
    found = read_trial_samples(cast("list[PatchStore]", [small]), scaling, patch=PATCH, seed=0)
    assert [s.name for s in found.sources] == ["source 2"]
    assert len(found.patches) == 1
    assert found.features.shape[1] == 6
