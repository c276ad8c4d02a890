"""STAC MLM fields of a model bundle, checked against the extension and its readers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pystac
import pystac.validation
import pytest
from pystac.extensions import mlm

from mibf.bundle import stac_mlm
from mibf.bundle.bundle import MODEL, Bundle
from mibf.bundle.files import to_files
from mibf.bundle.members import TreesMember, file_names
from mibf.normalization import BandScaling
from tests.support.bundles import CLASSES, make_bundle
from tests.support.stac_extensions import check_published, needs_schemas


def properties_of(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(to_files(bundle)[MODEL])["properties"]
    return found


def test_stac_mlm_fields_follow_extension_schema(bundle: Bundle) -> None:
    """Check the rules of the MLM v1.6.0 schema that apply to these fields."""
    found = properties_of(bundle)
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", found["mlm:name"])
    assert found["mlm:name"] == "MIBF-Net first try"
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9a-zA-Z.-]+)?(\+[0-9a-zA-Z.-]+)?", found["mlm:framework_version"])
    assert found["mlm:total_parameters"] == sum(p.numel() for p in bundle.network().parameters())
    assert found["mlm:memory_size"] == sum(t.nbytes for t in bundle.networks[0].weights.values())
    assert all(re.fullmatch(r"[0-9a-zA-Z_.-]+", key) for key in found["mlm:hyperparameters"])
    assert {"beta": 1e-4, "patch": 5}.items() <= found["mlm:hyperparameters"].items()
    assert [entry["input"]["shape"] for entry in found["mlm:input"]] == [[-1, 3, 5, 5], [-1, 1, 10, 10]]
    named = {band["name"] for band in found["bands"]}
    assert named == {"optical 1", "optical 2", "optical 3", "radar 1"}, "inputs must refer to bands by name"
    for entry in found["mlm:input"]:
        shape, order = entry["input"]["shape"], entry["input"]["dim_order"]
        assert len(shape) == len(order)
        assert set(entry["bands"]) <= named
        assert len(entry["value_scaling"]) == len(entry["bands"]) == shape[order.index("bands")]
        assert entry["input"]["data_type"] == "float32"
    (output,) = found["mlm:output"]
    assert output["tasks"] == found["mlm:tasks"] == ["semantic-segmentation"]
    assert output["result"] == {"shape": [-1, 3], "dim_order": ["batch", "class"], "data_type": "float32"}
    assert output["post_processing_function"]["expression"] == "softmax(logits / 1.3)"
    for listed, c in zip(output["classification:classes"], CLASSES, strict=True):
        assert (listed["value"], listed["description"]) == (c.id, c.name)
        assert re.fullmatch(r"[0-9A-Za-z_-]+", listed["name"])
        assert re.fullmatch(r"[0-9A-F]{6}", listed["color_hint"])
    # Trained from scratch: the source must be present and null.
    assert (found["mlm:pretrained"], found["mlm:pretrained_source"]) == (False, None)


def item_of(bundle: Bundle) -> dict[str, Any]:
    """The item as another program reads it: model.json itself."""
    found: dict[str, Any] = json.loads(to_files(bundle)[MODEL])
    return found


MEMBERS = {
    "network": lambda bundle: bundle,
    "trees": lambda bundle: replace(bundle, members=(TreesMember("tree\n"),)),
    "both": lambda bundle: replace(
        bundle, members=(replace(bundle.members[0], share=0.5), replace(TreesMember("tree\n"), share=0.5))
    ),
}


@needs_schemas
@pytest.mark.parametrize("kind", MEMBERS)
def test_model_json_is_a_valid_stac_item(bundle: Bundle, kind: str) -> None:
    item = item_of(MEMBERS[kind](bundle))
    pystac.validation.validate_dict(item, pystac.STACObjectType.ITEM, "1.1.0", extensions=[])
    check_published(item)
    read = pystac.Item.from_dict(item)
    models = [asset for asset in read.assets.values() if "mlm:model" in asset.roles]
    assert [asset.href.removeprefix("./") for asset in models] == file_names(MEMBERS[kind](bundle).members)
    assert read.extra_fields["format"], "the bundle's own members are kept beside those of STAC"


@needs_schemas
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["properties", "mlm:tasks"], ["mapping"]),
        (["properties", "mlm:input", 0, "input", "data_type"], "float"),
        (["properties", "mlm:output", 0, "classification:classes", 0, "name"], "open water"),
        (["assets", "weights.safetensors", "mlm:artifact_type"], 3),
        (["assets", "weights.safetensors", "roles"], ["data"]),
    ],
)
def test_invalid_mlm_fields_are_detected_by_the_published_schema(bundle: Bundle, place: list[Any], value: Any) -> None:
    item = item_of(bundle)
    part: Any = item
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(pystac.STACValidationError):
        check_published(item)


def test_stac_value_scaling_matches_applied_normalization(bundle: Bundle) -> None:
    limits = BandScaling(np.array([0, 5, 7], np.float32), np.array([4, 9, 7], np.float32), np.zeros(3, np.float32))
    rules = properties_of(make_bundle(scaling=bundle.scaling | {"optical": limits}))["mlm:input"][0]["value_scaling"]
    values = np.random.default_rng(0).uniform(-5, 15, (3, 4, 4)).astype(np.float32)
    for band, rule, wanted in zip(values, rules, limits.apply(values, np.ones((4, 4), bool)), strict=True):
        low, high = rule["minimum"], rule["maximum"]
        found = band.clip(low, high) if rule["type"] == "clip" else ((band - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_pystac_reads_mlm_fields(bundle: Bundle) -> None:
    item = pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.1.0",
            "id": "m",
            "geometry": None,
            "links": [],
            "assets": {},
            "stac_extensions": [mlm.MLMExtension.get_schema_uri()],
            "properties": {"datetime": "2024-01-01T00:00:00Z", **properties_of(bundle)},
        }
    )
    read = mlm.MLMExtension.ext(item)
    assert (read.mlm_name, read.architecture) == ("MIBF-Net first try", "MIBF-Net")
    assert [mlm.TaskType(task) for task in read.tasks] == [mlm.TaskType.SEMANTIC_SEGMENTATION]
    assert read.framework == "PyTorch"
    assert read.memory_size == bundle.memory_bytes
    for entry in read.input:
        assert [band if isinstance(band, str) else band.name for band in entry.bands]
        assert entry.input.dim_order == ["batch", "bands", "height", "width"]
        assert {mlm.ValueScalingType(rule["type"]) for rule in entry.to_dict()["value_scaling"]} == {"min-max"}
        assert entry.pre_processing_function.format == "python"
    (output,) = read.output
    assert output.result.shape == [-1, 3]
    assert [(c.value, c.description) for c in output.classes] == [(c.id, c.name) for c in CLASSES]


def test_stac_model_package_validates_mlm_fields(bundle: Bundle) -> None:
    schema = pytest.importorskip("stac_model.schema", reason="the package stac-model is not installed")
    schema.MLModelProperties.model_validate(properties_of(bundle))
    assert stac_mlm.EXTENSIONS[0] == schema.SCHEMA_URI


def test_model_of_boosted_trees_names_what_it_is() -> None:
    network = make_bundle(provenance={"run": "a", "versions": {"torch": "2.9.0", "lightgbm": "4.7.0"}})
    trees = TreesMember("tree\n")
    found = properties_of(replace(network, members=(trees,)))
    assert found["mlm:architecture"] == "gradient boosted trees"
    assert (found["mlm:framework"], found["mlm:framework_version"]) == ("LightGBM", "4.7.0")
    assert found["mlm:name"] == "Boosted trees a"
    blend = replace(network, members=(replace(network.members[0], share=0.5), replace(trees, share=0.5)))
    assert properties_of(blend)["mlm:architecture"] == "MIBF-Net and gradient boosted trees"
    assert properties_of(blend)["mlm:framework"] == "PyTorch"


@pytest.mark.parametrize("run", [None, "", "!!", "ü", "a" * 200, 3])
@pytest.mark.parametrize("version", [None, "2.9.0a0+gitabc", "nightly", 3])
def test_mlm_name_and_version_are_valid_for_any_provenance(run: Any, version: Any) -> None:
    found = properties_of(make_bundle(provenance={"run": run, "versions": {"torch": version}, "hyperparameters": 3}))
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", found["mlm:name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+[0-9a-zA-Z.-]+)?", found["mlm:framework_version"])
    assert "mlm:pretrained" not in found
