"""Points as files, and labelled points that do not fit their design."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import geopandas
import numpy as np
import pandas as pd
import pytest

from mibf.errors import InputError
from pipeline.assessment.design import ClassCount, Design, Stratum
from pipeline.assessment.points import csv_bytes, labelled_points, point_table, read_table, write_geopackage
from pipeline.assessment.selection import DrawnPoints, SceneFrame
from tests.support.published_maps import GEOGRAPHIC, LOCAL, UTM

CLASSES = {1: "open water", 2: "Wald, naß", 5: "!"}
DESIGN = Design(
    "stratified",
    (Stratum(2, "open water", 700, 7.0, 2, 2 / 700), Stratum(1, "Wald, naß", 500, 5.0, 3, 3 / 500)),
    (ClassCount(1, "open water", 700, 7.0), ClassCount(2, "Wald, naß", 500, 5.0)),
    "digest",
    {"one": "item"},
    seed=0,
)


def scenes(**grids: Any) -> list[SceneFrame]:
    return [cast(SceneFrame, SimpleNamespace(name=name, grid=grid)) for name, grid in grids.items()]


def table_of(grid: Any = UTM) -> pd.DataFrame:
    """Five points without labels."""
    rows, columns = np.array([0, 3, 9, 20, 39]), np.array([1, 0, 29, 7, 29])
    drawn = DrawnPoints(np.arange(5, dtype=np.uint64), np.zeros(5, np.int64), rows, columns, np.array([0, 0, 1, 1, 1]))
    return point_table(drawn, scenes(one=grid), DESIGN, np.array([0, 0, 1, 1, 1]))


def labelled(grid: Any = UTM, **changes: Any) -> pd.DataFrame:
    return table_of(grid).assign(label=["open water", "2", "Wald, naß", "!", None], **changes)


def check(table: pd.DataFrame, grid: Any = UTM) -> Any:
    return labelled_points(table, "labels.csv", DESIGN, {"one": grid}, CLASSES)


@pytest.mark.parametrize("grid", [UTM, GEOGRAPHIC, LOCAL], ids=["utm", "geographic", "local"])
@pytest.mark.parametrize("name", ["points.gpkg", "points.csv"])
def test_points_are_read_back_as_they_were_written(tmp_path: Path, name: str, grid: Any) -> None:
    path, table = tmp_path / name, labelled(grid)
    if name.endswith("csv"):
        path.write_bytes(csv_bytes(table))
    else:
        write_geopackage(path, table, scenes(one=grid))
        assert geopandas.read_file(path).crs == (None if grid.crs is None else grid.crs.to_wkt())
    found = check(read_table(str(path)), grid)
    assert found.rows.tolist() == [0, 3, 9, 20, 39]
    assert found.columns.tolist() == [1, 0, 29, 7, 29]
    assert found.strata.tolist() == [0, 0, 1, 1, 1]
    assert found.labels.tolist() == [0, 1, 1, 2, -1]


def test_table_has_degrees_probabilities_and_an_empty_label() -> None:
    table = table_of()
    assert table["label"].isna().all()
    assert table["weight"].tolist() == pytest.approx([350, 350, *[500 / 3] * 3])
    assert (table["inclusion_probability"] * table["weight"]).tolist() == pytest.approx([1] * 5)
    assert abs(table["lon"] - 15).max() < 0.01
    assert abs(table["lat"] - 45.15).max() < 0.02
    assert table_of(LOCAL)["lon"].isna().all()


def test_points_of_scenes_in_several_systems_are_written_in_degrees(tmp_path: Path) -> None:
    rows = columns = np.array([1, 2])
    drawn = DrawnPoints(np.arange(2, dtype=np.uint64), np.array([0, 1]), rows, columns, np.array([0, 1]))
    both = scenes(one=UTM, two=GEOGRAPHIC)
    write_geopackage(tmp_path / "p.gpkg", point_table(drawn, both, DESIGN, np.array([0, 1])).assign(label="2"), both)
    found = read_table(str(tmp_path / "p.gpkg"))
    assert found.crs == "EPSG:4326"
    points = labelled_points(found, "p.gpkg", DESIGN, {"one": UTM, "two": GEOGRAPHIC}, CLASSES)
    assert points.scenes.tolist() == [0, 1]
    assert points.rows.tolist() == [1, 2]


def test_pixels_are_found_from_coordinates_alone() -> None:
    found = check(labelled().drop(columns=["row", "column", "sample"]))
    assert found.rows.tolist() == [0, 3, 9, 20, 39]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="label"), "has no column 'label'"),
        (lambda t: t.iloc[:0], "has no points"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "point 1: more than once"),
        (lambda t: t.assign(row=[0, 3, 0, 20, 39], column=[1, 0, 1, 7, 29], x=t.x.where(t.index != 2, t.x[0]),
                            y=t.y.where(t.index != 2, t.y[0])), "points? 1.*another point is in the same pixel"),
        (lambda t: t.assign(stratum=7), r"points 1, 2, 3, 4, 5: in a stratum that the design does not have \(2, 1\)"),
        (lambda t: t.assign(scene="two"), r"in a scene that was not sampled from this map \(one\)"),
        (lambda t: t.assign(row=[0, 3, 400, 20, 39]), "point 3: outside the map"),
        (lambda t: t.assign(x=t.x - 1e6).drop(columns=["row", "column"]), "outside the map; check the file and its CRS"),
        (lambda t: t.assign(x=t.x + 10.0 * (t.index == 3)), "point 4: not in the pixel .* they were moved"),
        (lambda t: t.assign(label=["swamp", *t.label[1:]]), r"point 1: labelled 'swamp', which is no class of the map"),
        (lambda t: t.assign(point=[1, 2, 3, 4, "x"]), "row 5 has 'x' as `point`"),
        (lambda t: t.assign(sample="other"), "not of the sample"),
        (lambda t: t.drop(columns=["x", "y", "row", "column"]), "neither points nor the columns"),
    ],
)  # fmt: skip  # one case per line
def test_bad_samples_are_refused_with_their_points(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        check(change(labelled()))
    assert str(raised.value).startswith("labels.csv: ")


def test_files_without_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_table(str(tmp_path / "none.gpkg"))
    (tmp_path / "bad.gpkg").write_bytes(b"no database")
    with pytest.raises(InputError, match="cannot be read as points"):
        read_table(str(tmp_path / "bad.gpkg"))
    (tmp_path / "bad.csv").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read as points"):
        read_table(str(tmp_path / "bad.csv"))


def test_tables_of_spreadsheets_with_semicolons_are_read(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    labelled().to_csv(path, index=False, sep=";", decimal=",", encoding="utf-8-sig")
    found = check(read_table(str(path)))
    assert found.rows.tolist() == [0, 3, 9, 20, 39]
    assert found.labels.tolist() == [0, 1, 1, 2, -1]


def test_layer_of_the_points_is_read_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "several.gpkg"
    frame = geopandas.GeoDataFrame({"label": ["1"]}, geometry=geopandas.points_from_xy([0], [0]), crs="EPSG:4326")
    for layer in ("mine", "other"):
        frame.to_file(path, layer=layer)
    with pytest.raises(InputError, match=r"has several layers \(mine, other\); name that of the points 'points'"):
        read_table(str(path))
    labelled().pipe(lambda table: write_geopackage(path, table, scenes(one=UTM)))
    assert len(read_table(str(path))) == 5


def test_design_is_read_back_as_it_was_written() -> None:
    found = Design.of_json(DESIGN.to_json(), "design.json")
    assert found == DESIGN
    assert found.id == DESIGN.id
    assert found.to_json()["frame"] == {"pixels": 1200, "hectares": 12.0}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "not the record of a sampling design"),
        ({"format": 2}, "not the record of a sampling design of format 1"),
        ({"format": 1}, "not a complete record"),
        (DESIGN.to_json() | {"strata": []}, "needs strata with different numbers"),
        (DESIGN.to_json() | {"design": "haphazard"}, "design 'haphazard' is unknown"),
        (DESIGN.to_json() | {"strata": [{"number": 1}]}, "not a complete record"),
    ],
)
def test_bad_designs_are_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Design.of_json(value, "design.json")
