"""What the items of each period cover is printed before a file is opened: these items have no files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import shapely
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.loader import load
from jobs.runtime.progress import take_warnings
from jobs.search.coverage import report_items
from mibf.errors import InputError

#: Day, west and east of each item; the area is from 13 to 14 degrees.
ITEMS = [
    ("2024-06-01", 12.5, 13.5),
    ("2024-06-01", 13.4, 14.5),
    ("2024-06-20", 13.0, 14.0),
    ("2024-07-05", 12.0, 13.62),
    ("2024-08-05", 13.38, 15.0),
]


def write_items(folder: Path, items: list[tuple[str, float, float]], *, footprints: bool = True) -> None:
    features = [
        {
            "type": "Feature", "stac_version": "1.0.0", "id": f"{number}", "links": [],
            "geometry": shapely.geometry.mapping(shapely.box(west, 51, east, 54)) if footprints else None,
            "properties": {"datetime": f"{day}T10:00:00Z"},
            "assets": {"red": {"href": f"{number}.tif"}},
        }
        for number, (day, west, east) in enumerate(items)
    ]  # fmt: skip  # values in rows that belong together
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def configuration(folder: Path, **stac: Any) -> str:
    source = {"stac": {"url": str(folder / "items.json"), "assets": ["red"], "composite": "median"} | stac}
    values = {
        "name": "a",
        "workspace": str(folder / "work"),
        "scenes": [{"name": "valley", "bbox": [13, 52, 14, 53], "grid": {"crs": "auto", "resolution": 10},
                    "sources": {"s2": source}}],
        "classes": [{"id": 1, "name": "left"}, {"id": 2, "name": "right"}],
    }  # fmt: skip  # values in rows that belong together
    path = folder / "mibf.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def printed(folder: Path, capsys: pytest.CaptureFixture[str], **stac: Any) -> tuple[list[str], list[str], Any]:
    """The lines that are printed, the warnings, and what is returned."""
    take_warnings()
    found = report_items(load(configuration(folder, **stac)))
    warnings = take_warnings()
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    return lines, warnings, found


def test_each_period_is_printed_with_its_coverage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_items(tmp_path, ITEMS)
    lines, warnings, found = printed(tmp_path, capsys, periods="month")
    assert lines == [
        "valley: s2 2024-06: 3 items, 2 dates, 100.0 % of the area",
        "valley: s2 2024-07: 1 item, 1 date, 62.0 % of the area",
        "valley: s2 2024-08: 1 item, 1 date, 62.0 % of the area",
    ]
    (warning,) = warnings
    assert warning.startswith("valley: s2: the items of periods 2024-07, 2024-08 cover only 62.0 % of the area (2024-0")
    assert warning.endswith(
        "); pixels that lack a period have no data: at most 24.0 % of the area is left; set `gaps` to `interpolate` or "
        "`fill` to keep them"
    )
    july = found["valley"]["s2"][1]
    assert (july["period"], july["items"], july["dates"], july["without_footprint"]) == ("2024-07", 1, 1, 0)
    assert july["coverage"] == pytest.approx(0.62)


def test_what_becomes_of_the_rest_depends_on_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_items(tmp_path, [*ITEMS[:3], ITEMS[4]])
    lines, warnings, _ = printed(tmp_path, capsys, periods="month", gaps="fill")
    assert lines[1] == "valley: s2 2024-07: no items"
    (warning,) = warnings
    assert warning.endswith("period 2024-08 cover only 62.0 % of the area; the values of these periods are filled elsewhere")
    write_items(tmp_path, ITEMS[3:4])
    lines, warnings, _ = printed(tmp_path, capsys)
    assert lines == ["valley: s2: 1 item, 1 date, 62.0 % of the area"]
    assert warnings == ["valley: s2: the items cover only 62.0 % of the area; elsewhere the source has no data"]


def test_many_periods_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = [f"{year}-{month:02}-10" for year in (2021, 2022, 2023) for month in range(1, 13)]
    write_items(tmp_path, [(day, 13.0, 13.9 if day.startswith("2022") else 14.0) for day in days])
    lines, warnings, found = printed(tmp_path, capsys, periods="month")
    assert lines == ["valley: s2: 36 items in 36 periods, 2021-01 to 2023-12, 90.0 to 100.0 % of the area"]
    assert len(found["valley"]["s2"]) == 36
    assert len(warnings) == 1
    assert "of periods 2022-01, 2022-02, " in warnings[0]


def test_items_without_footprints_are_said_to_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_items(tmp_path, ITEMS[:2], footprints=False)
    assert printed(tmp_path, capsys)[:2] == (["valley: s2: 2 items, 1 date, coverage unknown"], [])


def test_coverage_of_a_grid_without_a_place_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_items(tmp_path, ITEMS[:2])
    grid = {"crs": 'LOCAL_CS["site"]', "resolution": 10, "bounds": [0, 0, 100, 100]}
    path = configuration(tmp_path)
    values = yaml.safe_load(Path(path).read_text())
    values["scenes"][0] |= {"grid": grid}
    del values["scenes"][0]["bbox"]
    Path(path).write_text(yaml.safe_dump(values))
    take_warnings()
    report_items(load(path))
    assert capsys.readouterr().err == "valley: s2: 2 items, 1 date, coverage unknown\n"
    assert take_warnings() == []


def test_area_that_cannot_be_read_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_items(tmp_path, ITEMS)
    path = configuration(tmp_path)
    values = yaml.safe_load(Path(path).read_text())
    del values["scenes"][0]["bbox"]
    values["scenes"][0]["area"] = {"url": str(tmp_path / "none.geojson")}
    Path(path).write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"none\.geojson: no such file"):
        report_items(load(path))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["plan", "prepare", "run"])
@pytest.mark.parametrize("stac", [{}, {"periods": "month"}])
def test_items_outside_the_area_are_refused_before_a_file_is_opened(
    stac: dict[str, Any], command: str, tmp_path: Path
) -> None:
    write_items(tmp_path, [(day, west - 120, east - 120) for day, west, east in ITEMS])
    for number in range(len(ITEMS)):
        (tmp_path / f"{number}.tif").touch()
    done = CliRunner().invoke(app, [command, configuration(tmp_path, **stac)])
    assert done.exit_code == 2
    message = " ".join(done.stderr.split())
    assert "scene 'valley': no item of source 's2'" in message
    assert (
        "span longitude -108 to -105, latitude 51 to 54 degrees, the area longitude 13 to 14, latitude 52 to 53" in message
    )
    assert "Search in this area, or check `area`, `bbox` or `grid`." in message
    assert not (tmp_path / "work" / "stores").exists()
