"""Scenes of `mibf prepare`: random splits, several scenes, and where sources are read from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
from affine import Affine

from jobs.config.loader import load
from jobs.prepare.scenes import open_scenes
from pipeline.codes import CODES, UNLABELLED
from pipeline.grid import Window
from pipeline.parallel.executor import ThreadExecutor
from pipeline.scenes.split import dilate
from pipeline.store.patch_store import PatchStore
from tests.support.commands import run
from tests.support.http_server import served
from tests.support.scenes import TRANSFORM, SmallScene, write_raster
from tests.support.stores import SHARDS, objects


@pytest.mark.parametrize(("train", "validation"), [(0.2, 0.1), (40, 15), (0.2, 30)])
def test_random_split_counts_are_exact_and_leakage_is_warned_about(
    scene: SmallScene, train: float, validation: float
) -> None:
    write_raster(scene.folder / "optical.tif", scene.optical)  # every pixel has data
    split = {"method": "random", "train": train, "validation": validation, "seed": 3}
    stage = run(scene, split=split)["stages"][0]
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    labels, codes = store.array("labels")[:], store.array("split")[:]
    assert ((codes == 0) == (labels == UNLABELLED)).all()
    for c in store.classes:
        own = labels == c.id
        n = int(own.sum())
        for subset, wanted in (("train", train), ("validation", validation)):
            number = round(wanted * n) if wanted < 1 else wanted
            assert (codes[own] == CODES[subset]).sum() == number
    usable = store.array("valid/optical")[:].astype(bool)
    test, trained = (codes == CODES["test"]) & usable, (codes == CODES["train"]) & usable
    share = (test & dilate(np.pad(trained, 4), 4)).sum() / test.sum()
    assert stage["figures"]["overlap"]["small"] == pytest.approx(share)
    assert share > 0.3, "even with 40 of 2,000 pixels per class"
    assert any("a random split leaks" in line for line in stage["lines"])
    assert any(f"{share:.2%} of test patches overlap a training patch" in line for line in stage["lines"])


def test_pixels_of_a_coarse_source_shared_by_subsets_are_measured_and_a_buffer_removes_them(scene: SmallScene) -> None:
    ids = np.arange(15 * 13, dtype=np.float32).reshape(1, 15, 13)
    write_raster(scene.folder / "radar.tif", ids, transform=TRANSFORM * Affine.scale(10))
    stage = run(scene, SHARDS, "split.block=25")["stages"][0]
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    codes = store.array("split")[:]
    # The file pixels of every patch of 5 x 5 pixels, from the file pixel of each reference pixel.
    padded = np.pad(ids[0].repeat(10, 0).repeat(10, 1), 2, mode="edge")
    patches = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).reshape(*codes.shape, 25)
    trained = np.unique(patches[codes == CODES["train"]])
    share = np.isin(patches[codes == CODES["test"]], trained).any(axis=1).mean()
    assert 0.05 < share < 0.9
    assert stage["figures"]["source_overlap"]["small"]["radar"] == pytest.approx(share)
    assert any(f"{share:.2%} of test patches hold a pixel of source 'radar'" in line for line in stage["lines"])
    assert any("set split.buffer to 13 (with split.block above 26)" in line for line in stage["warnings"])
    wider = run(scene, SHARDS, "split.buffer=13", "split.block=27")["stages"][0]
    assert wider["figures"]["source_overlap"]["small"]["radar"] == 0


def test_raster_split_that_leaks_is_reported_as_such(scene: SmallScene) -> None:
    columns = np.arange(130) % 3 + 1
    write_raster(scene.folder / "split.tif", np.tile(columns, (1, 150, 1)).astype(np.uint8))
    stage = run(scene, SHARDS, split={"method": "raster", "url": str(scene.folder / "split.tif")})["stages"][0]
    assert stage["figures"]["overlap"]["small"] == pytest.approx(1.0, abs=1e-3)
    assert any("the raster split leaks: up to 100% of a scene's test patches" in line for line in stage["lines"])


def test_random_split_depends_only_on_its_seed(scene: SmallScene) -> None:
    def codes(seed: int, shard: int) -> np.ndarray:
        run(scene, f"prepare.shard={shard}", split={"method": "random", "train": 0.2, "validation": 0.1, "seed": seed})
        return np.asarray(PatchStore(str(scene.folder / "work/stores/small.zarr")).array("split")[:])

    first = codes(0, 128)
    assert (codes(0, 256) == first).all()
    assert (codes(1, 128) != first).any()


@pytest.mark.parametrize("first", [0, 1])
def test_scenes_with_different_dtypes_share_a_common_dtype(scene: SmallScene, first: int) -> None:
    """Integer metres in one scene, resampled in the other: limits cover all training pixels, in either order of scenes."""
    generator = np.random.default_rng(0)
    south = TRANSFORM * Affine.translation(0, 1000)
    for name, place in (("", TRANSFORM), ("south_", south)):
        write_raster(scene.folder / f"{name}optical.tif", scene.optical, transform=place, nodata=0)
        shape = (1, 150, 130) if not name else (1, 154, 134)
        height = generator.integers(100, 1000, shape).astype(np.int16)
        shift = Affine.translation(-1.5, -1.5) if name else Affine.identity()
        write_raster(scene.folder / f"{name}radar.tif", height, transform=place * shift)
        write_raster(scene.folder / f"{name}labels.tif", scene.truth[None], transform=place)
    config = scene.config()
    other = json.loads(json.dumps(config["scenes"][0]).replace(str(scene.folder) + "/", str(scene.folder) + "/south_"))
    other["name"] = "south"
    config["scenes"] = [config["scenes"][0], other][:: 1 if first == 0 else -1]
    run(scene, **config)
    values = []
    for name in ("small", "south"):
        store = PatchStore(str(scene.folder / f"work/stores/{name}.zarr"))
        assert store.array("sources/radar").dtype == np.float32
        chosen = store.samples(Window(0, 0, *store.shape))["train"] != UNLABELLED
        values.append(store.array("sources/radar")[0][chosen & store.array("valid/radar")[:].astype(bool)])
    fitted = json.loads((scene.folder / "work/scaling.json").read_text())["radar"]
    wanted = np.quantile(np.concatenate(values), [0.005, 0.995, 0.5], method="inverted_cdf")
    np.testing.assert_allclose([fitted["low"][0], fitted["high"][0], fitted["fill"][0]], wanted, rtol=2**-13)


def test_unreadable_file_of_one_of_several_scenes_is_named_by_row(scene: SmallScene) -> None:
    config = scene.config()
    other = json.loads(json.dumps(config["scenes"][0]))
    other["name"], other["sources"]["radar"]["url"] = "south", str(scene.folder / "absent.tif")
    refused = run(scene, status=2, scenes=[config["scenes"][0], other])
    assert re.search(r"scene .south. \(2 of 2\): \S+/absent.tif: ", refused.stderr)


def test_finer_source_is_stored_at_its_own_scale(scene: SmallScene) -> None:
    fine = np.random.default_rng(0).integers(1, 999, (1, 600, 520)).astype(np.uint16)
    write_raster(scene.folder / "radar.tif", fine, transform=TRANSFORM * Affine.scale(1 / 4))
    run(scene, "scenes.0.sources.radar.scale=4", SHARDS)
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    assert store.sources[1].scale == 4
    assert (store.array("sources/radar")[:] == fine).all()
    assert store.array("valid/radar").shape == (600, 520)
    assert run(scene, command="verify")["stores"][0]["intact"]


def test_shifted_source_is_warned_about(scene: SmallScene) -> None:
    generator = np.random.default_rng(0)
    field = np.kron(generator.integers(0, 9, (80, 80)), np.ones((5, 5)))[:400, :400]
    noise = generator.normal(0, 0.1, (2, 400, 400))
    first, second = field + noise[0], np.roll(field, (2, -3), (0, 1)) + noise[1]
    for name, values in (("optical", first), ("radar", second)):
        write_raster(scene.folder / f"{name}.tif", (100 * values[None, :150, :130] + 500).astype(np.uint16))
    shift = run(scene)["stages"][0]
    found = shift["figures"]["stores"]["small"]["shifts"]["radar"]
    assert found["credible"]
    assert (found["dy"], found["dx"]) == pytest.approx((2, -3), abs=0.3)
    assert any("radar: shifted" in line and "pixels against optical" in line for line in shift["lines"])


def test_stac_items_locate_source_files(scene: SmallScene) -> None:
    """Mosaic two adjacent items with relative hrefs."""
    for number, columns in enumerate((slice(0, 70), slice(70, 130))):
        place = TRANSFORM * Affine.translation(columns.start, 0)
        write_raster(scene.folder / f"part{number}.tif", scene.optical[:, :, columns], transform=place, nodata=0)
    items = [
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": f"item{n}",
            "links": [],
            "properties": {"datetime": "2020-01-01T00:00:00Z"},
            "geometry": None,
            "bbox": None,
            "assets": {"optical": {"href": f"./part{n}.tif"}},
        }
        for n in range(2)
    ]
    (scene.folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    config = scene.config()
    config["scenes"][0]["grid"] = {"crs": "EPSG:32633", "resolution": 10, "bounds": [400000, 5798500, 401300, 5800000]}
    stac = {"stac": {"url": str(scene.folder / "items.json"), "assets": ["optical"]}}
    config["scenes"][0]["sources"]["optical"] = stac
    run(scene, **config)
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    valid = store.array("valid/optical")[:].astype(bool)
    assert (valid == (scene.optical != 0).all(axis=0)).all()
    assert (store.array("sources/optical")[:][:, valid] == scene.optical[:, valid]).all()
    config["scenes"][0]["sources"]["optical"] = {"stac": {**stac["stac"], "assets": ["nir"]}}
    assert (
        "item 'item0' has no asset 'nir', and no band of this name; it has optical" in run(scene, status=2, **config).stderr
    )


@pytest.fixture
def address(scene: SmallScene) -> Iterator[str]:
    with served(scene.folder) as address:
        yield address


def test_sources_are_read_over_http(scene: SmallScene, address: str) -> None:
    """Read rasters, and a STAC item with a relative asset href."""
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "item",
        "links": [],
        "geometry": None,
        "bbox": None,
        "properties": {"datetime": "2020-01-01T00:00:00Z"},
        "assets": {"optical": {"href": "./optical.tif"}},
    }
    (scene.folder / "item.json").write_text(json.dumps(item))
    run(scene, f"workspace={scene.folder / 'local'}")
    config = scene.config()
    sources = config["scenes"][0]["sources"]
    sources["optical"] = {"stac": {"url": f"{address}/item.json", "assets": ["optical"]}}
    sources["radar"]["url"] = f"{address}/radar.tif"
    config["scenes"][0]["labels"]["url"] = f"{address}/labels.tif"
    run(scene, **config)
    assert objects(scene) == objects(scene, "local")
    sources["radar"]["url"] = f"{address}/none.tif"
    assert f"{address}/none.tif: no such file" in run(scene, status=2, **config).stderr


@pytest.mark.parametrize(
    ("corners", "advice"),
    [
        ([(4, 4)], "it lies in 1 block of 12 pixels; label it in more places"),
        ([(1, 1), (20, 1), (1, 20), (20, 20)], "smaller blocks may help, for example `split.block: 12`"),
    ],
)
def test_smaller_blocks_are_suggested_only_for_a_class_in_several_of_them(
    scene: SmallScene, capsys: pytest.CaptureFixture[str], corners: list[tuple[int, int]], advice: str
) -> None:
    labels = np.where(scene.truth == 5, 1, scene.truth)
    labels[:48, :48] = 1
    for row, column in corners:  # all in one block of 48 pixels
        labels[row : row + 5, column : column + 5] = 5
    write_raster(scene.folder / "labels.tif", labels[None])
    config = load(str(scene.write_config(split={"block": 48})))
    open_scenes(config, ThreadExecutor(1))
    assert f"class town is unevenly split between subsets (train {25 * len(corners)}" in (found := capsys.readouterr().err)
    assert advice in found


def test_added_labels_train_and_those_on_other_ground_are_counted(scene: SmallScene) -> None:
    """A class that only added labels have is trained; unknown ids in an added raster are refused."""
    truth = scene.truth.copy()
    write_raster(scene.folder / "labels.tif", np.where(truth == 5, 0, truth)[None].astype(np.uint8))
    path = write_raster(scene.folder / "more.tif", np.where(truth == 5, truth, 0)[None].astype(np.uint8))
    values = scene.config()
    labels = values["scenes"][0]["labels"]
    labels["also"] = [{"url": str(path), "ignore": [0]}]
    stage = run(scene, scenes=values["scenes"])["stages"][0]
    counts = stage["figures"]["counts"]
    assert counts["train"]["town"] > 0
    assert counts["validation"]["town"] == counts["test"]["town"] == 0
    added, used = int((truth == 5).sum()), counts["train"]["town"]
    (note,) = (line for line in stage["lines"] if "added labels" in line)
    assert f"{added:,} pixels of added labels" in note
    assert used <= int(note.split("of which ")[1].split(" train")[0].replace(",", "")) < added
    labels["also"][0]["ignore"] = []
    refused = run(scene, scenes=values["scenes"], status=2)
    assert "more.tif: labels that no class declares: 0 (" in refused.stderr
