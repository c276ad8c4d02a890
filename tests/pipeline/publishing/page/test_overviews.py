"""Pictures of a scene: every label is visible, sources are placed and stretched, and sizes do not grow with the scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from pipeline.codes import UNLABELLED
from pipeline.publishing.page import overviews
from pipeline.publishing.page.overviews import SIDE, display_bands, overview_step, scene_overviews
from pipeline.publishing.page.page_file import PageFile
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import StoredSource


def pixels(file: PageFile) -> NDArray[Any]:
    with MemoryFile(file.content) as memory, memory.open() as picture:
        return np.asarray(picture.read())


@pytest.fixture(scope="module")
def store(prepared: tuple[Any, Any]) -> PatchStore:
    _, workspace = prepared
    return PatchStore(workspace.store("small"))


def test_scene_has_pictures_of_labels_subsets_and_sources(store: PatchStore) -> None:
    labels, split, *sources = scene_overviews(store)
    assert [file.name for file in (labels, split)] == ["overview_labels.png", "overview_split.png"]
    ids = np.asarray(store.array("labels")[...])
    assert (pixels(labels)[0] == ids).all()  # of a small scene, pixel by pixel
    assert (pixels(split)[0] == np.where(ids == UNLABELLED, 0, np.asarray(store.array("split")[...]))).all()
    assert [(file.title, file.fields["mibf:step"]) for file in sources] == [(s.name, 1) for s in store.sources]
    for file, source in zip(sources, store.sources, strict=True):
        assert pixels(file).shape == (4, *store.shape)
        valid = np.asarray(store.array(f"valid/{source.name}")[:: source.scale, :: source.scale]).astype(bool)
        assert ((pixels(file)[3] > 0) == valid).all()


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_pictures_are_bounded_whatever_the_scene(rows: int, columns: int) -> None:
    step = overview_step((rows, columns))
    longest = max(rows, columns)
    assert -(-longest // step) <= SIDE
    assert step == 1 or -(-longest // (step // 2)) > SIDE
    for side in (rows, columns):
        middles = overviews._middles(side, step)
        assert len(middles) == -(-side // step)
        assert 0 <= middles.min() <= middles.max() < side


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
def test_first_label_of_each_square_is_shown(rows: int, columns: int, step: int, seed: int) -> None:
    labels = np.random.default_rng(seed).choice(np.array([1, 2, UNLABELLED], np.uint8), (rows, columns), p=(0.1, 0.1, 0.8))
    found = np.append(labels.ravel(), UNLABELLED)[overviews._first_labelled(labels, step)]
    for y in range(found.shape[0]):
        for x in range(found.shape[1]):
            square = labels[y * step : (y + 1) * step, x * step : (x + 1) * step].ravel()
            assert found[y, x] == next((label for label in square if label != UNLABELLED), UNLABELLED)


@pytest.mark.parametrize(
    ("bands", "names", "shown"),
    [
        (1, (), [0]),
        (2, (), [0]),
        (4, (), [2, 1, 0]),
        (200, (), [149, 100, 50]),
        (4, ("B02", "B03", "B04", "B08"), [2, 1, 0]),
        (3, ("Red", "Green", "Blue"), [0, 1, 2]),
        (3, ("red", "nir", "x"), [2, 1, 0]),
    ],
)
def test_bands_are_shown_in_true_colour_where_their_names_say_which(
    bands: int, names: tuple[str, ...], shown: list[int]
) -> None:
    assert display_bands(StoredSource("s", bands, "exclude", band_names=names)) == shown


def test_source_without_contrast_or_data_has_a_picture(tmp_path: Path) -> None:
    assert overviews._stretched(np.full((2, 2), 5, np.float32), np.ones((2, 2), bool)).tolist() == [[0, 0], [0, 0]]
    assert overviews._stretched(np.full((2, 2), np.nan, np.float32), np.zeros((2, 2), bool)).max() == 0
    file = overviews._picture("source0", "source", "webp", [np.zeros((3, 2), np.uint8)] * 4, 2)
    (tmp_path / file.name).write_bytes(file.content)
    with rasterio.open(tmp_path / file.name) as picture:
        assert (picture.count, picture.shape) == (4, (3, 2))
