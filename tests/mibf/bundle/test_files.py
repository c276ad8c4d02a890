"""Files of a model bundle: round trip, format 2, and damaged or inconsistent files."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.bundle.bundle import CARD, MODEL, WEIGHTS, Bundle
from mibf.bundle.files import from_files, to_files
from mibf.bundle.model_card import CENTRE
from mibf.class_priors import Priors
from mibf.errors import InputError
from mibf.network.spec import NetworkSpec
from mibf.normalization import scaling_to_json
from tests.support.bundles import CLASSES, PRIORS, PROVENANCE, SPEC, change_model_json, limits, logits, make_bundle

# Round trip


def test_bundle_round_trips_through_files(bundle: Bundle, files: dict[str, bytes]) -> None:
    again = from_files({name: files[name] for name in (WEIGHTS, MODEL)})
    assert (again.spec, again.classes, again.networks[0].temperature, again.priors) == (SPEC, CLASSES, 1.3, PRIORS)
    assert scaling_to_json(again.scaling) == scaling_to_json(bundle.scaling)
    assert again.provenance["chosen"]["calibration"] == PROVENANCE["chosen"]["calibration"]
    assert again.provenance["chosen"]["validation_kappa"] is None, "JSON has no NaN"
    assert (logits(again.network()) == logits(bundle.network())).all()
    assert to_files(again) == files


def test_bundle_with_centre_path_round_trips_and_others_do_not_mention_it(files: dict[str, bytes]) -> None:
    model = json.loads(files[MODEL])
    assert "centre" not in model["network"]
    assert "centre" not in model["properties"]["mlm:hyperparameters"]
    assert CENTRE not in files[CARD].decode()
    bundle = make_bundle(spec=replace(SPEC, centre=True))
    torch.nn.init.normal_(bundle.networks[0].weights["centre.output.weight"])
    written = to_files(bundle)
    again = from_files(written)
    assert again.spec.centre
    assert (logits(again.network()) == logits(bundle.network())).all()
    assert to_files(again) == written
    values = 3 + 1 * 2 * 2  # of a pixel: bands times pixels per reference pixel
    assert bundle.parameters - make_bundle().parameters == values * 128 + 2 * 128 + 128 * 128 + 128
    model = json.loads(written[MODEL])
    assert model["properties"]["mlm:hyperparameters"]["centre"] is True
    assert model["properties"]["mlm:total_parameters"] == bundle.parameters
    assert CENTRE in written[CARD].decode()


@pytest.mark.parametrize(
    ("centre", "message"),
    [(False, r"centre\.\S+: found .*, expected none"), ("yes", "`centre` is 'yes'; it must be true or false")],
)
def test_model_json_with_another_centre_than_the_weights_raises(centre: Any, message: str) -> None:
    files = to_files(make_bundle(spec=replace(SPEC, centre=True)))
    network = json.loads(files[MODEL])["network"] | {"centre": centre}
    with pytest.raises(InputError, match=message):
        from_files(change_model_json(files, network=network))


def test_digest_contains_the_support_of_priors_only_where_it_is_known(bundle: Bundle) -> None:
    supported = make_bundle(priors=replace(PRIORS, support=(7, 200, 0)))
    assert from_files(to_files(supported)).priors == supported.priors
    assert supported.digest != bundle.digest
    assert json.loads(to_files(bundle)[MODEL])["priors"].keys() == {"natural", "trained"}


def test_model_json_is_written_last(files: dict[str, bytes]) -> None:
    assert list(files) == [WEIGHTS, CARD, MODEL]


def test_format_2_is_read_without_priors(bundle: Bundle, files: dict[str, bytes]) -> None:
    old = change_model_json(files, format=2, priors=None, weights=None, properties=None, stac_extensions=None)
    again = from_files(old)
    assert again.priors is None
    assert (logits(again.network()) == logits(bundle.network())).all()
    for choice in ("natural", "uniform"):
        with pytest.raises(InputError, match=r"are unknown.*Use priors 'trained', or retrain"):
            again.network(choice)


def test_unknown_format_raises(files: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="has format 5; this version reads 2, 3 and 4"):
        from_files(change_model_json(files, format=5))


# Damaged and inconsistent files


@pytest.mark.parametrize("change", [{MODEL: b"{}"}, {MODEL: b"not json"}, {MODEL: b"[]"}, {MODEL: b"\xff"}, {WEIGHTS: b"x"}])
def test_damaged_bundle_files_raise(files: dict[str, bytes], change: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match=r"damaged|truncated"):
        from_files(files | change)


def test_truncated_weights_raise_with_both_digests(files: dict[str, bytes]) -> None:
    complete, cut = files[WEIGHTS], files[WEIGHTS][:-9]
    with pytest.raises(InputError) as refused:
        from_files(files | {WEIGHTS: cut})
    message = str(refused.value)
    assert f"{WEIGHTS} is truncated: {len(cut):,} of {len(complete):,} bytes" in message
    for content in (complete, cut):
        assert hashlib.sha256(content).hexdigest()[:12] in message
    assert "retrain" in message


@given(st.data())
@settings(max_examples=25)
def test_any_changed_weight_byte_is_detected(files: dict[str, bytes], data: st.DataObject) -> None:
    content = bytearray(files[WEIGHTS])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InputError, match=r"damaged or from another model.*SHA-256"):
        from_files(files | {WEIGHTS: bytes(content)})


def test_weights_of_another_model_raise(files: dict[str, bytes]) -> None:
    other = to_files(make_bundle(spec=NetworkSpec(SPEC.sources, classes=3, patch=7)))
    weights = bytearray(other[WEIGHTS])
    weights[-1] ^= 1
    with pytest.raises(InputError, match="from another model"):
        from_files(files | {WEIGHTS: bytes(weights)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bottleneck.decoder.bias": torch.zeros(4)}, "bottleneck.decoder.bias: found 4 (float32), expected 3 (float32)"),
        ({"bottleneck.decoder.bias": torch.zeros(3).double()}, "found 3 (float64), expected 3 (float32)"),
        ({"bottleneck.decoder.bias": None}, "bottleneck.decoder.bias: found none, expected 3 (float32)"),
        ({"more": torch.zeros(2, 2)}, "more: found 2 x 2 (float32), expected none"),
    ],
)
def test_weights_that_do_not_fit_network_raise_with_names(bundle: Bundle, change: dict[str, Any], message: str) -> None:
    weights = {name: tensor for name, tensor in (bundle.networks[0].weights | change).items() if tensor is not None}
    wrong = make_bundle(weights=weights)
    with pytest.raises(InputError, match=re.escape(message)):
        wrong.network()
    with pytest.raises(InputError, match=r"does not fit the network of model\.json") as refused:
        from_files(to_files(wrong))
    assert "retrain" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [vars(c) for c in CLASSES[:2]]}, "lists 2 classes, but its network has 3"),
        ({"classes": [vars(CLASSES[0])] * 3}, "class ids 1, 1, 1"),
        ({"priors": Priors.even(2).to_json()}, "2 class priors, but its network has 3"),
        ({"priors": {"natural": [1, 1, 1], "trained": [1, 0, 0]}}, r"natural class proportions \(1, 1, 1\) sum to 3"),
        ({"priors": PRIORS.to_json() | {"support": [1, 2]}}, "support the priors are 1, 2; .* of the 3 classes"),
        ({"priors": PRIORS.to_json() | {"support": [1, 2, "x"]}}, "support the priors are 1, 2, 'x'"),
        ({"scaling": {n: limits(1).to_json() for n in ("optical", "radar")}}, "'optical' does not fit its 3 bands"),
        ({"scaling": {}}, "damaged"),
        ({"temperature": 0}, "temperature 0"),
        ({"temperature": "hot"}, "temperature 'hot'"),
        ({"provenance": []}, "provenance"),
        ({"weights": {"bytes": 3}}, "damaged"),
    ],
)
def test_inconsistent_model_json_raises(files: dict[str, bytes], change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_files(change_model_json(files, **change))


def test_stac_fields_are_ignored_when_bundle_is_read(files: dict[str, bytes]) -> None:
    again = from_files(change_model_json(files, properties={"mlm:output": "nonsense"}))
    assert again.classes == CLASSES
