"""Checks of a user's files of a published data set, each message with the file, the value and the remedy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import yaml

from jobs.benchmark.catalog import CATALOG
from jobs.benchmark.check import CheckedFiles, check_files, read_array
from jobs.benchmark.official import hold_out
from mibf.errors import InputError
from pipeline.codes import CODES
from pipeline.grid import Window
from pipeline.scenes.split import Blocks
from pipeline.stratification.assign import assign_blocks
from tests.support.paths import ROOT
from tests.support.published_data_sets import SmallDataSet, scene, with_index, with_masks


def check(small: SmallDataSet, *, unverified: bool = False, monkeypatch: pytest.MonkeyPatch | None = None) -> CheckedFiles:
    dataset = small.dataset if monkeypatch is None else small.rehash(monkeypatch)
    return check_files(dataset, str(small.folder), unverified=unverified)


def refusal(small: SmallDataSet, monkeypatch: pytest.MonkeyPatch | None = None) -> str:
    with pytest.raises(InputError) as caught:
        check(small, monkeypatch=monkeypatch)
    return str(caught.value)


def test_published_files_are_found_in_the_folder_or_in_that_of_their_usual_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Houston2013").mkdir()
    small = with_masks(tmp_path / "Houston2013", monkeypatch)
    for folder in (small.folder, tmp_path):
        found = check_files(small.dataset, str(folder), unverified=False)
        assert found.urls["HSI.mat"] == str(small.folder / "HSI.mat")
        assert found.sums["HSI.mat"] == hashlib.sha256((small.folder / "HSI.mat").read_bytes()).hexdigest()
        assert found.notes == []


def test_masks_become_labels_and_a_split_with_held_out_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_masks(tmp_path, monkeypatch)
    official = check(small).official
    assert official is not None
    np.testing.assert_array_equal(official.labels, small.labels)
    train, test = (scipy.io.loadmat(tmp_path / f"{n}.mat")[n] for n in ("TRLabel", "TSLabel"))
    np.testing.assert_array_equal(official.codes == CODES["test"], test > 0)
    np.testing.assert_array_equal(np.isin(official.codes, (CODES["train"], CODES["validation"])), train > 0)
    for class_id in (1, 2):
        held = int(((official.codes == CODES["validation"]) & (train == class_id)).sum())
        assert held == round(0.2 * int((train == class_id).sum()))


def test_validation_takes_connected_groups_and_otherwise_one_end_of_a_group() -> None:
    labels = np.zeros((12, 20), int)
    labels[1:3, 0:20] = 1  # one group of 40 pixels
    for column in range(0, 20, 4):
        labels[6:8, column : column + 2] = 2  # five groups of 4
    labels[10, 10] = 3  # one pixel, which training keeps
    held = hold_out(labels, labels > 0)
    np.testing.assert_array_equal(np.argwhere(held & (labels == 1)).max(axis=0), [2, 19])
    assert set(np.argwhere(held & (labels == 1))[:, 1].tolist()) == {16, 17, 18, 19}
    assert int((held & (labels == 2)).sum()) == 4
    assert len(set((np.argwhere(held & (labels == 2))[:, 1] // 4).tolist())) == 1
    assert not held[10, 10]


def test_lists_of_pixels_become_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_index(tmp_path, monkeypatch)
    official = check(small).official
    assert official is not None
    places = np.argwhere(small.labels > 0)
    expected = np.zeros(small.labels.shape, bool)
    expected[tuple(places[1::5].T)] = True
    np.testing.assert_array_equal(official.codes == CODES["test"], expected)
    assert int((official.codes == CODES["train"]).sum() + (official.codes == CODES["validation"]).sum()) == len(places[::5])
    used = official.codes > 0
    np.testing.assert_array_equal(official.labels[used], small.labels[used])


def test_lists_that_count_from_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_index(tmp_path, monkeypatch)
    places = np.argwhere(small.labels > 0).astype(np.uint16)
    small.write("augsburg_index.mat", augsburg_train=places[::5] + 1, augsburg_test=places[1::5] + 1)
    message = refusal(small, monkeypatch)
    assert "augsburg_index.mat (augsburg_train)" in message
    assert "have no label or are outside the 60 x 72 pixels" in message
    assert "If the list counts from 1, subtract 1" in message


def test_missing_files_are_named_with_their_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_masks(tmp_path, monkeypatch)
    (tmp_path / "LiDAR.mat").unlink()
    message = refusal(small)
    assert f"{tmp_path}: LiDAR.mat not found, neither there nor in {tmp_path}/Houston2013" in message
    assert small.dataset.origin in message


def test_another_sha256_is_refused_unless_unverified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_masks(tmp_path, monkeypatch)
    small.write("LiDAR.mat", LiDAR=scene()[2] + 1)
    message = refusal(small)
    there = hashlib.sha256((tmp_path / "LiDAR.mat").read_bytes()).hexdigest()
    assert f"{tmp_path}/LiDAR.mat: has the SHA-256 {there}" in message
    assert str(small.dataset.files["LiDAR.mat"]) in message
    assert "--unverified" in message
    (note,) = check(small, unverified=True).notes
    assert "LiDAR.mat: has the SHA-256" in note


def test_another_axis_order_is_refused_with_the_permutation_that_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = with_masks(tmp_path, monkeypatch)
    cube = scipy.io.loadmat(tmp_path / "HSI.mat")["HSI"]
    small.write("HSI.mat", HSI=cube.transpose(2, 0, 1))
    message = refusal(small, monkeypatch)
    assert "HSI.mat (HSI): its axes are in another order, (band, y, x) = (3, 60, 72)" in message
    assert "instead of (y, x, band) = (60, 72, 3)" in message
    assert "permute(data, [2 3 1])" in message
    np.testing.assert_array_equal(cube.transpose(2, 0, 1).transpose(1, 2, 0), cube)  # that permutation, from 0


@pytest.mark.parametrize("unverified", [False, True])
def test_another_shape_is_always_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unverified: bool) -> None:
    small = with_masks(tmp_path, monkeypatch)
    small.write("HSI.mat", HSI=scipy.io.loadmat(tmp_path / "HSI.mat")["HSI"][:50])
    with pytest.raises(InputError, match=r"HSI\.mat \(HSI\): has the shape 50 x 72 x 3 instead of .* = \(60, 72, 3\)"):
        check(small, unverified=unverified, monkeypatch=monkeypatch)


def test_a_missing_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_masks(tmp_path, monkeypatch)
    small.write("TRLabel.mat", train_data=small.labels)
    assert "TRLabel.mat: has no variable 'TRLabel'; it has train_data" in refusal(small, monkeypatch)


def test_number_type_and_label_counts_are_checked_where_the_sum_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = with_index(tmp_path, monkeypatch)
    unknown = replace(small, dataset=replace(small.dataset, files=dict.fromkeys(small.dataset.files)))
    notes = check(unknown).notes
    assert notes[0] == "augsburg_hsi.mat: its SHA-256 is not known; only shapes, number types and labels were checked"
    counts = tuple(int((small.labels == class_id).sum()) for class_id in (1, 2))
    other = replace(unknown, dataset=replace(unknown.dataset, counts=(counts[0], counts[1] + 1)))
    assert f"{counts[1]:,} labels of class 2 (Residential area) instead of {counts[1] + 1:,}" in refusal(other)
    assert any("labels of class 2" in note for note in check(other, unverified=True).notes)
    small.write("augsburg_gt.mat", augsburg_gt=small.labels.astype(np.float64))
    assert "augsburg_gt.mat (augsburg_gt): holds float64 instead of uint8" in refusal(unknown)
    assert check(small, monkeypatch=monkeypatch).notes == []  # a file with the published sum is the published one


def test_class_ids_out_of_range_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_masks(tmp_path, monkeypatch)
    test = scipy.io.loadmat(tmp_path / "TSLabel.mat")["TSLabel"]
    small.write("TSLabel.mat", TSLabel=np.where(test == 2, 16, test))
    message = refusal(small, monkeypatch)
    assert "TSLabel.mat (TSLabel): holds the class ids 16" in message
    assert "has 1 to 2, and 0 where there is no label" in message


def test_overlapping_masks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_masks(tmp_path, monkeypatch)
    train, test = (scipy.io.loadmat(tmp_path / f"{n}.mat")[n] for n in ("TRLabel", "TSLabel"))
    row, column = np.argwhere(train > 0)[7].tolist()
    test[row, column] = 1
    small.write("TSLabel.mat", TSLabel=test)
    message = refusal(small, monkeypatch)
    assert f"1 pixels are in both, the first in row {row + 1}, column {column + 1}" in message
    assert "--splits random,blocks" in message


@pytest.mark.parametrize("name", ["muufl-lidar", "indian-pines"])
def test_published_files_pass(name: str, shared: Callable[[str], Path]) -> None:
    folder = shared(f"data/{CATALOG[name].folder}")
    assert check_files(CATALOG[name], str(folder), unverified=False).notes == []


def test_catalog_is_consistent() -> None:
    for name, dataset in CATALOG.items():
        assert name == dataset.name
        assert {array.file for array in dataset.arrays} == set(dataset.files)
        assert all(sum_ is None or len(bytes.fromhex(sum_)) == 32 for sum_ in dataset.files.values())
        assert dataset.counts is None or len(dataset.counts) == len(dataset.classes)
        assert len({source.array.shape[:2] for source in dataset.sources}) == 1
        assert len(dataset.sources) >= 2
        assert len({sum_ for sum_ in dataset.files.values() if sum_}) == len(dataset.files)
    published = {"houston2013": 15_029, "trento": 30_214, "muufl": 53_687, "augsburg": 78_294, "berlin": 464_671}
    assert {name: sum(CATALOG[name].counts or ()) for name in published} == published
    assert CATALOG["trento"].counts == CATALOG["trento-italy"].counts


def test_names_of_muufl_classes_agree_with_their_heights(shared: Callable[[str], Path]) -> None:
    dataset, folder = CATALOG["muufl-lidar"], shared("data/muufl_lidar_gt")
    height = scipy.io.loadmat(folder / "data_SAR_HR.mat")["lidar_data"][..., 0]
    labels = scipy.io.loadmat(folder / "gt.mat")["labels"]
    typical = {name: float(np.median(height[labels == class_id])) for class_id, name in dataset.classes.items()}
    assert max(typical, key=lambda name: typical[name]) == "Buildings"
    example = yaml.safe_load((ROOT / "examples/muufl_lidar.yaml").read_text())
    assert {entry["id"]: entry["name"] for entry in example["classes"]} == dataset.classes


@pytest.mark.parametrize("name", ["muufl-lidar", "indian-pines"])
def test_blocks_leave_training_pixels_of_every_class(name: str, shared: Callable[[str], Path]) -> None:
    dataset = CATALOG[name]
    array = dataset.labels
    assert array is not None
    labels = read_array(array, str(shared(f"data/{dataset.folder}/{array.file}")))
    rows, columns = labels.shape
    side, patch = dataset.block, 7
    of_class = np.stack([labels == class_id for class_id in dataset.classes], axis=-1)
    edges = [np.arange(0, size, side) for size in (rows, columns)]
    counts = np.add.reduceat(np.add.reduceat(of_class.astype(np.int64), edges[0], axis=0), edges[1], axis=1)
    for seed in (0, 1, 2):
        table = assign_blocks(counts, {"train": 0.5, "validation": 0.2, "test": 0.3}, seed=seed)
        codes = Blocks(table, side, patch // 2, (rows, columns)).codes(Window(0, 0, rows, columns))
        assert (of_class & (codes == CODES["train"])[..., None]).any(axis=(0, 1)).all()
