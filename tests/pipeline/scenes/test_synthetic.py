"""Synthetic scenes: no single source identifies the classes, and windows equal parts of the full scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.scenes.synthetic
import pipeline.scenes.synthetic_files
from pipeline.grid import Window, windows
from pipeline.scenes.synthetic import BLOCK, NODATA, noise, value_noise
from tests.support.synthetic import SHAPE, full_window, synthetic_scene

GOLDEN_TRUTH = [[3, 3, 3], [3, 3, 3]]
GOLDEN_VALUES = [[[3918, 3722, 3974], [3720, 3851, 3698]], [[2492, 2803, 2939], [2588, 2653, 3029]]]


def any_window(shape: tuple[int, int]) -> st.SearchStrategy[Window]:
    """Strategy for any window of a grid."""

    def axis(size: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.integers(0, size - 1).flatmap(lambda a: st.tuples(st.just(a), st.integers(1, size - a)))

    return st.tuples(axis(shape[0]), axis(shape[1])).map(lambda yx: Window(yx[0][0], yx[1][0], yx[0][1], yx[1][1]))


SCENES = {
    seed: synthetic_scene(2, 1, scales=(1, 2), shape=(320, 300), seed=seed, nodata=0.2, blob=blob)
    for seed, blob in ((0, 24), (2**63 - 1, 7))
}
CUTS = {
    seed: (
        [s.values(k, full_window(s.source_shape(k))) for k in (0, 1)],
        {name: getattr(s, name)(full_window(s.shape_yx)) for name in ("truth", "labels")},
    )
    for seed, s in SCENES.items()
}


@given(st.sampled_from(sorted(SCENES)), any_window((320, 300)), any_window((640, 600)))
@settings(max_examples=40)
def test_any_window_equals_the_same_part_of_the_full_scene(seed: int, window: Window, fine: Window) -> None:
    scene, (values, classes) = SCENES[seed], CUTS[seed]
    for name, layer in classes.items():
        assert (getattr(scene, name)(window) == layer[window.slices]).all()
    for source, part in ((0, window), (1, fine)):
        assert (scene.values(source, part) == values[source][:, *part.slices]).all()


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("bands", [(1, 1), (3, 2), (1, 1, 1)])
def test_classes_need_all_sources_and_no_single_source_suffices(bands: tuple[int, ...], seed: int) -> None:
    shape = (1024, 1024)
    scene = synthetic_scene(*bands, shape=shape, blob=8, seed=seed)
    truth = scene.truth(full_window(shape)).ravel()
    sources = [scene.values(k, full_window(shape)).reshape(b, -1).astype(np.float32) for k, b in enumerate(bands)]
    bound = 1 / 2 ** (len(bands) - 1)
    for source in sources:
        assert nearest_mean(source, truth) == pytest.approx(bound, abs=0.03)
    assert nearest_mean(np.concatenate(sources), truth) > 0.95


def nearest_mean(values: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy of nearest-class-mean classification after within-class whitening; values (band, pixel)."""
    means = np.stack([values[:, truth == c].mean(axis=1) for c in np.unique(truth)])
    within_class = np.cov(values - means[truth - 1].T)
    white = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(within_class)))
    distance = ((white @ values)[None] - (means @ white.T)[..., None]) ** 2
    return float((distance.sum(axis=1).argmin(axis=0) + 1 == truth).mean())


@pytest.mark.parametrize("seed", [0, 5])
def test_source_is_independent_of_other_bits_given_its_own_bit(seed: int) -> None:
    shape = (1536, 1536)
    scene = synthetic_scene(2, 1, 1, shape=shape, blob=4, seed=seed)
    bits = [scene.bit(k, full_window(shape)) for k in range(3)]
    for k in range(3):
        band = scene.values(k, full_window(shape))[0].astype(float)
        for own in (False, True):
            parts = [band[(bits[k] == own) & (bits[other] == value)] for other in {0, 1, 2} - {k} for value in (False, True)]
            deciles = np.array([np.quantile(part, np.arange(0.1, 1, 0.1)) for part in parts])
            # Pixels of a blob share their background, so quantiles over some 10,000 blobs differ by a few units.
            assert np.ptp(deciles, axis=0).max() < 0.05 * 2 * pipeline.scenes.synthetic.CONTRAST
        assert abs(band[bits[k]].mean() - band[~bits[k]].mean()) > 1.9 * pipeline.scenes.synthetic.CONTRAST


@pytest.mark.parametrize("count", [2, 3])
def test_class_shares_are_nearly_equal(count: int) -> None:
    shape = (1024, 1024)
    truth = synthetic_scene(*(1,) * count, shape=shape, blob=8).truth(full_window(shape))
    shares = np.bincount(truth.ravel(), minlength=2**count + 1)[1:] / truth.size
    assert shares == pytest.approx([2.0**-count] * 2**count, rel=0.1)


def test_class_id_encodes_source_bits_first_source_most_significant() -> None:
    scene = synthetic_scene(1, 1, 1)
    truth, bits = scene.truth(full_window(SHAPE)), [scene.bit(k, full_window(SHAPE)) for k in range(3)]
    for class_id in scene.class_ids:
        own = np.logical_and.reduce([bit == wanted for bit, wanted in zip(bits, scene.class_bits(class_id), strict=True)])
        assert ((truth == class_id) == own).all()
    assert [scene.class_bits(c) for c in (1, 2, 5, 8)] == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1)]


def test_finer_source_uses_the_bit_of_its_reference_pixel() -> None:
    scene = synthetic_scene(1, 8, scales=(1, 4), shape=(100, 90))
    fine = scene.values(1, full_window(scene.source_shape(1))).astype(float)
    assert fine.shape == (8, 400, 360)
    bit = scene.bit(1, full_window((100, 90)))
    pixels = fine.reshape(8, 100, 4, 90, 4).transpose(1, 3, 0, 2, 4).reshape(100, 90, 8, 16)
    means = pixels.mean(axis=3)
    centres = [means[bit == value].mean(axis=0) for value in (False, True)]
    nearest = np.square(means - centres[0]).sum(axis=-1) > np.square(means - centres[1]).sum(axis=-1)
    assert (nearest == bit).mean() > 0.999
    assert pixels.std(axis=3).min() > 0, "pixels of the finer source are not copies of each other"


@given(st.integers(0, 2**63 - 1), st.integers(1, 3))
@settings(max_examples=15)
def test_valid_pixels_never_have_the_nodata_value(seed: int, bands: int) -> None:
    values = synthetic_scene(bands, 1, seed=seed, blob=3).values(0, Window(0, 0, 200, 200))
    assert values.min() > 450
    assert values.max() < 6000


def test_gaps_have_the_requested_share_in_every_class() -> None:
    shape = (1024, 1024)
    scene = synthetic_scene(1, 2, 1, shape=shape, blob=6, nodata=0.1)
    truth = scene.truth(full_window(shape))
    assert not (scene.values(0, full_window(shape)) == NODATA).any()
    gaps = [(scene.values(k, full_window(shape)) == NODATA) for k in (1, 2)]
    assert (gaps[0][0] == gaps[0][1]).all(), "gaps are the same in all bands of a source"
    assert (gaps[0][0] != gaps[1][0]).any(), "gaps differ between sources"
    for gap in gaps:
        assert gap[0].mean() == pytest.approx(0.1, abs=0.01)
        assert all(gap[0][truth == c].mean() == pytest.approx(0.1, abs=0.03) for c in scene.class_ids)


@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_labels_equal_the_truth_and_have_the_requested_share(share: float) -> None:
    shape = (1024, 1024)
    scene = synthetic_scene(1, 1, shape=shape, labelled=share)
    labels, truth = scene.labels(full_window(shape)), scene.truth(full_window(shape))
    assert (labels != 0).mean() == pytest.approx(share, rel=0.15)
    assert (labels == truth)[labels != 0].all()


def test_noise_is_standardized_and_independent_by_band_source_block_seed() -> None:
    planes = [
        noise(seed, source, band, Window(y, x, BLOCK, BLOCK)).ravel()
        for seed, source, band, y, x in (
            (0, 0, 0, 0, 0),
            (1, 0, 0, 0, 0),
            (0, 1, 0, 0, 0),
            (0, 0, 1, 0, 0),
            (0, 0, 0, BLOCK, 0),
            (0, 0, 0, 0, BLOCK),
        )
    ]
    assert np.mean(planes, axis=1) == pytest.approx(0, abs=0.01)
    assert np.std(planes, axis=1) == pytest.approx(1, abs=0.01)
    assert abs(np.corrcoef(planes) - np.eye(6)).max() < 0.01
    neighbours = np.corrcoef(planes[0][:-1], planes[0][1:])[0, 1]
    assert abs(neighbours) < 0.01


def test_scene_values_equal_the_recorded_golden_values() -> None:
    """A seed gives the same scene with every version of numpy and mibf."""
    scene = synthetic_scene(2, 1, scales=(1, 2), seed=3, nodata=0.3)
    window = Window(510, 511, 2, 3)
    assert scene.truth(window).tolist() == GOLDEN_TRUTH
    assert scene.values(0, window).tolist() == GOLDEN_VALUES


def test_value_noise_is_smooth_with_median_one_half() -> None:
    field = value_noise(0, "any", spacing=8, window=Window(0, 0, 1000, 1000))
    assert np.median(field) == pytest.approx(0.5, abs=0.01)
    assert abs(np.diff(field, axis=0)).max() < 1.5 / 8 + 1e-6
    bits = field > 0.5
    assert 1.5 * 8 < bits.size / (bits[:, 1:] != bits[:, :-1]).sum() < 2.5 * 8


def test_every_step_is_reported_to_the_progress_callback(tmp_path: Path) -> None:
    scene, reported = synthetic_scene(1, 1, scales=(1, 2), shape=(300, 600)), []
    colors = {c: (c, c, c, 255) for c in scene.class_ids}
    pipeline.scenes.synthetic_files.write_scene(
        scene, tmp_path, transform=Affine(10, 0, 0, 0, -10, 0), crs="EPSG:32633", colors=colors, each=reported.append
    )
    assert sum(reported) == pipeline.scenes.synthetic_files.write_steps(scene) == 2 * (2 + 6 + 2 + 2)
    assert len(windows((600, 1200), BLOCK)) == 6
