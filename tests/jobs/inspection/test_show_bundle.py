"""The command `mibf bundle show`: text, JSON, format 2 and damaged bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from jobs.cli.common import app
from mibf.bundle.bundle import CARD, MODEL, WEIGHTS, Bundle
from mibf.bundle.files import to_files
from mibf.network.spec import NetworkSpec, SourceSpec
from pipeline.io.model_bundle import write_bundle
from tests.support.bundles import change_model_json, make_bundle


def show(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bundle", "show", *arguments])


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle()


@pytest.fixture(scope="module")
def files(bundle: Bundle) -> dict[str, bytes]:
    return to_files(bundle)


@pytest.fixture
def folder(files: dict[str, bytes], tmp_path: Path) -> Path:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_bundle_show_prints_all_fields(folder: Path, bundle: Bundle) -> None:
    result = show(str(folder))
    assert result.exit_code == 0, result.output
    for fact in (
        "format 3", f"{bundle.parameters:,} parameters", "optical: 3 bands, scale 1", "radar: 1 band, scale 2",
        "band  2: 1 to 11, fill 4", "5 x 5 reference pixels", "open water", "#466b9f", "0.7000", "0.4000", "temperature 1.3",
        "run first try!", "scenes valley, hill", "epoch 4", "overall accuracy 0.876", "mibf 0.1.0", "checked: the SHA-256",
    ):  # fmt: skip  # a list of names: one per line would fill a page
        assert fact in result.output
    assert show(str(folder / MODEL)).output == result.output


def test_bundle_show_json_is_model_json_with_file_sizes(folder: Path, files: dict[str, bytes]) -> None:
    shown = json.loads(show(str(folder), "--json").stdout)
    assert json.loads(files[MODEL]).items() <= shown.items()
    assert shown["files"] == {name: len(files[name]) for name in (WEIGHTS, MODEL, CARD)}
    (folder / CARD).unlink()
    assert json.loads(show(str(folder), "--json").stdout)["files"][CARD] is None
    assert "no README.md" in show(str(folder)).stdout


def test_bundle_show_reads_format_2(folder: Path, files: dict[str, bytes]) -> None:
    (folder / MODEL).write_bytes(change_model_json(files, format=2, priors=None, weights=None, properties=None)[MODEL])
    result = show(str(folder))
    assert result.exit_code == 0, result.output
    assert "not checked: a bundle of format 2 has no SHA-256" in result.stdout
    assert "class proportions in training are not known" in result.stdout


def test_bundle_show_summarizes_limits_of_many_bands(tmp_path: Path) -> None:
    spec = NetworkSpec((SourceSpec("optical", 64), SourceSpec("radar", 1)), classes=3)
    write_bundle(str(tmp_path), make_bundle(spec=spec, provenance={}, priors=None))
    shown = show(str(tmp_path)).stdout
    assert "optical: 64 bands" in shown
    assert "low 0 to 63, high 10 to 73" in shown
    assert "not recorded" in shown
    assert "centre path" not in shown


def test_bundle_show_names_centre_path(tmp_path: Path) -> None:
    spec = NetworkSpec((SourceSpec("optical", 2), SourceSpec("radar", 1)), classes=3, centre=True)
    write_bundle(str(tmp_path), make_bundle(spec=spec))
    assert "centre path: the centre pixel's own values are added" in show(str(tmp_path)).stdout
    assert json.loads(show(str(tmp_path), "--json").stdout)["network"]["centre"] is True


def test_bundle_show_says_once_what_a_network_of_one_source_lacks(tmp_path: Path) -> None:
    spec = NetworkSpec((SourceSpec("optical", 2),), classes=3, without=("noise", "relation"))
    write_bundle(str(tmp_path), make_bundle(spec=spec))
    assert show(str(tmp_path)).stdout.count("the network has neither a relation between sources nor noise adaptation") == 1


def test_bundle_show_refuses_missing_or_damaged_bundle(folder: Path) -> None:
    def refused(url: Path | str) -> str:
        result = show(str(url))
        assert result.exit_code == 2, result.output
        return str(result.stderr)

    assert f"{folder / 'nowhere'}: no model bundle" in refused(folder / "nowhere")
    assert "WORKSPACE/models/RUN" in refused(folder / "nowhere")
    assert "no model bundle" in refused(folder / "README.md" / "x")
    assert "ftq" in refused("ftq://host/model")
    complete = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(complete[:1000])
    assert f"{folder}: {WEIGHTS} is truncated: 1,000 of {len(complete):,} bytes" in refused(folder)
    (folder / WEIGHTS).unlink()
    assert f"{folder}: has {MODEL} but no {WEIGHTS}" in refused(folder)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save({"a": torch.zeros(2)}))
    (folder / MODEL).write_text("{")
    assert f"{folder}: the model bundle is damaged" in refused(folder)
