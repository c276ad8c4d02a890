"""Synthetic scenes: the law that no source tells the classes alone, windows that are cuts of the whole, the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rio_cogeo.cogeo import cog_validate
from typer.testing import CliRunner

import pipeline.synth
from jobs.cli import app
from jobs.config import load
from mibf.errors import InputError
from pipeline.grid import Window, windows
from pipeline.synth import BLOCK, NODATA, SyntheticScene, SyntheticSource, noise, value_noise

SHAPE = (640, 600)  # more than a block along both axes
GOLDEN_TRUTH = [[3, 3, 3], [3, 3, 3]]
GOLDEN_VALUES = [[[3918, 3722, 3974], [3720, 3851, 3698]], [[2492, 2803, 2939], [2588, 2653, 3029]]]


def made(
    *bands: int, scales: tuple[int, ...] | None = None, shape: tuple[int, int] = SHAPE, **options: Any
) -> SyntheticScene:
    scales = scales or (1,) * len(bands)
    sources = tuple(SyntheticSource(f"source{k + 1}", b, s) for k, (b, s) in enumerate(zip(bands, scales, strict=True)))
    return SyntheticScene(shape, sources, **options)


def whole(shape: tuple[int, int]) -> Window:
    return Window(0, 0, *shape)


def within(shape: tuple[int, int]) -> st.SearchStrategy[Window]:
    """Any window of a grid."""

    def axis(size: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.integers(0, size - 1).flatmap(lambda a: st.tuples(st.just(a), st.integers(1, size - a)))

    return st.tuples(axis(shape[0]), axis(shape[1])).map(lambda yx: Window(yx[0][0], yx[1][0], yx[0][1], yx[1][1]))


SCENES = {
    seed: made(2, 1, scales=(1, 2), shape=(320, 300), seed=seed, nodata=0.2, blob=blob)
    for seed, blob in ((0, 24), (2**63 - 1, 7))
}
CUTS = {
    seed: (
        [s.values(k, whole(s.shape_of(k))) for k in (0, 1)],
        {name: getattr(s, name)(whole(s.shape_yx)) for name in ("truth", "labels")},
    )
    for seed, s in SCENES.items()
}


@given(st.sampled_from(sorted(SCENES)), within((320, 300)), within((640, 600)))
@settings(max_examples=40)
def test_any_window_is_the_cut_of_the_whole(seed: int, window: Window, fine: Window) -> None:
    scene, (values, classes) = SCENES[seed], CUTS[seed]
    for name, layer in classes.items():
        assert (getattr(scene, name)(window) == layer[window.slices]).all()
    for source, part in ((0, window), (1, fine)):
        assert (scene.values(source, part) == values[source][:, *part.slices]).all()


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("bands", [(1, 1), (3, 2), (1, 1, 1)])
def test_no_source_tells_the_classes_alone_and_all_together_do(bands: tuple[int, ...], seed: int) -> None:
    shape = (1024, 1024)
    scene = made(*bands, shape=shape, blob=8, seed=seed)
    truth = scene.truth(whole(shape)).ravel()
    sources = [scene.values(k, whole(shape)).reshape(b, -1).astype(np.float32) for k, b in enumerate(bands)]
    bound = 1 / 2 ** (len(bands) - 1)
    for source in sources:
        assert nearest_mean(source, truth) == pytest.approx(bound, abs=0.03)
    assert nearest_mean(np.concatenate(sources), truth) > 0.95


def nearest_mean(values: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy of the nearest class mean, in values made equally wide along all axes within a class: (band, pixel)."""
    means = np.stack([values[:, truth == c].mean(axis=1) for c in np.unique(truth)])
    within_class = np.cov(values - means[truth - 1].T)
    white = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(within_class)))
    distance = ((white @ values)[None] - (means @ white.T)[..., None]) ** 2
    return float((distance.sum(axis=1).argmin(axis=0) + 1 == truth).mean())


@pytest.mark.parametrize("seed", [0, 5])
def test_a_source_given_its_own_bit_knows_nothing_of_the_other_bits(seed: int) -> None:
    shape = (1536, 1536)
    scene = made(2, 1, 1, shape=shape, blob=4, seed=seed)
    bits = [scene.bit(k, whole(shape)) for k in range(3)]
    for k in range(3):
        band = scene.values(k, whole(shape))[0].astype(float)
        for own in (False, True):
            here = [band[(bits[k] == own) & (bits[other] == value)] for other in {0, 1, 2} - {k} for value in (False, True)]
            deciles = np.array([np.quantile(part, np.arange(0.1, 1, 0.1)) for part in here])
            # Pixels of a blob share their background: the quantiles of some 10,000 blobs differ by a few units.
            assert np.ptp(deciles, axis=0).max() < 0.05 * 2 * pipeline.synth.CONTRAST
        assert abs(band[bits[k]].mean() - band[~bits[k]].mean()) > 1.9 * pipeline.synth.CONTRAST


@pytest.mark.parametrize("count", [2, 3])
def test_class_shares_are_about_equal(count: int) -> None:
    shape = (1024, 1024)
    truth = made(*(1,) * count, shape=shape, blob=8).truth(whole(shape))
    shares = np.bincount(truth.ravel(), minlength=2**count + 1)[1:] / truth.size
    assert shares == pytest.approx([2.0**-count] * 2**count, rel=0.1)


def test_the_class_is_the_bits_the_first_sources_leading() -> None:
    scene = made(1, 1, 1)
    truth, bits = scene.truth(whole(SHAPE)), [scene.bit(k, whole(SHAPE)) for k in range(3)]
    for class_id in scene.class_ids:
        own = np.logical_and.reduce([bit == wanted for bit, wanted in zip(bits, scene.bits_of(class_id), strict=True)])
        assert ((truth == class_id) == own).all()
    assert [scene.bits_of(c) for c in (1, 2, 5, 8)] == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1)]


def test_a_finer_source_sees_the_bit_of_the_grids_pixel_that_holds_it() -> None:
    scene = made(1, 8, scales=(1, 4), shape=(100, 90))
    fine = scene.values(1, whole(scene.shape_of(1))).astype(float)
    assert fine.shape == (8, 400, 360)
    bit = scene.bit(1, whole((100, 90)))
    pixels = fine.reshape(8, 100, 4, 90, 4).transpose(1, 3, 0, 2, 4).reshape(100, 90, 8, 16)
    means = pixels.mean(axis=3)
    centres = [means[bit == value].mean(axis=0) for value in (False, True)]
    nearest = np.square(means - centres[0]).sum(axis=-1) > np.square(means - centres[1]).sum(axis=-1)
    assert (nearest == bit).mean() > 0.999
    assert pixels.std(axis=3).min() > 0, "its pixels are not copies"


@given(st.integers(0, 2**63 - 1), st.integers(1, 3))
@settings(max_examples=15)
def test_no_pixel_with_data_has_the_value_of_no_data(seed: int, bands: int) -> None:
    values = made(bands, 1, seed=seed, blob=3).values(0, Window(0, 0, 200, 200))
    assert values.min() > 450
    assert values.max() < 6000


def test_gaps_have_the_share_asked_for_and_follow_no_class() -> None:
    shape = (1024, 1024)
    scene = made(1, 2, 1, shape=shape, blob=6, nodata=0.1)
    truth = scene.truth(whole(shape))
    assert not (scene.values(0, whole(shape)) == NODATA).any()
    gaps = [(scene.values(k, whole(shape)) == NODATA) for k in (1, 2)]
    assert (gaps[0][0] == gaps[0][1]).all(), "a pixel has all its bands or none"
    assert (gaps[0][0] != gaps[1][0]).any(), "each source has gaps of its own"
    for gap in gaps:
        assert gap[0].mean() == pytest.approx(0.1, abs=0.01)
        assert all(gap[0][truth == c].mean() == pytest.approx(0.1, abs=0.03) for c in scene.class_ids)


@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_labels_are_true_and_have_the_share_asked_for(share: float) -> None:
    shape = (1024, 1024)
    scene = made(1, 1, shape=shape, labelled=share)
    labels, truth = scene.labels(whole(shape)), scene.truth(whole(shape))
    assert (labels != 0).mean() == pytest.approx(share, rel=0.15)
    assert (labels == truth)[labels != 0].all()


def test_noise_is_of_mean_0_and_deviation_1_and_new_in_each_band_source_block_and_seed() -> None:
    planes = [
        noise(seed, source, band, Window(y, x, BLOCK, BLOCK)).ravel()
        for seed, source, band, y, x in (
            (0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, BLOCK, 0), (0, 0, 0, 0, BLOCK),
        )
    ]  # fmt: skip
    assert np.mean(planes, axis=1) == pytest.approx(0, abs=0.01)
    assert np.std(planes, axis=1) == pytest.approx(1, abs=0.01)
    assert abs(np.corrcoef(planes) - np.eye(6)).max() < 0.01
    neighbours = np.corrcoef(planes[0][:-1], planes[0][1:])[0, 1]
    assert abs(neighbours) < 0.01


def test_a_value_once_made_stays() -> None:
    """Golden values: a scene's seed is its name, whatever the version of numpy or of mibf."""
    scene = made(2, 1, scales=(1, 2), seed=3, nodata=0.3)
    window = Window(510, 511, 2, 3)
    assert scene.truth(window).tolist() == GOLDEN_TRUTH
    assert scene.values(0, window).tolist() == GOLDEN_VALUES


def test_smooth_fields_change_slowly_and_have_their_median_at_a_half() -> None:
    field = value_noise(0, "any", spacing=8, window=Window(0, 0, 1000, 1000))
    assert np.median(field) == pytest.approx(0.5, abs=0.01)
    assert abs(np.diff(field, axis=0)).max() < 1.5 / 8 + 1e-6
    bits = field > 0.5
    assert 1.5 * 8 < bits.size / (bits[:, 1:] != bits[:, :-1]).sum() < 2.5 * 8


# The command


def mibf(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["synth", *arguments])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A scene of the command that ends inside a block, and its summary."""
    folder = tmp_path_factory.mktemp("synth") / "scene"
    result = mibf(str(folder), "--size", "530x300", "--bands", "3+2", "--nodata", "0.1", "--seed", "4", "--json")
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


def test_the_command_writes_what_the_scene_is(written: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = written
    scene = made(3, 2, shape=(530, 300), seed=4, blob=18, nodata=0.1)
    layers = {f"source{k + 1}": scene.values(k, whole((530, 300))) for k in (0, 1)}
    layers |= {"labels": scene.labels(whole((530, 300)))[None], "truth": scene.truth(whole((530, 300)))[None]}
    assert {p.name for p in folder.iterdir()} == {f"{name}.tif" for name in layers} | {"synth.yaml"}
    for name, values in layers.items():
        with rasterio.open(folder / f"{name}.tif") as dataset:
            assert (dataset.read() == values).all()
            assert dataset.crs.to_epsg() == 32633
            assert dataset.res == (10, 10)
            assert dataset.nodata == (0 if name.startswith("source") else None)
            assert all(name in description for description in dataset.descriptions)
        assert cog_validate(folder / f"{name}.tif", strict=True, quiet=True)[0]
    truth = layers["truth"]
    assert summary["class_shares"] == pytest.approx(
        {name: (truth == c).mean() for c, name in enumerate(("off-off", "off-on", "on-off", "on-on"), start=1)}
    )
    assert summary["labelled_share"] == pytest.approx((layers["labels"] != 0).mean())
    assert summary["missing_shares"] == pytest.approx({"source1": 0, "source2": (layers["source2"][0] == 0).mean()})
    shares = [(truth == c).mean() for c in (1, 2, 3, 4)]
    assert summary["best_alone"]["source1"] == pytest.approx(max(shares[:2]) + max(shares[2:]))
    assert summary["best_alone"]["source2"] == pytest.approx(max(shares[0::2]) + max(shares[1::2]))


def test_its_configuration_is_taken_from_anywhere(
    written: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.prepare import prepare
    from jobs.stages import run_stage

    folder, _ = written
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    config = load(str(folder / "synth.yaml"), overrides=[f"workspace={tmp_path / 'work'}"])
    assert [c.name for c in config.classes] == ["off-off", "off-on", "on-off", "on-on"]
    assert config.scenes[0].labels is not None
    assert config.scenes[0].labels.ignore == (0,)
    manifest, _ = run_stage(config, "prepare", prepare, keep_current=False)
    assert manifest.outputs


def test_a_finer_source_lies_on_the_nested_grid(tmp_path: Path) -> None:
    result = mibf(str(tmp_path), "--size", "64", "--bands", "2@2+1+1@4", "--crs", "EPSG:4326")
    assert result.exit_code == 0, result.output
    with rasterio.open(tmp_path / "truth.tif") as truth:
        for k, scale in enumerate((2, 1, 4), start=1):
            with rasterio.open(tmp_path / f"source{k}.tif") as source:
                assert source.shape == (64 * scale, 64 * scale)
                assert source.crs == truth.crs
                assert tuple(source.bounds) == pytest.approx(tuple(truth.bounds), abs=1e-12)
    scene = yaml.safe_load((tmp_path / "synth.yaml").read_text())["scenes"][0]
    assert scene["grid"] == {"like": "source2"}
    assert [source.get("scale") for source in scene["sources"].values()] == [2, None, 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "63"], "a side has 64 to"),
        (["--size", "64x63"], "a side has 64 to"),
        (["--size", "0"], "a side has 64 to"),
        (["--size", "-5"], "--size -5: give the scene's side"),
        (["--size", "1e3"], "--size 1e3: give the scene's side"),
        (["--size", "2000000"], "a side has 64 to"),
        (["--size", "900000"], "GB are free"),
        (["--bands", "4"], "two to 7 sources"),
        (["--bands", "1+1+1+1+1+1+1+1"], "two to 7 sources"),
        (["--bands", "4+"], "such as 4+2"),
        (["--bands", "4+0"], "1 to 512 bands, not 0"),
        (["--bands", "4+2@3"], "finer by 1, 2, 4, not by 3"),
        (["--bands", "4@2+2@2"], "one at least is on it"),
        (["--labelled", "0"], "--labelled 0.0: give a share"),
        (["--labelled", "nan"], "--labelled nan: give a share"),
        (["--nodata", "1"], "--nodata 1.0: give a share"),
        (["--blob", "1"], "--blob 1: give 2 to 256"),
        (["--blob", "500"], "--blob 500: give 2 to 256"),
        (["--crs", "EPSG:1"], "--crs EPSG:1: is no coordinate system"),
        (["--crs", "EPSG:5773"], "neither projected nor geographic"),
    ],
)
def test_wrong_values_are_refused_and_nothing_is_written(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = mibf(str(tmp_path / "scene"), *arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, said in (
        (str(tmp_path / "file"), "is a file"),
        ("s3://bucket/scene", "local folder"),
        ("${X}", "environment"),
    ):
        result = mibf(folder)
        assert result.exit_code == 2
        assert said in result.stderr


def test_another_scenes_files_are_kept_unless_they_may_go(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert mibf(str(tmp_path), "--size", "64", "--bands", "1+1+1").exit_code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    refused = mibf(str(tmp_path), "--size", "64")
    assert refused.exit_code == 2
    assert "source3.tif, labels.tif, truth.tif, synth.yaml; choose another folder" in refused.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert mibf(str(tmp_path), "--size", "64", "--overwrite").exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == set(before) - {"source3.tif"}, "nor is a source of the old one left"
    assert (tmp_path / "source1.tif").read_bytes() != before["source1.tif"]


def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SyntheticScene, "truth", Mock(side_effect=OSError("no space left")))
    result = mibf(str(tmp_path / "scene"), "--size", "64")
    assert isinstance(result.exception, OSError)
    assert not list(tmp_path.iterdir())


def test_a_scene_that_does_not_fit_the_disk_is_told_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.synth import synth

    needed = pipeline.synth.bytes_needed(made(4, 2, shape=(128, 128)))
    options: dict[str, Any] = {"bands": "4+2", "labelled": 0.2, "nodata": 0.0, "blob": None, "crs": "EPSG:32633"}
    options |= {"size": "128", "seed": 0, "overwrite": False}
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    with pytest.raises(InputError, match=r"up to 0\.0 GB while it is written"):
        synth(str(tmp_path / "scene"), **options)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed))
    made_files = synth(str(tmp_path / "scene"), **options).figures["bytes"]
    assert sum(made_files.values()) < needed


def test_every_step_is_told(tmp_path: Path) -> None:
    from affine import Affine

    scene, told = made(1, 1, scales=(1, 2), shape=(300, 600)), []
    colors = {c: (c, c, c, 255) for c in scene.class_ids}
    pipeline.synth.write_scene(
        scene, tmp_path, transform=Affine(10, 0, 0, 0, -10, 0), crs="EPSG:32633", colors=colors, each=told.append
    )
    assert sum(told) == pipeline.synth.steps(scene) == 2 * (2 + 6 + 2 + 2)
    assert len(windows((600, 1200), BLOCK)) == 6
