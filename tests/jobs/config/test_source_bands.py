"""Keys of sources that decode values and name, derive and keep bands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jobs.config import resolve
from jobs.config.loader import load
from jobs.workflow.fingerprint import fingerprint
from jobs.workflow.saved_config import as_run, relative_paths
from pipeline.store.patch_store import PatchStore
from tests.support.commands import invoke, run
from tests.support.refusals import load_error, refused
from tests.support.scenes import SmallScene, write_raster

OPTICAL = "scenes.0.sources.optical"
NAMED = "band_names=[green, red, nir]"
NDVI = "derive={ndvi: (nir - red) / (nir + red)}"


def optical(scene: SmallScene, *overrides: str) -> Any:
    config = load(str(scene.write_config()), overrides=[f"{OPTICAL}.{o}" for o in overrides])
    return resolve.sources(config.scenes[0])["optical"]


def test_keys_reach_the_source(scene: SmallScene) -> None:
    found = optical(scene, NAMED, NDVI, "keep=[ndvi, red]")
    assert found.band_names == ("green", "red", "nir")
    assert found.derive == (("ndvi", "(nir - red) / (nir + red)"),)
    assert found.kept == ("ndvi", "red")
    assert optical(scene, NAMED, NDVI).kept == ("green", "red", "nir", "ndvi")
    terrain = optical(scene, "band_names=[height, cover, nir]", "derive={slope: slope(height)}")
    assert (terrain.kept, terrain.halo) == (("height", "cover", "nir", "slope"), 1)
    assert optical(scene).kept == ()
    assert optical(scene, "decode=db").layers[0][0].decode == "db"
    assert optical(scene, "decode=alphaearth").layers[0][0].scales is None


def test_each_file_of_tessera_has_its_scales(scene: SmallScene) -> None:
    section = "{tessera: {scales: [c.zarr, d.zarr], variable: scales, axes: [y, x], select: {year: 2024}}}"
    found = optical(scene, "url=null", "tiles=[a.zarr, b.zarr]", "variable=embeddings", f"decode={section}")
    pairs = [(Path(file.url).name, Path(file.scales.url).name) for file in found.layers[0]]
    assert pairs == [("a.zarr", "c.zarr"), ("b.zarr", "d.zarr")]
    first = found.layers[0][0]
    assert (first.decode, first.variable, first.scales.variable) == ("tessera", "embeddings", "scales")
    assert (first.scales.axes, first.scales.select) == (("y", "x"), (("year", 2024),))


def test_assets_of_a_stac_item_are_names(scene: SmallScene) -> None:
    wanted = "{optical: {stac: {url: item.json, assets: [red, nir]}, derive: {ndvi: nir / red}}, radar: {url: radar.tif}}"
    config = load(str(scene.write_config()), overrides=[f"scenes.0.sources={wanted}"])
    assert config.scenes[0].sources["optical"].names == ("red", "nir")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decode=aef"], "decode: `decode` is `alphaearth`, `db` or `{tessera: {scales: URL}}` (found 'aef')."),
        (["decode=tessera"], "decode: `tessera` needs the raster of its scales: `decode: {tessera: {scales: URL}}` (found"),
        (["decode={geo: {scales: a.tif}}"], "decode: `decode` has no geo; `tessera` needs the raster of its scales"),
        (["decode={tessera: {}}"], "tessera.scales: is missing"),
        (["decode=alphaearth", "unscale=true"], "`decode` of embeddings applies to values as stored; leave out `unscale`"),
        (["decode={tessera: {scales: [a.tif, b.tif]}}"], "`decode.tessera.scales` has 2 for 1 files; give one per file"),
        ([NDVI], "`derive` and `keep` need names: name each band that is read, in order, in `band_names`"),
        (["keep=[red]"], "`derive` and `keep` need names"),
        (
            [NAMED, "derive={ndvi: nir // red}"],
            "`derive.ndvi`: `nir // red`: `//` at character 5 is not allowed; allowed are",
        ),
        (
            [NAMED, "derive={ndvi: swir - red}"],
            "`swir` at character 1 is not allowed; allowed are + - * / ** ( ), numbers, ",
        ),
        ([NAMED, "derive={s: slope(slope(nir))}"], "`derive.s`: `slope(slope(nir))`: `slope` at character 1 takes heights"),
        (
            [NAMED, "derive={s: hillshade(nir)}"],
            "the functions sqrt, log, abs, minimum, maximum, slope,",
        ),
        ([NAMED, "derive={red: nir - green}"], "`derive.red`: a band of the source has this name; choose another"),
        ([NAMED, "derive={sqrt: nir}"], "has a meaning in expressions, so a band cannot have this name"),
        (["band_names=[green, red, red]"], "`band_names` has 'red' twice; each name is of one band"),
        (["band_names=[green, lambda, red]"], "has a meaning in expressions, so a band cannot have this name"),
        (["band_names=[green, 2nd, red]"], "band_names.1"),
        ([NAMED, "keep=[ndvi, red]"], "`keep` has 'ndvi'; the bands are green, red, nir"),
        ([NAMED, "keep=[red, red]"], "`keep` has 'red' twice"),
    ],
)
def test_wrong_keys_are_refused(overrides: list[str], message: str, scene: SmallScene) -> None:
    assert message in load_error(scene, [f"{OPTICAL}.{o}" for o in overrides])


def test_tessera_of_stac_items_has_one_asset_of_scales(scene: SmallScene) -> None:
    wanted = "{optical: {stac: {url: i.json, assets: [a]}, decode: {tessera: {scales: [s, t]}}}, radar: {url: r.tif}}"
    message = load_error(scene, [f"scenes.0.sources={wanted}"])
    assert "`decode.tessera.scales` has several names; with `stac`, give that of one asset of each item" in message


def test_keys_and_scales_are_part_of_the_fingerprint(scene: SmallScene) -> None:
    path = str(scene.write_config())

    def of(*overrides: str) -> str:
        return fingerprint(load(path, overrides=[f"{OPTICAL}.{o}" for o in overrides]), "prepare")

    scales = write_raster(scene.folder / "s.tif", np.ones((1, 4, 5), np.float32))
    tessera = f"decode={{tessera: {{scales: {scales}}}}}"
    two = [NAMED, "derive={a: nir + red, b: nir - red}"]
    swapped = [NAMED, "derive={b: nir - red, a: nir + red}"]
    ways = [[], ["decode=db"], ["decode=alphaearth"], [tessera], [NAMED], [NAMED, NDVI], two, swapped]
    found = [of(*way) for way in [*ways, [NAMED, NDVI, "keep=[ndvi]"]]]
    assert len(set(found)) == len(found)
    write_raster(scene.folder / "s.tif", np.full((1, 4, 5), 2, np.float32))
    assert of(tessera) != found[3], "the file of scales is an input"
    assert of("decode=null", "band_names=[]", "derive={}", "keep=[]") == found[0]


def test_scales_are_saved_as_absolute_paths(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=[f"{OPTICAL}.decode={{tessera: {{scales: s.tif}}}}"])
    assert "s.tif" in relative_paths(config)
    saved = yaml.safe_load(as_run(config))["scenes"][0]["sources"]["optical"]["decode"]["tessera"]["scales"]
    assert saved == str(Path("s.tif").absolute())


def test_prepared_store_and_plan_name_the_bands(scene: SmallScene) -> None:
    overrides = [f"{OPTICAL}.{o}" for o in (NAMED, NDVI, "keep=[nir, ndvi]")]
    config = str(scene.write_config())
    planned = invoke("plan", config, *(part for o in overrides for part in ("--set", o))).stdout
    assert "optical: 2 bands (nir, ndvi); exact" in planned
    summary = run(scene, *overrides)
    store = PatchStore(str(scene.folder / "work" / "stores" / "small.zarr"))
    assert [(s.name, s.bands, s.band_names) for s in store.sources] == [("optical", 2, ("nir", "ndvi")), ("radar", 1, ())]
    assert "band_names" not in store.group.attrs["mibf:sources"][1]  # type: ignore[index, operator]  # JSON of the store
    green, red, nir = scene.optical.astype(np.float64)
    with np.errstate(invalid="ignore"):
        index = ((nir - red) / (nir + red)).astype(np.float32)
    valid = store.array("valid/optical")[:].astype(bool)
    assert (valid == (scene.optical > 0).all(axis=0)).all()
    assert (store.array("sources/optical")[1] == np.where(valid, index, 0)).all()
    assert (green[valid] > 0).all()
    assert summary["stages"][0]["figures"]["stores"]["small"]["shape"] == [*scene.truth.shape]


def test_other_names_in_another_scene_are_refused(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    optical_file = first["sources"]["optical"]
    named = [
        first | {"name": name, "sources": first["sources"] | {"optical": optical_file | {"band_names": names}}}
        for name, names in (("a", ["green", "red", "nir"]), ("b", ["green", "nir", "red"]))
    ]
    message = refused(scene, scenes=named)
    joined = " ".join(message.split())
    assert "source 'optical' has different band names in different scenes (a: green, red, nir; b: green, nir, red)" in joined
