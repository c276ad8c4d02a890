"""`mibf estimate` on a mapped scene, and samples that it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio

from jobs.workflow.workspace import Workspace
from pipeline.publishing.stac_item import check_item
from tests.support.mapped_scene import Mapped

Label = Callable[..., Path]
N = ("--n", "40", "--minimum", "6")


def item(mapped: Mapped) -> dict[str, Any]:
    return dict(json.loads((mapped.map / "item.json").read_text()))


def stored(mapped: Mapped) -> dict[str, Any]:
    return dict(json.loads((mapped.folder / "work/runs/main/estimates.json").read_text()))


def test_estimates_are_stored_and_published(mapped: Mapped, label: Label) -> None:
    mapped.does("sample", *N)
    before = item(mapped)
    found = mapped.does("estimate", "--sample", str(label()), "--json").json
    assert found == stored(mapped)
    after = item(mapped)
    check_item(after)
    summary = after["properties"].pop("mibf:estimates")
    assert after == before
    assert summary["overall_accuracy"] == found["overall_accuracy"]
    assert found["method"] == "stratified"
    areas = [row["area"]["estimate"] for row in found["classes"]]
    assert sum(areas) == pytest.approx(found["frame"]["hectares"])
    assert sum(row["mapped_area"] for row in found["classes"]) == pytest.approx(found["frame"]["hectares"])
    for row in found["classes"]:
        for name in ("users_accuracy", "producers_accuracy", "f1", "area_share"):
            figure = row[name]
            assert figure["estimate"] is None or 0 <= figure["low"] <= figure["estimate"] <= figure["high"] <= 1
    assert 0.5 < found["overall_accuracy"]["estimate"] < 1
    assert mapped.does("verify").status == 0


def test_report_shows_the_estimates_of_the_map_that_is_published(mapped: Mapped, label: Label) -> None:
    for stage in ("evaluate", "report"):
        mapped.does(stage, "baselines.enabled=false")
    page = mapped.folder / "work/report/index.html"
    assert "Accuracy and areas of the map" not in page.read_text()
    assert "Accuracy against confidence by predicted class" in page.read_text()
    mapped.does("sample", *N)
    mapped.does("estimate", "baselines.enabled=false", "--sample", str(label()))
    found = stored(mapped)
    scenes = {"east": found, "west": {"points": 7, "note": "7 points are too few for estimates; 25 are needed"}}
    (mapped.folder / "work/runs/main/estimates.json").write_text(json.dumps(found | {"by_scene": scenes}))
    mapped.does("report", "baselines.enabled=false")
    shown = page.read_text()
    assert "<td>east</td>" in shown
    assert "7 points are too few for estimates" in shown
    assert "Accuracy and areas of the map" in shown
    assert all(f"<td>{row['mapped_area']:,.1f}</td>" in shown for row in stored(mapped)["classes"])
    mapped.does("map", "--replace", "prediction.priors=uniform")
    mapped.does("report", "baselines.enabled=false", "prediction.priors=uniform")
    assert "Accuracy and areas of the map" not in page.read_text()


def test_estimates_are_kept_if_the_report_cannot_be_written(mapped: Mapped, label: Label) -> None:
    for stage in ("evaluate", "report"):
        mapped.does(stage, "baselines.enabled=false")
    (mapped.folder / "work/runs/main/manifests/evaluate.json").unlink()
    mapped.does("sample", *N)
    done = mapped.does("estimate", "baselines.enabled=false", "--sample", str(label()))
    assert "the report was not written again" in done.stderr
    assert stored(mapped)["points"] == 40


def test_perfect_labels_have_intervals(mapped: Mapped, label: Label) -> None:
    mapped.does("sample", *N)
    found = mapped.does("estimate", "--sample", str(label(wrong=0)), "--json").json
    assert found["overall_accuracy"]["estimate"] == 1
    assert found["overall_accuracy"]["interval"] == "Wilson"
    assert 0.6 < found["overall_accuracy"]["low"] < 1
    for row in found["classes"]:
        if row["mapped_points"]:
            assert row["users_accuracy"]["estimate"] == 1
            assert row["area"]["estimate"] == pytest.approx(row["mapped_area"])


@pytest.mark.parametrize("design", ["random", "systematic"])
def test_samples_without_strata_are_stratified_after_drawing(mapped: Mapped, label: Label, design: str) -> None:
    mapped.does("sample", "--n", "40", "--design", design)
    found = mapped.does("estimate", "--sample", str(label(wrong=0)), "--json").json
    assert found["method"] == "post-stratified"
    merged = [note for note in found["notes"] if "merged" in note]
    if not merged:
        for row in found["classes"]:
            assert row["area"]["estimate"] == pytest.approx(row["mapped_area"])


def test_labels_of_the_sheet_are_found_with_their_design(mapped: Mapped, label: Label, tmp_path: Path) -> None:
    """The page's CSV is saved anywhere; its design is found in the run's folder by the sample's id."""
    mapped.does("sample", "--n", "30", "--minimum", "4", "--seed", "9", "--name", "other")
    mapped.does("sample", *N)
    table = geopandas.read_file(label()).drop(columns="geometry")
    (tmp_path / "downloads").mkdir()
    table.to_csv(tmp_path / "downloads/labelled.csv", index=False)
    found = mapped.does("estimate", "--sample", str(tmp_path / "downloads/labelled.csv"), "--json").json
    assert found["points"] == 40


def test_sample_of_another_map_needs_the_option_and_its_strata(mapped: Mapped, label: Label) -> None:
    mapped.does("sample", *N)
    labels = label()
    mapped.does("map", "--replace", "prediction.priors=uniform")
    before = mapped.files()
    refused = mapped.does("estimate", "prediction.priors=uniform", "--sample", str(labels), status=2)
    assert "is a sample of another map than the one that is published now" in refused.stderr
    assert mapped.files() == before
    found = mapped.does("estimate", "prediction.priors=uniform", "--sample", str(labels), "--other-map", "--json").json
    assert found["method"] == "indicator"
    assert sum(row["area"]["estimate"] for row in found["classes"]) == pytest.approx(found["frame"]["hectares"])


def test_missing_labels_are_refused_or_left_out(mapped: Mapped, label: Label) -> None:
    mapped.does("sample", *N)
    path = label()
    table = geopandas.read_file(path)
    table.loc[[3, 5], "label"] = [None, " "]
    table.to_file(path)
    message = mapped.does("estimate", "--sample", str(path), status=2).stderr
    assert "2 of 40 points have no label (points 4, 6)" in message
    found = mapped.does("estimate", "--sample", str(path), "--skip-unlabelled", "--json").json
    assert (found["points"], found["unlabelled"]) == (38, 2)
    assert any("missing at random" in note for note in found["notes"])


def change_first(column: str, value: Any) -> Callable[[Any], Any]:
    def change(table: Any) -> Any:
        table[column] = table[column].astype(object)
        table.loc[0, column] = value
        return table

    return change


def one_of_a_stratum(table: Any) -> Any:
    stratum = table["stratum"].iloc[0]
    return table[(table["stratum"] != stratum) | (table["point"] == 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_first("label", "swamp"), "labelled 'swamp', which is no class of the map"),
        (change_first("stratum", 99), "in a stratum that the design does not have"),
        (lambda t: t.iloc[[0, 0, *range(1, len(t))]], "point 1: more than once"),
        (lambda t: t.set_geometry(t.geometry.translate(1e5)), "they were moved"),
        (one_of_a_stratum, "each needs two, for one point has no variance"),
        (change_first("sample", "f" * 12), "not of the sample"),
    ],
)
def test_bad_samples_are_refused_and_nothing_is_written(
    mapped: Mapped, label: Label, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    mapped.does("sample", *N)
    change(geopandas.read_file(label())).to_file(tmp_path / "bad.gpkg")
    shutil.copy(mapped.folder / "work/runs/main/samples/sample/design.json", tmp_path / "design.json")
    before = mapped.files()
    assert message in mapped.does("estimate", "--sample", str(tmp_path / "bad.gpkg"), status=2).stderr
    assert mapped.files() == before


def test_points_where_nothing_is_mapped_are_outside_the_map(mapped: Mapped, label: Label, tmp_path: Path) -> None:
    mapped.does("sample", *N)
    table = geopandas.read_file(label()).drop(columns="geometry")
    rows, columns = np.nonzero(mapped.pixels()[0] == 255)
    table.loc[0, ["row", "column"]] = rows[0], columns[0]
    table.drop(columns=["x", "y"]).to_csv(tmp_path / "bad.csv", index=False)
    message = mapped.does("estimate", "--sample", str(tmp_path / "bad.csv"), status=2).stderr
    assert "point 1 is outside the map: no class is mapped there" in message


def test_sample_without_a_design_is_refused(mapped: Mapped, label: Label, tmp_path: Path) -> None:
    mapped.does("sample", *N)
    path = label()
    shutil.rmtree(mapped.folder / "work/runs/main/samples")
    assert "has no design.json next to it" in mapped.does("estimate", "--sample", str(path), status=2).stderr
    missing = mapped.does("estimate", "--sample", str(path), "--design", str(tmp_path / "none.json"), status=2).stderr
    assert "none.json: no such file" in missing
    assert "no such file" in mapped.does("estimate", "--sample", str(tmp_path / "none.gpkg"), status=2).stderr


def test_scenes_have_estimates_of_their_own(mapped: Mapped) -> None:
    """Two scenes, mapped with one model, whose labels are all right; then with few labels in one of them."""
    with mapped.changed() as values:
        (scene,) = values["scenes"]
        west = {key: value for key, value in scene.items() if key != "labels"}
        values |= {"scenes": [{**scene, "name": "east"}, {**west, "name": "west"}], "run": "both"}
        values["map"]["model"] = str(mapped.folder / "work/models/main")
    mapped.does("prepare")
    mapped.does("map")
    mapped.does("sample", "--n", "90", "--minimum", "6")
    table = geopandas.read_file(mapped.folder / "work/runs/both/samples/sample/points.gpkg")
    for name in ("east", "west"):
        with rasterio.open(mapped.folder / f"work/maps/{name}/both/class.tif") as dataset:
            own = table["scene"] == name
            table.loc[own, "label"] = [str(i) for i in dataset.read(1)[table.loc[own, "row"], table.loc[own, "column"]]]
    labelled = mapped.folder / "work/runs/both/samples/sample/labelled.gpkg"
    table.to_file(labelled)
    found = mapped.does("estimate", "--sample", str(labelled), "--json").json
    assert list(found["by_scene"]) == ["east", "west"]
    assert sum(own["points"] for own in found["by_scene"].values()) == found["points"] == 90
    assert sum(own["frame"]["pixels"] for own in found["by_scene"].values()) == found["frame"]["pixels"]
    for name, own in found["by_scene"].items():
        assert own["overall_accuracy"]["estimate"] == 1
        assert [row["area"]["estimate"] for row in own["classes"]] == pytest.approx(
            [row["mapped_area"] for row in own["classes"]]
        )
        properties = json.loads((mapped.folder / f"work/maps/{name}/both/item.json").read_text())["properties"]
        assert properties["mibf:estimates"]["of_scene"]["frame"] == own["frame"]
    few = (table["scene"] == "west") & ((table["scene"] == "west").cumsum() > 20)
    table.loc[few, "label"] = None
    table.to_file(labelled)
    text = mapped.does("estimate", "--sample", str(labelled), "--skip-unlabelled").stdout
    assert "scene west: 20 points are too few for estimates; 25 are needed" in text
    assert "scene east, " in text


def test_estimates_are_files_of_the_run(mapped: Mapped) -> None:
    workspace = Workspace(str(mapped.folder / "work"), "main")
    assert workspace.estimates.endswith("runs/main/estimates.json")
    assert workspace.sample("a").endswith("runs/main/samples/a")
