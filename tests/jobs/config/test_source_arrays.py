"""Keys of sources that choose arrays: variables, axes, `select`, `crs` and exact nodata values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from jobs.config import resolve
from jobs.config.loader import load
from jobs.workflow.fingerprint import fingerprint
from pipeline.grid import Window
from pipeline.rasters.raster import header
from pipeline.scenes.source import open_source
from tests.support.refusals import load_error
from tests.support.scenes import SmallScene

OPTICAL = "scenes.0.sources.optical"


def optical(scene: SmallScene, *overrides: str) -> Any:
    config = load(str(scene.write_config()), overrides=[f"{OPTICAL}.{o}" for o in overrides])
    return resolve.sources(config.scenes[0])["optical"]


def test_several_variables_of_one_store_are_one_source(scene: SmallScene) -> None:
    values = {name: np.full((4, 5), i + 1, np.uint8) for i, name in enumerate(("b02", "b03", "b04"))}
    path = scene.folder / "a.zarr"
    xr.Dataset({name: (("y", "x"), array) for name, array in values.items()}).to_zarr(path, consolidated=False)
    found = optical(scene, f"url={path}", "variable=[b04, b02]")
    assert [[file.variable for file in layer] for layer in found.layers] == [["b04"], ["b02"]]
    opened = open_source(found, header(found.layers[0][0]).grid)
    assert opened.read(Window(0, 0, 4, 5))[0][:, 0, 0].tolist() == [3, 1]
    assert [f.variable for layer in optical(scene, f"url={path}", "variable=b03").layers for f in layer] == ["b03"]


def test_keys_of_arrays_reach_the_reader(scene: SmallScene) -> None:
    keys = [
        "axes=[time, band, y, x]",
        "select={time: 2021-06-01, level: 3}",
        "crs=EPSG:32633",
        "nodata=18446744073709551615",
    ]
    file = optical(scene, *keys).layers[0][0]
    assert file.axes == ("time", "band", "y", "x")
    assert file.select == (("time", "2021-06-01"), ("level", 3))
    assert file.crs == "EPSG:32633"
    assert file.nodata == 2**64 - 1
    assert isinstance(file.nodata, int)
    masked = optical(scene, "mask={url: q.tif, bits: [3], crs: EPSG:32633, select: {time: 2}}")
    assert masked.mask.file.crs == "EPSG:32633"
    assert masked.mask.file.select == (("time", 2),)
    assert replace(file, nodata=1) != file


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("-9999", -9999.0), ("9007199254740993", 2**53 + 1)])
def test_nodata_is_a_float_unless_that_is_not_exact(scene: SmallScene, text: str, value: float) -> None:
    """Fingerprints of earlier versions, which stored floats, stay valid."""
    found = optical(scene, f"nodata={text}").layers[0][0].nodata
    assert found == value
    assert type(found) is type(value)


def test_new_keys_change_the_fingerprint_only_when_they_are_set(scene: SmallScene) -> None:
    path = str(scene.write_config())
    plain = fingerprint(load(path), "prepare")
    assert fingerprint(load(path, overrides=[f"{OPTICAL}.select={{}}"]), "prepare") == plain
    assert fingerprint(load(path, overrides=[f"{OPTICAL}.crs=EPSG:32633"]), "prepare") != plain


@pytest.mark.parametrize("axes", ["[y, x, y]", "[band, x]"])
def test_axes_without_rows_and_columns_are_refused(scene: SmallScene, axes: str) -> None:
    assert f"{OPTICAL}.axes: list each axis once, y and x among them" in load_error(scene, [f"{OPTICAL}.axes={axes}"])
