"""Scenes of a configuration as a table: what columns set, and messages that name row and column."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.config.config import Config
from jobs.config.loader import load
from mibf.errors import InputError

SCENES: dict[str, Any] = {
    "template": {
        "grid": {"like": "optical"},
        "sources": {"optical": None, "radar": {"missing": "fill"}},
        "labels": {"attribute": "kind"},
    },
}
COLUMNS = ("name", "optical", "radar", "labels", "datetime")
ROWS: list[tuple[Any, ...]] = [
    ("north", "s3://b/n/o.tif", "n/r.tif", "n/l.gpkg", "2024-07-01T10:30:00Z"),
    ("0012", "s3://b/s/o.tif", "s/r.tif", None, None),
]


def write(folder: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]], kind: str) -> str:
    """Write a table and return its path."""
    path = folder / f"scenes.{kind}"
    values = [dict(zip(columns, row, strict=True)) for row in rows]
    if kind == "parquet":
        pq.write_table(
            pa.Table.from_pylist(values, schema=None if rows else pa.schema([(c, pa.string()) for c in columns])), path
        )
    elif kind == "json":
        path.write_text(json.dumps(values))
    else:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerows([columns, *(["" if v is None else v for v in row] for row in rows)])
        path.write_text(text.getvalue())
    return str(path)


def loaded(folder: Path, table: str, **changes: Any) -> Config:
    """Load a configuration with a table of scenes."""
    path = folder / "fleet.yaml"
    classes = [{"id": 1, "name": "water"}, {"id": 2, "name": "forest"}]
    values = {"name": "fleet", "workspace": "work", "classes": classes, "scenes": SCENES | {"table": table} | changes}
    path.write_text(yaml.safe_dump(values))
    return load(str(path))


def refusal(folder: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]], kind: str = "csv", **changes: Any) -> str:
    """Return the message with which a table is refused."""
    with pytest.raises(InputError) as caught:
        loaded(folder, write(folder, columns, rows, kind), **changes)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_rows_are_the_scenes_that_a_list_would_have(tmp_path: Path, kind: str) -> None:
    config = loaded(tmp_path, write(tmp_path, COLUMNS, ROWS, kind))
    sources = [
        {"optical": {"url": f"s3://b/{letter}/o.tif"}, "radar": {"missing": "fill", "url": f"{letter}/r.tif"}}
        for letter in "ns"
    ]
    common = {"grid": {"like": "optical"}}
    north = {"name": "north", "sources": sources[0], "datetime": "2024-07-01T10:30:00Z"}
    north["labels"] = {"url": "n/l.gpkg", "attribute": "kind"}
    south = {"name": "0012", "sources": sources[1]}
    path = tmp_path / "listed.yaml"
    values = yaml.safe_load((tmp_path / "fleet.yaml").read_text())
    path.write_text(yaml.safe_dump(values | {"scenes": [common | north, common | south]}))
    assert config == load(str(path))


def test_columns_may_be_any_key_of_a_scene(tmp_path: Path) -> None:
    columns = ("name", "sources.opt.1.url", "sources.opt.1.bands", "bbox", "grid.resolution", "area.ignored", "note")
    row = ("a", "o.tif", "1-3", [9, 45, 10, 46], 10.0, None, "left out")
    template = {"grid": {"crs": "auto"}, "sources": {"opt.1": {"nodata": 0}}}
    table = write(tmp_path, columns, [row], "parquet")
    (scene,) = loaded(tmp_path, table, template=template, columns=[*columns[:5]]).scenes
    assert (scene.bbox, scene.grid.resolution) == ((9, 45, 10, 46), 10)
    assert (scene.sources["opt.1"].url, scene.sources["opt.1"].bands) == ("o.tif", (1, 2, 3))
    csv_row = ("a", "o.tif", "[1, 2, 3]", "[9, 45, 10, 46]", "10", "", "")
    table = write(tmp_path, columns, [csv_row], "csv")
    assert loaded(tmp_path, table, template=template, columns=[*columns[:5]]).scenes == (scene,)


def test_source_of_items_takes_the_url_of_the_items(tmp_path: Path) -> None:
    template = {"grid": {"like": "s2"}, "sources": {"s2": {"stac": {"assets": ["red"]}}}}
    (scene,) = loaded(tmp_path, write(tmp_path, ("name", "s2"), [("a", "a.json")], "csv"), template=template).scenes
    assert scene.sources["s2"].stac is not None
    assert scene.sources["s2"].stac.url == "a.json"


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (("optical", "radar"), ("o", "r"), "has no column 'name'; its columns are optical, radar"),
        (("name", "optical"), ("a", "o"), "has no column 'radar' with the files of this source"),
        (("name", "optcal", "radar"), ("a", "o", "r"), "column 'optcal' is neither a key of a scene nor a source"),
        (("name", "optcal", "radar"), ("a", "o", "r"), "did you mean 'optical'?"),
        (("name", "optical", "radar"), ("", "o", "r"), "row 2, column 'name': is empty"),
        (("name", "optical", "radar"), ("n o", "o", "r"), "row 2 ('n o'), column 'name': may contain only letters"),
        (("name", "optical", "radar"), ("a", "", "r"), "row 2 ('a'), column 'optical' is empty: give exactly one of `url`"),
        (("name", "optical", "radar"), ("a", "htp://x/o", "r"), "row 2 ('a'), column 'optical': htp://x/o cannot be read"),
        (("name", "optical", "radar"), ("a", "s3://k:s@b/o", "r"), "column 'optical': the URL contains a user and password"),
        (("name", "optical", "radar", "datetime"), ("a", "o", "r", "July"), "column 'datetime': is not an ISO 8601 time"),
        (("name", "optical", "radar", "bbox"), ("a", "o", "r", "[1, 2"), "row 2, column 'bbox': begins as a list"),
        (("name", "optical", "radar", "bbox"), ("a", "o", "r", "[1, 2, 3]"), "row 2 ('a'), column 'bbox"),
        (("name", "optical", "radar", "grid.lik"), ("a", "o", "r", "x"), "column 'grid.lik': unknown key"),
    ],
)
def test_mistakes_name_row_and_column(tmp_path: Path, columns: tuple[str, ...], row: tuple[Any, ...], message: str) -> None:
    good = {"name": "first", "bbox": "", "datetime": "", "grid.lik": ""}
    first = tuple(good.get(column, "s3://b/x.tif") for column in columns)
    found = refusal(tmp_path, columns, [first, row])
    assert f"{tmp_path}/scenes.csv" in found
    assert message in found


def test_values_of_a_wrong_type_and_scenes_with_one_name_are_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path, ("name", "optical", "radar"), [(7, "o", "r")], "parquet")
    assert "scenes.parquet, row 1 (7), column 'name': must be text; put it in quotes (found 7)" in found
    found = refusal(tmp_path, COLUMNS, [ROWS[0], ROWS[1], ROWS[0]])
    assert "scenes.csv: rows 1 and 3 have the same name 'north'" in found
    found = refusal(tmp_path, ("name", "optical", "radar", "shape"), [("a", "o", "r", b"\0")], "parquet")
    assert "row 1, column 'shape': holds binary data" in found


def test_mistake_of_the_template_is_reported_once(tmp_path: Path) -> None:
    template = SCENES["template"] | {"gird": 1, "sources": {"optical": None, "radar": {"resamplng": "mode"}}}
    found = refusal(tmp_path, COLUMNS, ROWS, template=template)
    assert found.count("scenes.template.gird: unknown key; did you mean 'grid'?") == 1
    assert found.count("scenes.template.sources.radar.resamplng: unknown key") == 1


def test_many_mistakes_are_cut(tmp_path: Path) -> None:
    found = refusal(tmp_path, ("name", "optical", "radar", "labels"), [(f"s {i}", "o", "r", "l") for i in range(1000)])
    assert len(found.splitlines()) == 22
    assert found.endswith("and 980 more")


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_empty_table_is_refused(tmp_path: Path, kind: str) -> None:
    assert "has no rows" in refusal(tmp_path, COLUMNS, [], kind)


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ({"table": "{folder}/none.csv"}, "none.csv: no such file"),
        ({"table": "{folder}/scenes.txt"}, "suffix .parquet, .csv or .json"),
        ({"table": "{folder}/broken.parquet"}, "is not a Parquet file"),
        ({"table": "{folder}/broken.json"}, "is not JSON"),
        ({"tabel": "a.csv"}, "must be a list of scenes, or a table of them"),
        ({"table": "{folder}/good.csv", "columns": ["name", "title"]}, "has no column 'title' (of `scenes.columns`)"),
        ({"table": "{folder}/good.csv", "sha256": "0" * 64}, "is not the table that was saved"),
    ],
)
def test_unreadable_tables_are_refused(tmp_path: Path, scenes: dict[str, Any], message: str) -> None:
    for name in ("broken.parquet", "broken.json"):
        (tmp_path / name).write_bytes(b"PAR1 no")
    (tmp_path / "good.csv").write_text("name,optical,radar\na,o,r\n")
    path = tmp_path / "fleet.yaml"
    values = {key: value.format(folder=tmp_path) if isinstance(value, str) else value for key, value in scenes.items()}
    path.write_text(yaml.safe_dump({"name": "x", "workspace": "w", "scenes": SCENES | values}))
    with pytest.raises(InputError) as caught:
        load(str(path))
    assert message in str(caught.value)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=9).filter(
    lambda text: not text.startswith(("[", "{")) and "$" not in text and "://" not in text
)


@given(st.lists(st.tuples(TEXT, st.none() | TEXT), min_size=1, max_size=5))
def test_every_kind_of_table_has_the_same_scenes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    numbered = [(f"s{number}", *row) for number, row in enumerate(rows)]
    found = []
    for kind in ("csv", "parquet", "json"):
        table = write(folder, ("name", "optical", "labels"), numbered, kind)
        found.append(loaded(folder, table, template={"grid": {"like": "optical"}, "sources": {"optical": {}}}).scenes)
    assert found[0] == found[1] == found[2]
