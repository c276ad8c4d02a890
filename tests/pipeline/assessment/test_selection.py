"""Selection: a probability sample, whatever the windows, with the frame counted in the same pass."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from mibf.errors import InputError
from pipeline.areas.pixel_area import PixelArea
from pipeline.assessment import selection
from pipeline.assessment.selection import DrawnPoints, SceneFrame, survey, systematic
from pipeline.codes import CODES, UNLABELLED
from pipeline.grid import Window
from pipeline.publishing.published_map import PublishedMap
from pipeline.store.patch_store import PatchStore
from tests.support.published_maps import CLASSES, GEOGRAPHIC, UTM, make_grid, write_classes

IDS = tuple(c.id for c in CLASSES)
SMALL = make_grid(UTM.affine, "EPSG:32633")


@dataclass
class Samples:
    """The labels of a patch store."""

    codes: np.ndarray

    def labelled(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        return self.codes[window.slices], self.codes[window.slices]


Frames = Callable[..., SceneFrame]


@pytest.fixture
def make_frame(tmp_path: Path) -> Frames:
    """A function that publishes a class raster and returns its frame."""

    def make(ids: np.ndarray, codes: np.ndarray | None = None, name: str = "one", grid: object = None) -> SceneFrame:
        (tmp_path / name).mkdir(exist_ok=True)
        place = make_grid(UTM.affine, "EPSG:32633", ids.shape) if grid is None else grid
        write_classes(tmp_path / name / "class.tif", ids.astype(np.uint8), place)
        store = None if codes is None else cast(PatchStore, Samples(codes))
        excluded = () if codes is None else ("train",)
        return SceneFrame(name, place, PublishedMap(str(tmp_path / name)), IDS, store, excluded)

    return make


def some_ids(shape: tuple[int, int] = (40, 30)) -> np.ndarray:
    """Class ids with all classes, and pixels without one."""
    return np.random.default_rng(1).choice([*IDS, UNLABELLED], shape, p=[0.6, 0.3, 0.05, 0.05])


BY_CLASS, ALL = np.arange(len(IDS)), np.zeros(len(IDS), np.int64)


def places(points: DrawnPoints) -> set[tuple[int, int, int]]:
    return set(zip(points.scenes.tolist(), points.rows.tolist(), points.columns.tolist(), strict=True))


def test_frame_is_counted_without_excluded_pixels(make_frame: Frames) -> None:
    ids = some_ids()
    codes = np.random.default_rng(2).choice([0, CODES["train"], CODES["test"]], ids.shape)
    (counts,), drawn = survey([make_frame(ids, codes)], strata=BY_CLASS, keep=10_000, seed=0)
    trained = codes == CODES["train"]
    assert counts.pixels.tolist() == [((ids == i) & ~trained).sum() for i in IDS]
    assert counts.excluded_pixels.tolist() == [((ids == i) & trained).sum() for i in IDS]
    assert counts.hectares.tolist() == pytest.approx((counts.pixels * PixelArea(SMALL).at([0], [0])[0]).tolist(), rel=1e-4)
    assert len(drawn) == counts.pixels.sum()
    assert not trained[drawn.rows, drawn.columns].any()
    assert (np.array(IDS)[drawn.classes] == ids[drawn.rows, drawn.columns]).all()


def test_geographic_frame_has_the_areas_of_its_rows(make_frame: Frames) -> None:
    (counts,), _ = survey([make_frame(np.full((40, 30), 2), grid=GEOGRAPHIC)], strata=BY_CLASS, keep=0, seed=0)
    expected = PixelArea(GEOGRAPHIC).at(np.arange(40), np.zeros(40)).sum() * 30
    assert counts.hectares[1] == pytest.approx(expected)


@pytest.mark.parametrize("strata", [BY_CLASS, ALL], ids=["stratified", "random"])
def test_sample_does_not_depend_on_the_windows(
    make_frame: Frames, monkeypatch: pytest.MonkeyPatch, strata: np.ndarray
) -> None:
    frame = make_frame(some_ids())
    (whole_counts,), at_once = survey([frame], strata=strata, keep=12, seed=3)
    monkeypatch.setattr(selection, "SIDE", 7)
    (counts,), drawn = survey([frame], strata=strata, keep=12, seed=3)
    for name, values in vars(at_once).items():
        assert (values == getattr(drawn, name)).all(), name
    assert (counts.pixels == whole_counts.pixels).all()
    assert counts.hectares == pytest.approx(whole_counts.hectares)
    grid = [systematic([frame], interval=3.7, seed=3)]
    monkeypatch.undo()
    assert places(grid[0]) == places(systematic([frame], interval=3.7, seed=3))


def test_larger_sample_of_a_seed_contains_the_smaller_one(make_frame: Frames) -> None:
    frame = make_frame(some_ids())
    few, more = (survey([frame], strata=BY_CLASS, keep=keep, seed=5)[1] for keep in (10, 30))
    assert places(few) < places(more)
    other = survey([frame], strata=BY_CLASS, keep=10, seed=6)[1]
    assert places(few) != places(other)


def test_scenes_have_random_numbers_of_their_own(make_frame: Frames) -> None:
    one, other = make_frame(np.ones((40, 30)), name="one"), make_frame(np.ones((40, 30)), name="other")
    drawn = survey([one, other], strata=ALL, keep=60, seed=0)[1]
    in_both = [{(row, column) for scene, row, column in places(drawn) if scene == number} for number in (0, 1)]
    assert 10 < len(in_both[0]) < 50
    assert in_both[0] != in_both[1]


def test_every_pixel_has_the_same_inclusion_probability(make_frame: Frames) -> None:
    """Counts of 1,200 pixels over 200 seeds, as chi-square: within 5 standard deviations of its expectation."""
    ids = some_ids((20, 20))
    frame = make_frame(ids)
    mapped = ids != UNLABELLED
    times, on_grid, seeds = np.zeros(ids.shape), np.zeros(ids.shape), 200
    for seed in range(seeds):
        drawn = survey([frame], strata=ALL, keep=40, seed=seed)[1]
        times[drawn.rows, drawn.columns] += 1
        drawn = systematic([frame], interval=2.6, seed=seed)
        on_grid[drawn.rows, drawn.columns] += 1
    n = mapped.sum()
    p = 40 / n
    for found, share in ((times, p), (on_grid, 1 / 2.6**2)):
        chi = ((found[mapped] - seeds * share) ** 2 / (seeds * share * (1 - share))).sum()
        assert abs(chi - n) < 5 * np.sqrt(2 * n) * 1.5
        assert not found[~mapped].any()
    assert on_grid[mapped].mean() / seeds == pytest.approx(1 / 2.6**2, rel=0.05)


def test_unknown_class_id_is_refused(make_frame: Frames) -> None:
    with pytest.raises(InputError, match="has the class id 9"):
        survey([make_frame(np.full((8, 8), 9))], strata=BY_CLASS, keep=1, seed=0)


def test_memory_does_not_grow_with_the_map(make_frame: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SIDE", 128)
    peaks = []
    for side in (256, 256, 1024):  # the first one also imports and caches
        frame = make_frame(np.random.default_rng(0).choice(IDS, (side, side)))
        tracemalloc.start()
        survey([frame], strata=BY_CLASS, keep=50, seed=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]
