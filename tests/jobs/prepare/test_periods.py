"""Stores of composites: the bands of all periods, the number of clear dates, and what readers make of gaps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jobs.config.loader import load
from jobs.prepare.scenes import open_scenes
from mibf.normalization import scaling_from_json
from pipeline.classifiers.pixel_features import read_values
from pipeline.grid import Window
from pipeline.maps.drift import measure_drift
from pipeline.parallel.executor import ThreadExecutor
from pipeline.store.estimate import estimate
from pipeline.store.patch_store import PatchStore, scaled_window
from pipeline.store.quantiles import HIGH, LOW
from pipeline.store.records import ShardRecord, StoreRecords
from tests.support.commands import invoke, run
from tests.support.scenes import COLUMNS, CRS, ROWS, TRANSFORM, SmallScene, write_raster
from tests.support.stores import SHARDS, objects

DAYS = ("2024-06-03", "2024-06-20", "2024-07-10", "2024-09-01")
#: Positions of the days of each month.
MONTHS = {"2024-06": (0, 1), "2024-07": (2,), "2024-08": (), "2024-09": (3,)}
STAC = {"assets": ["red", "nir"], "composite": "max", "periods": "month"}
EVERYTHING = Window(0, 0, ROWS, COLUMNS)


def with_dates(scene: SmallScene, days: tuple[str, ...] = DAYS, **stac: Any) -> tuple[list[Any], np.ndarray]:
    """Replace the optical source by items of several days; return scenes and values (day, band, y, x), 0 for none."""
    drawn = np.random.default_rng(3)
    values = (scene.optical[None, :2] + drawn.integers(1, 200, (len(days), 2, ROWS, COLUMNS))).astype(np.uint16)
    values *= drawn.random((len(days), 1, ROWS, COLUMNS)) < 0.8
    features = []
    for number, day in enumerate(days):
        for name, own in zip(("red", "nir"), values[number], strict=True):
            write_raster(scene.folder / f"{number}_{name}.tif", own[None], nodata=0)
        features.append(
            {
                "type": "Feature", "stac_version": "1.0.0", "id": day, "geometry": None, "links": [],
                "properties": {"datetime": f"{day}T10:00:00Z"},
                "assets": {name: {"href": f"{number}_{name}.tif"} for name in ("red", "nir")},
            }
        )  # fmt: skip  # values in rows that belong together
    path = scene.folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    first = scene.config()["scenes"][0]
    optical = {"stac": {"url": str(path)} | STAC | stac}
    return [first | {"sources": first["sources"] | {"optical": optical}}], values


def by_month(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The maximum (period, band, y, x) of each month, 0 without a date, and the number of clear dates (period, y, x)."""
    empty = np.zeros((1, *values.shape[1:]), values.dtype)
    found = [np.concatenate([values[list(own)], empty]) for own in MONTHS.values()]
    return np.stack([own.max(axis=0) for own in found]), np.stack([(own[:, 0] > 0).sum(axis=0) for own in found])


def store_of(scene: SmallScene) -> PatchStore:
    return PatchStore(str(scene.folder / "work" / "stores" / "small.zarr"))


def test_store_has_the_bands_of_all_periods_and_counts(scene: SmallScene) -> None:
    scenes, values = with_dates(scene, gaps="fill")
    summary = run(scene, scenes=scenes)
    store, (expected, counts) = store_of(scene), by_month(values)
    source = store.source("optical")
    assert source.band_names == tuple(f"{band}@{month}" for month in MONTHS for band in ("red", "nir"))
    assert (source.bands, source.periods, source.gaps) == (8, 4, "fill")
    assert (store.array("sources/optical")[:] == expected.reshape(8, ROWS, COLUMNS)).all()
    assert (store.read_counts("optical", EVERYTHING) == counts).all()
    part = Window(7, 9, 30, 20)
    assert (store.read_counts("optical", part) == counts[:, *part.slices]).all()
    assert store.array("counts/optical").chunks == (4, *store.array("sources/optical").chunks[1:])
    with pytest.raises(LookupError, match="'radar' is not a composite of dates"):
        store.read_counts("radar", EVERYTHING)
    assert (store.array("valid/optical")[:] == (counts > 0).any(axis=0)).all()
    reported = summary["stages"][0]["figures"]["stores"]["small"]["observations"]["optical"]
    for plane, (month, own) in zip(counts, reported.items(), strict=True):
        assert own["median"] == np.sort(plane.ravel())[(plane.size - 1) // 2], month
        assert own["without"] == pytest.approx((plane == 0).mean()), month
    (checked,) = run(scene, command="verify", scenes=scenes)["stores"]
    assert checked["intact"]


def test_summary_reports_clear_dates_of_each_period(scene: SmallScene) -> None:
    scenes, values = with_dates(scene, gaps="interpolate")
    config = str(scene.write_config(scenes=scenes))
    planned = " ".join(invoke("plan", config).output.split())
    assert "optical: 8 bands (red@2024-06, nir@2024-06, red@2024-07," in planned
    assert "max of 4 dates in 4 periods from 2024-06-03 to 2024-09-01" in planned
    assert planned.count("has no items in period 2024-08 of 4 periods; their values are interpolated") == 1
    printed = " ".join(invoke("prepare", config).output.split())
    without = [f"{share:.1%}" for share in (by_month(values)[1] == 0).mean(axis=(1, 2))]
    assert f"clear dates, median: 2024-06: 2 ({without[0]} of the pixels without any), 2024-07: 1 ({without[1]}" in printed
    assert "2024-08: 0 (100.0% of the pixels without any)" in printed


def test_median_and_share_of_the_area_only(scene: SmallScene) -> None:
    scenes, values = with_dates(scene, gaps="fill")
    scenes[0] |= {"grid": {"crs": CRS, "resolution": 10, "bounds": bounds()}, "bbox": [13.5316, 52.336, 13.5424, 52.3424]}
    summary = run(scene, scenes=scenes)["stages"][0]["figures"]["stores"]["small"]
    (opened,) = open_scenes(load(str(scene.write_config(scenes=scenes))), ThreadExecutor(1))
    assert opened.area is not None
    inside = opened.area.inside(EVERYTHING)
    assert 100 < inside.sum() == summary["area_pixels"] < inside.size / 2
    counts = by_month(values)[1][:, inside]
    for plane, own in zip(counts, summary["observations"]["optical"].values(), strict=True):
        assert own["without"] == pytest.approx((plane == 0).mean())
        assert own["median"] == np.sort(plane)[(plane.size - 1) // 2]


def bounds() -> list[float]:
    return [TRANSFORM.c, TRANSFORM.f - 10 * ROWS, TRANSFORM.c + 10 * COLUMNS, TRANSFORM.f]


@pytest.mark.parametrize("gaps", ["fill", "interpolate"])
def test_shards_hold_the_same_whatever_their_size(gaps: str, scene: SmallScene) -> None:
    scenes, _ = with_dates(scene, gaps=gaps)
    run(scene, scenes=scenes)
    names = ("sources/optical", "valid/optical", "counts/optical", "split")
    whole = {name: store_of(scene).array(name)[:] for name in names}
    scaling = (scene.folder / "work" / "scaling.json").read_bytes()
    run(scene, SHARDS, scenes=scenes)
    assert len({key for key in objects(scene) if key.startswith("counts/")}) == 4
    assert all((store_of(scene).array(name)[:] == values).all() for name, values in whole.items())
    assert (scene.folder / "work" / "scaling.json").read_bytes() == scaling


def test_missing_periods_are_filled_with_the_training_median(scene: SmallScene) -> None:
    scenes, values = with_dates(scene, gaps="fill")
    run(scene, scenes=scenes)
    store, (expected, counts) = store_of(scene), by_month(values)
    scaling = scaling_from_json(json.loads((scene.folder / "work" / "scaling.json").read_text()))
    trained = store.array("split")[:] == 1
    low, high, fill = (np.zeros(8, np.float32) for _ in range(3))
    for band, plane in enumerate(expected.reshape(8, ROWS, COLUMNS)):
        known = plane[trained & (counts[band // 2] > 0)]
        if known.size:
            chosen = (LOW, HIGH, 0.5)
            low[band], high[band], fill[band] = np.quantile(known, chosen, method="inverted_cdf")
    found = scaling["optical"]
    assert found.low.tolist() == low.tolist(), "gaps do not count"
    assert found.high.tolist() == high.tolist()
    assert found.fill.tolist() == fill.tolist()
    assert found.constant.tolist() == [False] * 4 + [True] * 2 + [False] * 2
    shown = scaled_window(store, EVERYTHING, scaling, halo=2)[0]
    known = np.pad(np.repeat(counts > 0, 2, axis=0), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    padded = np.pad(expected.reshape(8, ROWS, COLUMNS), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    span = np.where(high > low, high - low, np.inf)[:, None, None]
    wanted = np.clip((np.where(known, padded, fill[:, None, None]) - low[:, None, None]) / span, 0, 1)
    assert shown == pytest.approx(wanted, abs=1e-6)
    bands = read_values(store, EVERYTHING, store.sources)[0][:, 3:-3, 3:-3]
    assert (np.isnan(bands) == (np.repeat(counts, 2, axis=0) == 0)).all(), "trees see gaps as missing"
    drifts = measure_drift(store, scaling)
    assert {drift.band for drift in drifts if drift.source == "optical"} == {1, 2, 3, 4, 7, 8}
    assert max(drift.distance for drift in drifts) < 0.5


def test_sampled_pixels_have_data_in_some_period(scene: SmallScene) -> None:
    scenes, values = with_dates(scene, gaps="fill")
    run(scene, scenes=scenes)
    _, counts = by_month(values)
    split = store_of(scene).array("split")[:]
    assert (split[(counts == 0).all(axis=0)] == 0).all()
    assert (split[(counts > 0).any(axis=0) & (counts == 0).any(axis=0)] > 0).any()


def test_plan_counts_what_is_written(scene: SmallScene) -> None:
    scenes, _ = with_dates(scene, gaps="fill")
    (opened,) = open_scenes(load(str(scene.write_config(scenes=scenes))), ThreadExecutor(1))
    planned = estimate(opened, workers=1)
    run(scene, scenes=scenes)
    written = sum(path.is_file() for path in (scene.folder / "work" / "stores" / "small.zarr").rglob("*"))
    assert planned.objects == written
    assert planned.uncompressed_bytes == ROWS * COLUMNS * (8 * 2 + 1 + 4 * 2 + 4 + 1 + 2)


def test_scenes_may_be_of_different_years(scene: SmallScene) -> None:
    scenes, _ = with_dates(scene, gaps="fill")
    items = json.loads((scene.folder / "items.json").read_text())
    for name, year, month in (("later", "2025", "06"), ("other", "2024", "05")):
        content = json.dumps(items).replace("2024-0", f"{year}-0").replace(f"{year}-06", f"{year}-{month}")
        (scene.folder / f"{name}.json").write_text(content)
    optical = scenes[0]["sources"]["optical"]
    message = ""
    for name in ("later", "other"):
        stac = optical["stac"] | {"url": str(scene.folder / f"{name}.json")}
        second = scenes[0] | {"name": "second", "sources": scenes[0]["sources"] | {"optical": {"stac": stac}}}
        second = {key: value for key, value in second.items() if key != "labels"}
        config = str(scene.write_config(scenes=[*scenes, second]))
        if name == "later":
            invoke("plan", config)
        else:
            message = " ".join(invoke("plan", config, status=2).output.split())
    assert "source 'optical' has different band counts in different scenes: {'small': 8, 'second': 10}." in message
    assert "Their periods are small: 2024-06 to 2024-09; second: 2024-05 to 2024-09. Set `stac.periods` to" in message


@pytest.mark.parametrize("month", ["06", "05"])
def test_months_of_scenes_of_different_years_are_compared(month: str, scene: SmallScene) -> None:
    scenes, _ = with_dates(scene, (f"2024-{month}-03", "2024-07-10"), periods=[f"2024-{month}-01/2024-{month}-30"])
    stac = scenes[0]["sources"]["optical"]["stac"] | {"periods": ["2023-06-01/2023-06-30"]}
    content = (scene.folder / "items.json").read_text().replace(f"2024-{month}", "2023-06")
    (scene.folder / "earlier.json").write_text(content)
    optical = {"stac": stac | {"url": str(scene.folder / "earlier.json")}}
    second = scenes[0] | {"name": "second", "sources": scenes[0]["sources"] | {"optical": optical}}
    del second["labels"]
    done = invoke("plan", str(scene.write_config(scenes=[*scenes, second])), status=0 if month == "06" else 2)
    if month == "05":
        message = " ".join(done.output.split())
        assert "source 'optical' has different band names in different scenes (small: red@2024-05-01/2024-05-30, " in message
        assert "; second: red@2023-06-01/2023-06-30, nir@2023-06-01/2023-06-30). Set `stac.periods`" in message


def test_source_that_is_never_clear_in_a_period_is_refused_by_its_name(scene: SmallScene) -> None:
    scenes, _ = with_dates(scene, DAYS[:3])
    for name in ("red", "nir"):
        write_raster(scene.folder / f"2_{name}.tif", np.zeros((1, ROWS, COLUMNS), np.uint16), nodata=0)
    message = " ".join(run(scene, scenes=scenes, status=2).stderr.split())
    assert "has no valid pixel on the reference grid" in message
    assert "no pixel is clear in 2024-07" in message


@pytest.mark.parametrize("how", ["missing", "damaged", "lacking"])
@pytest.mark.parametrize("gaps", ["exclude", "fill", "interpolate"])
def test_period_of_which_no_item_is_left_is_as_one_without_items(how: str, gaps: str, scene: SmallScene) -> None:
    scenes, values = with_dates(scene, DAYS[:3], gaps=gaps)
    file, items = scene.folder / "2_nir.tif", scene.folder / "items.json"
    if how == "missing":
        file.unlink()
    elif how == "damaged":
        file.write_bytes(b"<html>Service unavailable</html>")
    else:
        content = json.loads(items.read_text())
        del content["features"][2]["assets"]["nir"]
        items.write_text(json.dumps(content))
    cause = "source 'optical': no item is left of period 2024-07: "
    if gaps == "exclude":
        for command in ("plan", "prepare"):
            message = " ".join(run(scene, command=command, scenes=scenes, status=2).stderr.split())
            assert cause in message
            assert "Restore the files, choose other `periods`, or set `gaps`" in message
        assert not (scene.folder / "work").exists()
        return
    summary = run(scene, scenes=scenes)["stages"][0]
    (note,) = (line for line in summary["warnings"] if cause in line)
    verb = {"fill": "filled", "interpolate": "interpolated"}[gaps]
    assert note.endswith(f"; values of 1 of 2 periods are {verb}")
    june = values[:2].max(axis=0)
    store = store_of(scene)
    assert (store.read_counts("optical", EVERYTHING)[1] == 0).all()
    assert (store.array("sources/optical")[:2] == june).all()
    assert (store.array("sources/optical")[2:] == (june if gaps == "interpolate" else 0)).all()


def test_one_date_that_is_left_of_two_is_reported(scene: SmallScene) -> None:
    scenes, _ = with_dates(scene, DAYS[:2], periods=None)
    (scene.folder / "1_red.tif").unlink()
    warnings = run(scene, scenes=scenes)["stages"][0]["warnings"]
    assert any("1 item of 2 left out of the composite: item '2024-06-20' of 2024-06-20" in line for line in warnings)


def test_records_of_shards_keep_observations_only_where_there_are_some() -> None:
    plain = ShardRecord(EVERYTHING, {"labels/c/0/0": (3, "ab")}, {"radar": 4})
    counted = replace(plain, observations={"optical": [[5, 2], []]})
    for record in (plain, counted):
        assert ShardRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert "observations" not in plain.to_json()
    records = StoreRecords("", {}, [counted, replace(counted, observations={"optical": [[1, 0, 7], [2]]})])
    assert records.observations("optical", 20) == [(1, 5 / 20), (0, 18 / 20)]
