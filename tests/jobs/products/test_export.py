"""`mibf export`: what is written runs in onnxruntime, and is refused if it computes something else."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.products import export_check
from jobs.products.export import export
from jobs.products.export_check import ExportError
from mibf.bundle.members import NetworkMember, TreesMember
from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet
from pipeline.io import storage
from pipeline.io.model_bundle import write_bundle
from tests.support.bundles import SPEC, make_bundle

onnxruntime = pytest.importorskip("onnxruntime", reason="`pip install 'mibf[export]'`")
pytest.importorskip("onnxscript", reason="`pip install 'mibf[export]'`")


@pytest.mark.faults  # traces a network three times, which takes ten seconds
def test_networks_are_exported_with_their_description_and_other_members_are_named() -> None:
    second = NetworkMember(MIBFNet(SPEC).state_dict(), 0.8, 0.25)
    bundle = make_bundle()
    first = NetworkMember(bundle.networks[0].weights, 1.3, 0.5)
    trees = TreesMember("tree\nversion=v4\n", 1.0, 0.25)
    url = "memory://export/models/main"
    write_bundle(url, replace(bundle, members=(first, second, trees)))
    made = export(url)
    assert max(made.differences.values()) <= 1e-4
    assert set(made.differences) == {"model.onnx", "model.pt2"}
    described = json.loads(storage.read_bytes(f"{url}/export/model.json"))
    assert [source["name"] for source in described["inputs"]] == ["optical", "radar"]
    assert described["inputs"][1]["shape"] == ["batch", 1, "(rows + 4) * 2", "(columns + 4) * 2"]
    assert [each["name"] for each in described["classes"]] == ["open water", "forest | wood", "Dörfer"]
    assert described["left_out"] == ["boosted trees"]
    assert "25% of its probabilities" in made.lines()[-2]
    text = storage.read_bytes(f"{url}/export/README.md").decode()
    assert "boosted trees" in text
    assert "forest \\| wood" in text
    session = onnxruntime.InferenceSession(storage.read_bytes(f"{url}/export/model.onnx"))
    inputs = {"optical": np.full((1, 3, 9, 11), 5, np.float32), "radar": np.full((1, 1, 18, 22), np.nan, np.float32)}
    probabilities, classes = session.run(None, inputs)
    assert (probabilities.shape, classes.shape, classes.dtype) == ((1, 3, 5, 7), (1, 5, 7), np.uint8)


def test_model_that_computes_something_else_is_refused() -> None:
    bundle = make_bundle()

    def wrong(inputs: Any) -> tuple[Any, Any]:
        expected = export_check._expected(bundle, "trained", inputs)
        return expected + 2e-4, np.array([1, 2, 5], np.uint8)[expected.argmax(axis=1)]

    with pytest.raises(ExportError, match=r"model.onnx was not written.*differ from those of mibf by up to 0.0002"):
        export_check.largest_difference("model.onnx", wrong, bundle, "trained")


def test_model_without_networks_and_missing_packages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "trees")
    write_bundle(url, replace(make_bundle(), members=(TreesMember("tree\nversion=v4\n"),)))
    with pytest.raises(InputError, match="the model is boosted trees, without a network"):
        export(url)
    assert not (tmp_path / "trees" / "export").exists()
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs the package onnxruntime; run `pip install 'mibf\[export\]'`"):
        export(url)


def test_checked_inputs_reach_beyond_the_limits_and_lack_data() -> None:
    values = torch.cat([x.flatten() for x in export_check.random_inputs(make_bundle(), 3, 9, 4)])
    assert values.isnan().any()
    assert np.nanmin(values) < 0
    assert np.nanmax(values) > 12
