"""`mibf sample` on a mapped scene."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest

from pipeline.codes import CODES
from pipeline.store.patch_store import PatchStore
from tests.support.mapped_scene import Mapped

N = ("--n", "30", "--minimum", "4")


def folder(mapped: Mapped, name: str = "sample") -> Path:
    return mapped.folder / "work/runs/main/samples" / name


def table(mapped: Mapped, name: str = "sample") -> pd.DataFrame:
    return pd.read_csv(folder(mapped, name) / "points.csv")


def split_codes(mapped: Mapped) -> np.ndarray:
    store = PatchStore(str(mapped.folder / "work/stores/small.zarr"))
    return np.asarray(store.array("split")[...])


def test_stratified_sample_has_known_inclusion_probabilities(mapped: Mapped) -> None:
    found = mapped.does("sample", *N, "--json").json
    points, ids, codes = table(mapped), mapped.pixels()[0], split_codes(mapped)
    trained = codes == CODES["train"]
    strata = {stratum["number"]: stratum for stratum in found["strata"]}
    classes = {row["name"]: row for row in found["classes"]}
    assert len(points) == found["strata"][0]["points"] + sum(s["points"] for s in found["strata"][1:]) == 30
    for number, own in points.groupby("stratum"):
        stratum = strata[int(str(number))]
        in_frame = (ids == classes[stratum["name"]]["id"]) & ~trained
        assert stratum["pixels"] == in_frame.sum()
        assert in_frame[own["row"], own["column"]].all()
        assert own["inclusion_probability"].to_numpy() == pytest.approx(len(own) / in_frame.sum())
        assert own["weight"].sum() == pytest.approx(in_frame.sum())
    assert found["excluded"]["pixels"] == (trained & (ids != 255)).sum() > 0
    assert points["label"].isna().all()
    assert not points.duplicated(["row", "column"]).any()


def test_files_of_a_sample_agree_and_hide_the_map(mapped: Mapped) -> None:
    mapped.does("sample", *N)
    points, layer = table(mapped), geopandas.read_file(folder(mapped) / "points.gpkg")
    assert {path.name for path in folder(mapped).iterdir()} == {"points.gpkg", "points.csv", "design.json", "sheet.html"}
    assert list(layer.columns) == [*points.columns, "geometry"]
    assert layer.geometry.x.tolist() == pytest.approx(points["x"].tolist())
    page = (folder(mapped) / "sheet.html").read_text()
    assert len(re.findall("<article ", page)) == 30
    assert "Map:" not in page
    mapped.does("sample", *N, "--replace", "--show-map")
    assert len(re.findall("<p>Map: ", (folder(mapped) / "sheet.html").read_text())) == 30


def test_same_seed_draws_the_same_points_and_a_larger_sample_contains_them(mapped: Mapped) -> None:
    for name, options in {"a": N, "b": N, "c": ("--n", "40", "--minimum", "4"), "d": (*N, "--seed", "1")}.items():
        mapped.does("sample", *options, "--name", name)
    assert (folder(mapped, "a") / "points.csv").read_bytes() == (folder(mapped, "b") / "points.csv").read_bytes()
    places = {name: set(zip(t["row"], t["column"], strict=True)) for name in "acd" if (t := table(mapped, name)) is not None}
    assert places["a"] < places["c"]
    assert places["a"] != places["d"]


@pytest.mark.parametrize("design", ["random", "systematic"])
def test_other_designs_have_one_stratum(mapped: Mapped, design: str) -> None:
    found = mapped.does("sample", "--n", "60", "--design", design, "--json").json
    (stratum,) = found["strata"]
    assert len(table(mapped)) == stratum["points"]
    assert 40 < stratum["points"] < 85 if design == "systematic" else stratum["points"] == 60
    assert stratum["inclusion_probability"] == pytest.approx(60 / stratum["pixels"])
    assert sum(row["pixels"] for row in found["classes"]) == stratum["pixels"]


@pytest.mark.parametrize("allocation", ["proportional", "equal", "neyman"])
def test_number_of_points_from_a_standard_error(mapped: Mapped, allocation: str) -> None:
    expected = [f"--expected={name}=0.8" for name in ("water", "forest", "town")]
    found = mapped.does("sample", "--se", "0.04", "--minimum", "2", "--allocation", allocation, *expected, "--json").json
    size, n = (np.array([stratum[key] for stratum in found["strata"]], float) for key in ("pixels", "points"))
    error = np.sqrt(((size / size.sum()) ** 2 * 0.16 / n * (1 - n / size)).sum())
    assert error == pytest.approx(0.04, rel=0.06)


def test_excluded_subsets_are_chosen(mapped: Mapped) -> None:
    codes = split_codes(mapped)
    found = mapped.does("sample", *N, "--exclude", "none", "--name", "all", "--json").json
    assert found["excluded"] == {"subsets": [], "pixels": 0, "hectares": 0.0}
    assert any("training pixels were not excluded" in note for note in found["notes"])
    mapped.does("sample", *N, "--exclude", "train", "--exclude", "validation", "--exclude", "test")
    assert not codes[table(mapped)["row"], table(mapped)["column"]].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either the number of points (--n) or the standard error"),
        (("--n", "60", "--se", "0.1"), "give either"),
        (("--n", "1"), "--n 1: must be from 2"),
        (("--n", "1000000"), "larger than its frame"),
        (("--n", "20", "--minimum", "25"), "20 points are too few for 25 in each of"),
        (("--n", "60", "--minimum", "1"), "--minimum 1: must be at least 2"),
        (("--se", "0.7"), "--se 0.7: must be between 0 and 0.5"),
        (("--n", "60", "--allocation", "optimal"), "--allocation optimal: must be proportional, equal or neyman"),
        (("--n", "60", "--design", "cluster"), "--design cluster: must be stratified, random or systematic"),
        (("--n", "60", "--exclude", "trained"), "--exclude trained: must be train, validation, test or none"),
        (("--n", "60", "--exclude", "none", "--exclude", "test"), "cannot be combined"),
        (("--n", "60", "--expected=lava=0.8"), "--expected lava: the map has no such class"),
        (("--n", "60", "--expected", "water"), "must be CLASS=ACCURACY"),
        (("--n", "60", "--scene", "other"), "there is no scene 'other'; the scenes are small"),
        (("--n", "60", "--name", "a/b"), "must be a plain name"),
    ],
)
def test_bad_requests_are_refused_and_nothing_is_written(mapped: Mapped, options: Any, message: str) -> None:
    before = mapped.files()
    assert message in mapped.does("sample", *options, status=2).stderr
    assert mapped.files() == before


def test_existing_sample_is_kept_unless_it_is_replaced(mapped: Mapped) -> None:
    mapped.does("sample", *N)
    assert "has a sample, maybe with labels" in mapped.does("sample", *N, status=2).stderr
    mapped.does("sample", "--n", "40", "--minimum", "4", "--replace")
    assert len(table(mapped)) == 40


def test_map_must_be_published_and_its_training_samples_known(mapped: Mapped) -> None:
    item = mapped.map / "item.json"
    content = item.read_text()
    item.unlink()
    assert (
        "no map is published there (item.json is missing); run `mibf map` first"
        in mapped.does("sample", *N, status=2).stderr
    )
    item.write_text(content.replace('"./class.tif"', '"./klass.tif"'))
    assert "has no class raster; add `class` to `map.products`" in mapped.does("sample", *N, status=2).stderr
    item.write_text("{")
    assert "`mibf verify` checks the map" in mapped.does("sample", *N, status=2).stderr
    item.write_text(content)
    with mapped.changed() as values:
        values["split"] = {**values.get("split", {}), "seed": 7}
    mapped.does("prepare")
    assert "not trained on the current stores and split" in mapped.does("sample", *N, status=2).stderr


def test_record_names_the_map_and_the_seed(mapped: Mapped) -> None:
    mapped.does("sample", *N, "--seed", "5")
    record = json.loads((folder(mapped) / "design.json").read_text())
    assert record["seed"] == 5
    assert record["scenes"] == {"small": json.loads((mapped.map / "item.json").read_text())["id"]}
    assert len(record["map_digest"]) == 20
