"""`mibf init` on complete scenes: the configuration that it writes loads, plans and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
import shapely
import yaml
import zarr
from affine import Affine
from click.testing import Result
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.config import Config
from jobs.config.loader import load
from jobs.config.resolve import labels as resolve_labels
from pipeline.scenes.labels import RasterLabels
from tests.support.scenes import COLUMNS, ROWS, TRANSFORM, SmallScene, make_scene, write_polygons, write_raster


def init(folder: Path, *arguments: str) -> tuple[Config, Result]:
    """Run `mibf init` in a folder of its own; the configuration that it wrote."""
    output = str(folder / "mibf.yaml")
    result = CliRunner().invoke(app, ["init", *arguments, "--output", output, "--workspace", str(folder / "work")])
    assert result.exit_code == 0, result.output
    return load(output), result


def small_scene_arguments(scene: SmallScene) -> list[str]:
    files = {name: str(scene.folder / f"{name}.tif") for name in ("optical", "radar", "labels")}
    return [files["optical"], f"sar={files['radar']}", "--labels", files["labels"]]


def test_scene_with_a_label_raster_is_configured(scene: SmallScene) -> None:
    config, result = init(scene.folder, *small_scene_arguments(scene))
    (area,) = config.scenes
    assert list(area.sources) == ["optical", "sar"]
    assert area.grid.like == "optical"
    assert area.sources["sar"].resampling == "bilinear"
    assert area.labels is not None
    assert area.labels.ignore == (0,)
    assert [c.id for c in config.classes] == [1, 2, 5]
    with rasterio.open(scene.folder / "labels.tif") as dataset:
        values, counts = np.unique(dataset.read(1), return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        assert value == 0 or f"{value} class {value}: {count:,} pixels" in result.stdout
    assert "3 bands of uint16, EPSG:32633, 10 x 10 metre, 150 x 130 pixels, no data: 0" in result.stdout
    assert "1 shard of" in result.stdout, "the plan is printed"
    assert not (scene.folder / "work").exists()


@pytest.mark.parametrize("named", [False, True])
def test_scene_of_one_source_is_configured(scene: SmallScene, named: bool) -> None:
    files = [str(scene.folder / "optical.tif"), str(write_raster(scene.folder / "more.tif", scene.optical[:1]))]
    arguments = [f"all={','.join(files)}"] if named else files[:1]
    config, result = init(scene.folder, *arguments, "--labels", str(scene.folder / "labels.tif"))
    name = "all" if named else "optical"
    assert list(config.scenes[0].sources) == [name]
    assert config.scenes[0].grid.like == name
    assert config.model.without == ()
    assert result.stdout.count("with one source, the network has neither a relation") == 1
    text = (scene.folder / "mibf.yaml").read_text()
    assert "the others" not in text
    assert "first" not in text.partition("classes:")[0].partition("scenes:")[2]


def test_transparency_band_of_a_label_raster_is_left_out(scene: SmallScene) -> None:
    with rasterio.open(scene.folder / "labels.tif") as dataset:
        values = np.repeat(dataset.read(), 2, axis=0)
    values[1], values[1, 0] = 255, 0
    path = write_raster(scene.folder / "labels.tif", values)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (rasterio.enums.ColorInterp.gray, rasterio.enums.ColorInterp.alpha)
    config, _ = init(scene.folder, *small_scene_arguments(scene))
    section = config.scenes[0].labels
    assert section is not None
    assert section.band == 1
    assert [c.id for c in config.classes] == [1, 2, 5]


def test_every_section_has_a_comment(scene: SmallScene) -> None:
    init(scene.folder, *small_scene_arguments(scene))
    lines = (scene.folder / "mibf.yaml").read_text().splitlines()
    for key in ("name", "workspace", "classes", "split", "model", "train", "map"):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert "#" in lines[at] or lines[at - 1].startswith("#")
    assert max(map(len, lines)) <= 125 or any(str(scene.folder) in line for line in lines if len(line) > 125)


def test_class_names_and_colours_are_read_from_the_file(scene: SmallScene) -> None:
    path = scene.folder / "labels.tif"
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (10, 20, 250, 255), 2: (0, 90, 0, 255), 5: (0, 90, 0, 255)})
    names = "".join(f"<Category>{name}</Category>" for name in ("unclassified", "Open: water", "Forest", "", "", "Forest"))
    path.with_name("labels.tif.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand></PAMDataset>'
    )
    config, _ = init(scene.folder, *small_scene_arguments(scene))
    assert [c.name for c in config.classes] == ["Open: water", "Forest (2)", "Forest (5)"]
    colors = [c.color for c in config.classes]
    assert colors[0] == "#0a14fa"
    assert "#005a00" not in colors, "a colour shared by two classes identifies neither"
    assert len(set(colors)) == 3


def test_classes_are_read_from_an_attribute_table(scene: SmallScene) -> None:
    columns = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for i, (name, kind, usage) in enumerate(
            [("VALUE", 0, 5), ("CLASS_NAME", 2, 2), ("R", 0, 6), ("G", 0, 7), ("B", 0, 8)]
        )
    )
    rows = "".join(
        f'<Row index="{i}">{"".join(f"<F>{cell}</F>" for cell in row)}</Row>'
        for i, row in enumerate(
            [(5, "town", 200, 0, 0), (1, "water", 0, 0, 200), (2, "forest", 0, 99, 0), (0, "bare", 9, 9, 9)]
        )
    )
    (scene.folder / "labels.tif.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable>{columns}{rows}</GDALRasterAttributeTable>'
        "</PAMRasterBand></PAMDataset>"
    )
    config, _ = init(scene.folder, *small_scene_arguments(scene))
    assert [(c.id, c.name, c.color) for c in config.classes] == [
        (0, "bare", "#090909"),
        (1, "water", "#0000c8"),
        (2, "forest", "#006300"),
        (5, "town", "#c80000"),
    ]
    assert config.scenes[0].labels is not None
    assert config.scenes[0].labels.ignore == (), "the file names 0, so it is a class"


def boxes(truth: np.ndarray) -> list[tuple[shapely.Polygon, Any]]:
    """Squares of 10 pixels with the class of their ground."""
    found = []
    for row in range(0, truth.shape[0], 10):
        for column in range(0, truth.shape[1], 10):
            (left, top), (right, bottom) = TRANSFORM * (column, row), TRANSFORM * (column + 10, row + 10)
            found.append((shapely.box(left, bottom, right, top), int(truth[row, column])))
    return found


def test_only_candidate_attribute_of_vector_labels_is_used(scene: SmallScene) -> None:
    names = {1: "on", 2: "forest: old", 5: "town"}
    path = write_polygons(scene.folder / "l.gpkg", [(box, names[value]) for box, value in boxes(scene.truth)])
    config, result = init(
        scene.folder, str(scene.folder / "optical.tif"), str(scene.folder / "radar.tif"), "--labels", str(path)
    )
    assert config.scenes[0].labels is not None
    assert config.scenes[0].labels.attribute == "kind"
    assert {c.name for c in config.classes} == set(names.values())
    assert f"forest: old: {(scene.truth == 2).sum():,} pixels" in result.stdout


def test_numeric_vector_labels_keep_their_ids(scene: SmallScene) -> None:
    path = write_polygons(scene.folder / "l.gpkg", boxes(scene.truth))
    config, _ = init(scene.folder, *small_scene_arguments(scene)[:2], "--labels", str(path), "--attribute", "kind")
    assert [c.id for c in config.classes] == [1, 2, 5]


def test_values_named_as_unlabelled_are_ignored(scene: SmallScene) -> None:
    path = scene.folder / "named.tif"
    write_raster(path, np.where(scene.truth == 5, 3, scene.truth)[None].astype(np.uint8))
    categories = "".join(f"<Category>{name}</Category>" for name in ("", "water", "forest", "Unclassified"))
    xml = f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{categories}</CategoryNames></PAMRasterBand></PAMDataset>'
    path.with_name("named.tif.aux.xml").write_text(xml)
    files = [str(scene.folder / "optical.tif"), str(scene.folder / "radar.tif")]
    config, result = init(scene.folder, *files, "--labels", str(path))
    assert {c.id: c.name for c in config.classes} == {1: "water", 2: "forest"}
    assert config.scenes[0].labels is not None
    assert config.scenes[0].labels.ignore == (3,)
    assert "values treated as unlabelled: 3 (" in result.stdout


def test_zero_kept_as_a_class_of_a_mask_is_noted(scene: SmallScene) -> None:
    write_raster(scene.folder / "mask.tif", (scene.truth == 5)[None].astype(np.uint8))
    files = [str(scene.folder / "optical.tif"), str(scene.folder / "radar.tif")]
    config, result = init(scene.folder, *files, "--labels", str(scene.folder / "mask.tif"))
    assert [c.id for c in config.classes] == [0, 1]
    assert "note: 0 is taken as a class; list it in `labels.ignore` if it means unlabelled" in result.stdout


def test_polygons_named_as_unlabelled_are_ignored(scene: SmallScene) -> None:
    left, top = TRANSFORM.c, TRANSFORM.f
    kinds = ["water", "forest", "unknown"]
    rows = [(shapely.box(left + 400 * i, top - 1500, left + 400 * (i + 1), top), kind) for i, kind in enumerate(kinds)]
    path = write_polygons(scene.folder / "areas.gpkg", rows * 2)
    files = [str(scene.folder / "optical.tif"), str(scene.folder / "radar.tif")]
    config, result = init(scene.folder, *files, "--labels", str(path))
    assert sorted(c.name for c in config.classes) == ["forest", "water"]
    assert "values treated as unlabelled: unknown (2 features)" in result.stdout


def test_class_with_too_few_pixels_is_ignored(scene: SmallScene) -> None:
    path = scene.folder / "labels.tif"
    with rasterio.open(path, "r+") as dataset:
        values = dataset.read(1)
        values[values == 0] = 1
        values[0, 0] = 9  # in a corner that no optical pixel covers, and alone
        values[149, 129] = 9
        dataset.write(values, 1)
    config, result = init(scene.folder, *small_scene_arguments(scene))
    labels = resolve_labels(config.scenes[0])
    assert labels is not None
    kept = {c.id for c in config.classes}
    assert kept | set(labels.ignore) == {1, 2, 5, 9}
    assert (9 in kept) != ("too few pixels on the grid to train on" in result.stdout)


def test_configuration_without_labels_is_for_mapping(scene: SmallScene) -> None:
    config, result = init(scene.folder, *small_scene_arguments(scene)[:2])
    assert config.scenes[0].labels is None
    assert config.map.model is None
    assert "# model:" in (scene.folder / "mibf.yaml").read_text()
    assert "fill in `map.model`" in result.stdout


def test_files_grouped_under_a_name_form_one_source(scene: SmallScene) -> None:
    for band in (1, 2):
        write_raster(scene.folder / f"b{band}.tif", scene.optical[band : band + 1], nodata=0)
    grouped = f"bands={scene.folder / 'b1.tif'},{scene.folder / 'b2.tif'}"
    config, _ = init(scene.folder, grouped, str(scene.folder / "radar.tif"))
    assert config.scenes[0].sources["bands"].urls == tuple(str(scene.folder / f"b{i}.tif") for i in (1, 2))


@pytest.mark.parametrize(("finer", "scale", "resampling"), [(2, 2, None), (4, 4, None), (5, 1, "average")])
def test_finer_source_keeps_its_pixels_or_is_averaged(
    scene: SmallScene, finer: int, scale: int, resampling: str | None
) -> None:
    values = np.kron(scene.optical[:1], np.ones((1, finer, finer), np.uint16))
    fine = write_raster(scene.folder / "pan.tif", values, transform=TRANSFORM * Affine.scale(1 / finer))
    config, _ = init(scene.folder, str(scene.folder / "optical.tif"), str(fine))
    assert config.scenes[0].sources["pan"].scale == scale
    assert config.scenes[0].sources["pan"].resampling == resampling


def test_source_that_covers_part_of_the_grid_is_reported(scene: SmallScene) -> None:
    half = write_raster(scene.folder / "dem.tif", scene.optical[:1, :75], nodata=0)
    _, result = init(scene.folder, str(scene.folder / "optical.tif"), str(half))
    assert "covers 50 % of the grid" in result.stdout
    assert "missing: exclude  # covers 50 %" in (scene.folder / "mibf.yaml").read_text()


def test_global_raster_covers_the_grid(scene: SmallScene) -> None:
    """Its extent has no counterpart in a UTM zone."""
    values = np.random.default_rng(0).random((1, 180, 360), np.float32)
    write_raster(scene.folder / "dem.tif", values, transform=Affine(1, 0, -180, 0, -1, 90), crs="EPSG:4326")
    _, result = init(scene.folder, str(scene.folder / "optical.tif"), str(scene.folder / "dem.tif"))
    assert "% of the grid" not in result.stdout


def test_least_covering_file_of_a_source_is_reported(scene: SmallScene) -> None:
    write_raster(scene.folder / "all.tif", np.ones((1, ROWS, COLUMNS), np.float32))
    write_raster(scene.folder / "half.tif", np.ones((1, ROWS // 2, COLUMNS), np.float32))
    files = f"{scene.folder / 'all.tif'},{scene.folder / 'half.tif'}"
    _, result = init(scene.folder, str(scene.folder / "optical.tif"), f"both={files}")
    assert "covers 50 % of the grid" in result.stdout


def test_alpha_band_is_excluded(scene: SmallScene) -> None:
    with rasterio.open(
        scene.folder / "rgba.tif",
        "w",
        driver="GTiff",
        count=4,
        height=150,
        width=130,
        dtype="uint8",
        crs="EPSG:32633",
        transform=TRANSFORM,
        photometric="RGB",
        alpha="YES",
    ) as dataset:
        dataset.write(np.full((4, 150, 130), 255, np.uint8))
    config, _ = init(scene.folder, str(scene.folder / "optical.tif"), str(scene.folder / "rgba.tif"))
    assert config.scenes[0].sources["rgba"].bands == (1, 2, 3)


def write_arrays(folder: Path, optical: np.ndarray) -> None:
    """The same cube as MATLAB 5, MATLAB 7.3 (HDF5) and Zarr."""
    cube = optical.transpose(1, 2, 0)
    scipy.io.savemat(folder / "old.mat", {"cube": cube, "wavelengths": np.arange(3.0), "note": "text"})
    with h5py.File(folder / "new.mat", "w", userblock_size=512) as file:
        file["cube"] = cube.transpose()
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with (folder / "new.mat").open("r+b") as raw:
        raw.write(header)
    array = zarr.open_group(folder / "cube.zarr", mode="w").create_array(
        "cube", shape=optical.shape, dtype=optical.dtype, dimension_names=["band", "y", "x"]
    )
    array[:] = optical


def test_matlab_and_zarr_arrays_are_recognised(scene: SmallScene) -> None:
    write_arrays(scene.folder, scene.optical)
    write_raster(scene.folder / "image.tif", scene.optical[:1], crs=None, transform=Affine.identity())
    names = ("old.mat", "new.mat#cube", "cube.zarr")
    for number, name in enumerate(names):
        folder = scene.folder / str(number)
        folder.mkdir()
        config, result = init(folder, f"cube={scene.folder / name}", str(scene.folder / "image.tif"))
        source = config.scenes[0].sources["cube"]
        assert source.variable == "cube"
        assert source.axes == (("y", "x", "band") if ".mat" in name else None)
        assert "cube: 3 bands of uint16, no CRS, 150 x 130 pixels" in result.stdout


def test_init_json_summary(scene: SmallScene) -> None:
    result = CliRunner().invoke(
        app, ["init", *small_scene_arguments(scene), "--output", str(scene.folder / "c.yaml"), "--name", "valley", "--json"]
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["config"] == str(scene.folder / "c.yaml")
    assert list(summary["plan"]["scenes"]) == ["valley"]
    assert yaml.safe_load((scene.folder / "c.yaml").read_text())["workspace"] == "./work/valley"


def test_large_label_rasters_are_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = np.kron(np.random.default_rng(0).integers(1, 4, (26, 13)), np.ones((100, 100), np.uint8)).astype(np.uint8)
    for name in ("a", "b"):
        write_raster(tmp_path / f"{name}.tif", truth[None])
    sizes = []
    read = RasterLabels._values

    def watched(self: RasterLabels, window: Any) -> Any:
        sizes.append(max(window.height, window.width))
        return read(self, window)

    monkeypatch.setattr(RasterLabels, "_values", watched)
    write_raster(tmp_path / "labels.tif", truth[None])
    init(tmp_path, str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), "--labels", str(tmp_path / "labels.tif"))
    assert sizes
    assert max(sizes) <= 1024


@pytest.mark.slow
def test_prepare_accepts_the_written_configuration(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    init(tmp_path, *small_scene_arguments(scene))
    result = CliRunner().invoke(app, ["prepare", str(tmp_path / "mibf.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "work/stores" / f"{clean(tmp_path)}.zarr").exists()


def clean(folder: Path) -> str:
    """The scene's name, which is that of the folder."""
    from jobs.init.arguments import clean_name

    return clean_name(folder.name)


@pytest.mark.slow
def test_zion_configuration_matches_the_example(shared: Any, tmp_path: Path) -> None:
    data = shared("data/zion")
    bands = ",".join(str(data / f"landsat_b{i}.tif") for i in (2, 3, 4, 5))
    config, _ = init(tmp_path, f"optical={bands}", f"elevation={data / 'srtm.tif'}", "--labels", str(data / "nlcd.tif"))
    example = yaml.safe_load((Path(__file__).resolve().parents[3] / "examples/zion.yaml").read_text())
    assert [c.id for c in config.classes] == [c["id"] for c in example["classes"]]
    assert list(config.scenes[0].sources) == list(example["scenes"][0]["sources"])
    assert config.scenes[0].sources["elevation"].resampling == "bilinear"
    assert config.train.recipe == "auto"
    assert config.name == "zion"


def test_scene_across_180_degrees_is_configured(tmp_path: Path) -> None:
    """A grid in UTM zone 60, a radar at 179 to 181 degrees and polygons cut at 180 degrees, one class on either side."""
    rng = np.random.default_rng(0)
    optical = rng.integers(1, 999, (2, 120, 120)).astype(np.uint16)
    write_raster(tmp_path / "o.tif", optical, transform=Affine(500, 0, 803000, 0, -500, 30000), crs="EPSG:32660")
    radar = rng.random((1, 100, 240)).astype(np.float32)
    write_raster(tmp_path / "r.tif", radar, transform=Affine(0.01, 0, 178.8, 0, -0.01, 0.5), crs="EPSG:4326")
    columns = [(179.75 + 0.04 * i, ("land", "sea")[i % 2]) for i in range(6)] + [
        (-179.95 + 0.04 * i, "reef") for i in range(4)
    ]
    rows = [(shapely.box(left, -0.25, left + 0.03, 0.25), kind) for left, kind in columns]
    write_polygons(tmp_path / "p.gpkg", rows, crs="EPSG:4326")
    config, result = init(tmp_path, str(tmp_path / "o.tif"), f"r={tmp_path / 'r.tif'}", "--labels", str(tmp_path / "p.gpkg"))
    assert {c.name for c in config.classes} == {"land", "sea", "reef"}
    assert "% of the grid" not in result.stdout, "the radar covers the grid"
