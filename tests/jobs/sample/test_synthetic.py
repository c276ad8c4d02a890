"""The command `mibf synth`: written files, options, refusals, overwriting and disk space."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import rasterio
import yaml
from rio_cogeo.cogeo import cog_validate
from typer.testing import CliRunner

import pipeline.scenes.synthetic
import pipeline.scenes.synthetic_files
from jobs.cli.common import app
from jobs.config.loader import load
from mibf.errors import InputError
from pipeline.scenes.synthetic import SyntheticScene
from tests.support.synthetic import full_window, synthetic_scene


def mibf(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["synth", *arguments])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A scene written by the command, with a size that is not a multiple of the block, and its summary."""
    folder = tmp_path_factory.mktemp("synth") / "scene"
    result = mibf(str(folder), "--size", "530x300", "--bands", "3+2", "--nodata", "0.1", "--seed", "4", "--json")
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


def test_command_writes_the_scene_and_its_summary(written: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = written
    scene = synthetic_scene(3, 2, shape=(530, 300), seed=4, blob=18, nodata=0.1)
    layers = {f"source{k + 1}": scene.values(k, full_window((530, 300))) for k in (0, 1)}
    layers |= {"labels": scene.labels(full_window((530, 300)))[None], "truth": scene.truth(full_window((530, 300)))[None]}
    assert {p.name for p in folder.iterdir()} == {f"{name}.tif" for name in layers} | {"synth.yaml"}
    for name, values in layers.items():
        with rasterio.open(folder / f"{name}.tif") as dataset:
            assert (dataset.read() == values).all()
            assert dataset.crs.to_epsg() == 32633
            assert dataset.res == (10, 10)
            assert dataset.nodata == (0 if name.startswith("source") else None)
            assert all(name in description for description in dataset.descriptions)
        assert cog_validate(folder / f"{name}.tif", strict=True, quiet=True)[0]
    truth = layers["truth"]
    assert summary["class_shares"] == pytest.approx(
        {name: (truth == c).mean() for c, name in enumerate(("off-off", "off-on", "on-off", "on-on"), start=1)}
    )
    assert summary["labelled_share"] == pytest.approx((layers["labels"] != 0).mean())
    assert summary["missing_shares"] == pytest.approx({"source1": 0, "source2": (layers["source2"][0] == 0).mean()})
    shares = [(truth == c).mean() for c in (1, 2, 3, 4)]
    assert summary["best_alone"]["source1"] == pytest.approx(max(shares[:2]) + max(shares[2:]))
    assert summary["best_alone"]["source2"] == pytest.approx(max(shares[0::2]) + max(shares[1::2]))


def test_written_configuration_loads_from_any_working_directory(
    written: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.prepare.stage import prepare
    from jobs.workflow.runner import run_stage

    folder, _ = written
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    config = load(str(folder / "synth.yaml"), overrides=[f"workspace={tmp_path / 'work'}"])
    assert [c.name for c in config.classes] == ["off-off", "off-on", "on-off", "on-on"]
    assert config.scenes[0].labels is not None
    assert config.scenes[0].labels.ignore == (0,)
    manifest, _ = run_stage(config, "prepare", prepare, keep_current=False)
    assert manifest.outputs


def test_finer_source_is_written_on_the_nested_grid(tmp_path: Path) -> None:
    result = mibf(str(tmp_path), "--size", "64", "--bands", "2@2+1+1@4", "--crs", "EPSG:4326")
    assert result.exit_code == 0, result.output
    with rasterio.open(tmp_path / "truth.tif") as truth:
        for k, scale in enumerate((2, 1, 4), start=1):
            with rasterio.open(tmp_path / f"source{k}.tif") as source:
                assert source.shape == (64 * scale, 64 * scale)
                assert source.crs == truth.crs
                assert tuple(source.bounds) == pytest.approx(tuple(truth.bounds), abs=1e-12)
    scene = yaml.safe_load((tmp_path / "synth.yaml").read_text())["scenes"][0]
    assert scene["grid"] == {"like": "source2"}
    assert [source.get("scale") for source in scene["sources"].values()] == [2, None, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "63"], "each side must have 64 to"),
        (["--size", "64x63"], "each side must have 64 to"),
        (["--size", "0"], "each side must have 64 to"),
        (["--size", "-5"], "--size -5: give the scene's side"),
        (["--size", "1e3"], "--size 1e3: give the scene's side"),
        (["--size", "2000000"], "each side must have 64 to"),
        (["--size", "900000"], "GB are free"),
        (["--bands", "4"], "two to 7 sources"),
        (["--bands", "1+1+1+1+1+1+1+1"], "two to 7 sources"),
        (["--bands", "4+"], "such as 4+2"),
        (["--bands", "4+0"], "1 to 512 bands, not 0"),
        (["--bands", "4+2@3"], "must be 1, 2, 4, not 3"),
        (["--bands", "4@2+2@2"], "at least one must be on it"),
        (["--labelled", "0"], "--labelled 0.0: give a share"),
        (["--labelled", "nan"], "--labelled nan: give a share"),
        (["--nodata", "1"], "--nodata 1.0: give a share"),
        (["--blob", "1"], "--blob 1: give 2 to 256"),
        (["--blob", "500"], "--blob 500: give 2 to 256"),
        (["--crs", "EPSG:1"], "--crs EPSG:1: is not a coordinate reference system"),
        (["--crs", "EPSG:5773"], "neither projected nor geographic"),
    ],
)
def test_invalid_options_are_refused_and_nothing_is_written(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = mibf(str(tmp_path / "scene"), *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_invalid_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, message in (
        (str(tmp_path / "file"), "is a file"),
        ("s3://bucket/scene", "local folder"),
        ("${X}", "environment"),
    ):
        result = mibf(folder)
        assert result.exit_code == 2
        assert message in result.stderr


def test_existing_scene_is_kept_unless_overwrite_is_set(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert mibf(str(tmp_path), "--size", "64", "--bands", "1+1+1").exit_code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    refused = mibf(str(tmp_path), "--size", "64")
    assert refused.exit_code == 2
    assert "source3.tif, labels.tif, truth.tif, synth.yaml; choose another folder" in refused.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert mibf(str(tmp_path), "--size", "64", "--overwrite").exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == set(before) - {"source3.tif"}, (
        "the extra source of the old scene is removed"
    )
    assert (tmp_path / "source1.tif").read_bytes() != before["source1.tif"]


def test_failed_write_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SyntheticScene, "truth", Mock(side_effect=OSError("no space left")))
    result = mibf(str(tmp_path / "scene"), "--size", "64")
    assert isinstance(result.exception, OSError)
    assert not list(tmp_path.iterdir())


def test_scene_larger_than_the_free_disk_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.sample.synthetic import synth

    needed = pipeline.scenes.synthetic_files.bytes_needed(synthetic_scene(4, 2, shape=(128, 128)))
    options: dict[str, Any] = {"bands": "4+2", "labelled": 0.2, "nodata": 0.0, "blob": None, "crs": "EPSG:32633"}
    options |= {"size": "128", "seed": 0, "overwrite": False}
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    with pytest.raises(InputError, match=r"up to 0\.0 GB while it is written"):
        synth(str(tmp_path / "scene"), **options)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed))
    made_files = synth(str(tmp_path / "scene"), **options).figures["bytes"]
    assert sum(made_files.values()) < needed
