"""What `mibf init` refuses: one clear message, exit status 2, nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import shapely
from affine import Affine
from typer.testing import CliRunner

from jobs.cli import app
from tests.support.scenes import COLUMNS, ROWS, TRANSFORM, SmallScene, write_polygons, write_raster


def refused(folder: Path, arguments: Sequence[Any]) -> str:
    """Run `mibf init`, which must refuse and leave the folder as it was; its message."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    output = [] if "--output" in arguments else ["--output", str(folder / "mibf.yaml")]
    result = CliRunner().invoke(app, ["init", *map(str, arguments), *output])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return result.stderr.replace("\n", " ")


@pytest.fixture
def files(scene: SmallScene) -> list[Path]:
    """The files of two sources."""
    return [scene.folder / "optical.tif", scene.folder / "radar.tif"]


def labelled(scene: SmallScene, files: list[Path], values: np.ndarray, **options: Any) -> str:
    """The refusal of a label raster."""
    path = write_raster(scene.folder / "odd.tif", values[None], **options)
    return refused(scene.folder, [*files, "--labels", path])


def test_missing_file_exits_2(scene: SmallScene, files: list[Path]) -> None:
    assert "nowhere.tif: no such file" in refused(scene.folder, [files[0], scene.folder / "nowhere.tif"])


def test_non_raster_file_exits_2(scene: SmallScene, files: list[Path]) -> None:
    (scene.folder / "text.tif").write_text("not a raster")
    assert "text.tif: cannot be read as a raster" in refused(scene.folder, [files[0], scene.folder / "text.tif"])


@pytest.mark.parametrize("name", ["con", "_x", "a" * 101])
def test_invalid_source_name_is_refused(scene: SmallScene, files: list[Path], name: str) -> None:
    assert f"source name '{name}'" in refused(scene.folder, [f"{name}={files[0]}", files[1]])


def test_duplicate_source_name_is_refused(scene: SmallScene, files: list[Path]) -> None:
    assert "'a' is given twice" in refused(scene.folder, [f"a={files[0]}", f"A={files[1]}"])


def test_file_that_is_given_twice_is_refused(scene: SmallScene, files: list[Path]) -> None:
    message = refused(scene.folder, [files[0], f"copy={files[0]}"])
    assert "optical.tif: is given twice" in message
    assert "`bands`" in message


def test_files_of_a_source_that_need_different_resampling_are_refused(scene: SmallScene, files: list[Path]) -> None:
    values = np.ones((1, 2 * ROWS, 2 * COLUMNS), np.float32)
    fine = write_raster(scene.folder / "fine.tif", values, transform=TRANSFORM * Affine.scale(0.5))
    same = write_raster(scene.folder / "same.tif", values[:, :ROWS, :COLUMNS])
    message = refused(scene.folder, [files[0], f"mix={same},{fine}"])
    assert "source 'mix': its files need different resampling" in message
    assert "same.tif (EPSG:32633, 10 x 10 metre)" in message
    assert "fine.tif (EPSG:32633, 5 x 5 metre)" in message


def test_url_with_signature_is_refused(scene: SmallScene, files: list[Path]) -> None:
    message = refused(scene.folder, [files[0], "https://host.invalid/b.tif?sig=abc"])
    assert "has a query or a password" in message
    assert "abc" not in message


def test_file_without_crs_among_files_with_crs_is_refused(scene: SmallScene, files: list[Path]) -> None:
    path = write_raster(scene.folder / "bare.tif", scene.optical, crs=None)
    assert "bare.tif: no CRS, while other files have one" in refused(scene.folder, [files[0], path])


def test_images_of_incompatible_sizes_are_refused(scene: SmallScene) -> None:
    sizes = {"a": (30, 30), "b": (30, 29)}
    for name, size in sizes.items():
        write_raster(scene.folder / f"{name}.tif", np.ones((1, *size), np.uint8), crs=None, transform=Affine.identity())
    message = refused(scene.folder, [scene.folder / "a.tif", scene.folder / "b.tif"])
    assert "their sizes do not fit" in message
    assert "30 x 29" in message


def test_source_outside_the_grid_is_refused(scene: SmallScene, files: list[Path]) -> None:
    path = write_raster(scene.folder / "far.tif", scene.optical, transform=TRANSFORM * Affine.translation(9000, 0))
    assert "far.tif: does not overlap the reference grid" in refused(scene.folder, [files[0], path])


def test_file_with_several_arrays_requires_an_array_name(scene: SmallScene, files: list[Path]) -> None:
    scipy.io.savemat(scene.folder / "two.mat", {"a": np.ones((5, 4)), "b": np.ones((5, 4, 3))})
    message = refused(scene.folder, [files[0], scene.folder / "two.mat"])
    assert "holds several arrays: a (5 x 4), b (5 x 4 x 3). Name one, as in" in message
    assert "two.mat#a" in message


def test_existing_configuration_is_not_overwritten(scene: SmallScene, files: list[Path]) -> None:
    (scene.folder / "mibf.yaml").write_text("mine")
    message = refused(scene.folder, files)
    assert "mibf.yaml: already exists and is never overwritten. Give another file with --output" in message
    assert (scene.folder / "mibf.yaml").read_text() == "mine"


def test_missing_output_folder_is_refused(scene: SmallScene, files: list[Path]) -> None:
    message = refused(scene.folder, [*files, "--output", scene.folder / "none" / "mibf.yaml"])
    assert "its folder does not exist" in message


def test_fractional_label_values_are_refused(scene: SmallScene, files: list[Path]) -> None:
    values = np.linspace(0, 1, scene.truth.size, dtype=np.float32).reshape(scene.truth.shape)
    assert "float32 values such as" in labelled(scene, files, values)


def test_labels_with_too_many_values_are_refused(scene: SmallScene, files: list[Path]) -> None:
    values = np.arange(scene.truth.size, dtype=np.uint16).reshape(scene.truth.shape)
    assert "look like measurements" in labelled(scene, files, values)


def test_label_values_above_254_are_refused(scene: SmallScene, files: list[Path]) -> None:
    message = labelled(scene, files, scene.truth.astype(np.uint16) + 310)
    assert "holds 311, 312, 315; class ids are 0 to 254" in message


def test_labels_with_one_class_are_refused(scene: SmallScene, files: list[Path]) -> None:
    assert "holds one class only (3)" in labelled(scene, files, np.full(scene.truth.shape, 3, np.uint8))


def test_labels_with_only_nodata_are_refused(scene: SmallScene, files: list[Path]) -> None:
    assert "no pixel of the reference grid has a label" in labelled(
        scene, files, np.full(scene.truth.shape, 3, np.uint8), nodata=3
    )


def test_labels_outside_the_grid_are_refused(scene: SmallScene, files: list[Path]) -> None:
    message = labelled(scene, files, scene.truth, transform=TRANSFORM * Affine.translation(9000, 0))
    assert "odd.tif: does not overlap the reference grid" in message


def test_multiband_labels_are_refused(scene: SmallScene, files: list[Path]) -> None:
    assert "has 3 bands; labels are a raster of one band" in refused(scene.folder, [*files, "--labels", files[0]])


def test_too_few_labels_for_blocks_are_refused(scene: SmallScene, files: list[Path]) -> None:
    values = np.zeros(scene.truth.shape, np.uint8)
    values[:2, :4] = [1, 1, 2, 2]
    assert "the labels do not suffice for training, validation and test" in labelled(scene, files, values, nodata=0)


def test_attribute_without_labels_is_refused(scene: SmallScene, files: list[Path]) -> None:
    assert "give that with --labels" in refused(scene.folder, [*files, "--attribute", "kind"])


def squares(folder: Path, columns: dict[str, list[Any]], *, shift: float = 0.0) -> Path:
    """A vector file of squares with some attributes."""
    import geopandas

    left, top = TRANSFORM * (0, 0)
    count = len(next(iter(columns.values())))
    shapes = [shapely.box(left + shift + 10 * i, top - 50, left + shift + 10 * i + 10, top) for i in range(count)]
    geopandas.GeoDataFrame(columns, geometry=shapes, crs="EPSG:32633").to_file(folder / "l.gpkg")
    return folder / "l.gpkg"


def test_several_candidate_attributes_are_refused(scene: SmallScene, files: list[Path]) -> None:
    path = squares(scene.folder, {"kind": ["a", "b", "a"], "group": ["x", "x", "y"], "number": [1.5, 2.5, 2.5]})
    message = refused(scene.folder, [*files, "--labels", path])
    assert "several attributes may contain the classes; name one with --attribute" in message
    assert "kind, 2 values: a, b; group, 2 values: x, y" in message
    assert "number" not in message


def test_labels_without_a_candidate_attribute_are_refused(scene: SmallScene, files: list[Path]) -> None:
    path = squares(scene.folder, {"label": ["a", "b", "c"], "height": [1.5, 2.5, 2.5]})
    message = refused(scene.folder, [*files, "--labels", path])
    assert "no attribute looks like classes" in message
    assert "label (3 values), height (2 values); name the one with the classes with --attribute" in message


@pytest.mark.parametrize(
    ("columns", "attribute", "message"),
    [
        ({"kind": ["a", "b"]}, "sort", "has no attribute 'sort'; it has kind"),
        ({"kind": [True, False]}, "kind", "contains neither text nor numbers"),
        ({"kind": [1.5, 2.5]}, "kind", "holds the number 1.5"),
        ({"kind": [311, 312]}, "kind", "holds the number 311"),
        ({"kind": ["a", None]}, "kind", "has one value (a)"),
        ({"kind": [f"n{i}" for i in range(101)]}, "kind", "has 101 values"),
    ],
)
def test_unsuitable_attribute_is_refused(
    scene: SmallScene, files: list[Path], columns: dict[str, list[Any]], attribute: str, message: str
) -> None:
    path = squares(scene.folder, columns)
    assert message in refused(scene.folder, [*files, "--labels", path, "--attribute", attribute])


def test_features_outside_the_grid_are_refused(scene: SmallScene, files: list[Path]) -> None:
    path = squares(scene.folder, {"kind": ["a", "b", "a"]}, shift=1e5)
    assert "no feature is on the reference grid. The file spans x" in refused(scene.folder, [*files, "--labels", path])


def test_failed_plan_leaves_no_file(scene: SmallScene, files: list[Path]) -> None:
    """A workspace with a password is refused by the loader, when the file is written already."""
    message = refused(scene.folder, [*files, "--workspace", "s3://user:word@bucket/work"])
    assert "word" not in message.replace("password", "")


def test_polygons_outside_the_grid_are_refused(scene: SmallScene, files: list[Path]) -> None:
    path = write_polygons(scene.folder / "l.gpkg", [(shapely.box(0, 0, 1, 1), "a")])
    assert "no feature is on the reference grid" in refused(scene.folder, [*files, "--labels", path])
