"""Models of several members: files, digests, checks, and what the card and STAC fields say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from mibf.bundle.bundle import CARD, MODEL, WEIGHTS, Bundle
from mibf.bundle.files import from_files, member_files, to_files
from mibf.bundle.members import LinearMember, NetworkMember, TreesMember
from mibf.bundle.model_card import model_card
from mibf.bundle.stac_mlm import formula
from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet
from tests.support.bundles import SPEC, change_model_json, make_bundle


def blend() -> Bundle:
    """Two networks, trees and logistic regression, of which this package knows only text and arrays."""
    torch.manual_seed(5)
    members = (
        NetworkMember(MIBFNet(SPEC).state_dict(), 1.5, 0.3),
        NetworkMember(MIBFNet(SPEC).state_dict(), 2.5, 0.3),
        TreesMember("tree\nversion=v4\n", 1.25, 0.3),
        LinearMember({"coefficients": torch.ones(3, 9, dtype=torch.float64)}, 1.75, 0.1),
    )
    return replace(make_bundle(), members=members)


def test_members_round_trip_through_files_in_order() -> None:
    bundle = blend()
    files = to_files(bundle)
    assert list(files) == ["weights.safetensors", "weights-2.safetensors", "trees.txt", "linear.safetensors", CARD, MODEL]
    again = from_files(files)
    assert [(m.kind, m.temperature, m.share) for m in again.members] == [
        ("network", 1.5, 0.3),
        ("network", 2.5, 0.3),
        ("trees", 1.25, 0.3),
        ("linear", 1.75, 0.1),
    ]
    for position, member in enumerate(again.networks):
        for name, tensor in member.weights.items():
            assert torch.equal(tensor, bundle.networks[position].weights[name])
    assert again.trees[0].text == bundle.trees[0].text
    assert torch.equal(again.linear[0].weights["coefficients"], bundle.linear[0].weights["coefficients"])
    assert again.digest == bundle.digest
    assert again.single is None
    assert json.loads(files[MODEL])["format"] == 4


def test_single_network_keeps_its_format() -> None:
    """Bundles of one network are read by earlier versions, and their maps stay current."""
    bundle = make_bundle()
    model = json.loads(to_files(bundle)[MODEL])
    assert model["format"] == 3
    assert "members" not in model
    assert set(bundle.to_json()) == {"network", "scaling", "classes", "temperature", "priors", "weights"}


@pytest.mark.parametrize("change", ["temperature", "share", "text", "coefficients", "order"])
def test_digest_depends_on_everything_that_predictions_depend_on(change: str) -> None:
    bundle = blend()
    first, second, trees, linear = bundle.members
    assert isinstance(linear, LinearMember)
    changed = {
        "temperature": (replace(first, temperature=1.6), second, trees, linear),
        "share": (replace(first, share=0.4), replace(second, share=0.2), trees, linear),
        "text": (first, second, replace(trees, text="tree\nversion=v5\n"), linear),
        "coefficients": (
            first,
            second,
            trees,
            replace(linear, weights={"coefficients": 2 * linear.weights["coefficients"]}),
        ),
        "order": (second, first, trees, linear),
    }[change]
    assert replace(bundle, members=changed).digest != bundle.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0.0}, "share 0.0 of a member is not a positive number"),
        ({"share": 0.5}, "must sum to 1"),
        ({"temperature": -1}, "temperature -1 is not a positive number"),
        ({"temperature": True}, "temperature True is not a positive number"),
        ({"kind": "forest"}, "member of kind 'forest'"),
        ({"file": "../weights.safetensors"}, "damaged"),
        ({"sha256": "0" * 64}, re.escape("weights.safetensors is damaged or from another model")),
    ],
)
def test_inconsistent_members_raise(changes: dict[str, Any], message: str) -> None:
    files = to_files(blend())
    members = json.loads(files[MODEL])["members"]
    with pytest.raises(InputError, match=message):
        from_files(change_model_json(files, members=[members[0] | changes, *members[1:]]))


def test_files_of_members_are_those_that_bundles_write_and_no_others() -> None:
    model = to_files(blend())[MODEL]
    assert member_files(model) == ["weights.safetensors", "weights-2.safetensors", "trees.txt", "linear.safetensors"]
    assert member_files(to_files(make_bundle())[MODEL]) == [WEIGHTS]
    outside = {"members": [{"file": "../../secret"}, {"file": "trees.txt"}]}
    assert member_files(json.dumps(outside).encode()) == ["trees.txt"]
    assert member_files(b"not JSON") == [WEIGHTS]


def test_card_and_stac_fields_name_members_shares_and_temperatures() -> None:
    card = model_card(blend())
    assert "network 0.30, network 0.30, boosted trees 0.30, logistic regression 0.10" in card
    assert "divided by temperatures 1.5, 2.5, 1.25, 1.75" in card
    assert formula(blend()) == (
        "0.3 * softmax(logits_1 / 1.5) + 0.3 * softmax(logits_2 / 2.5) + 0.3 * softmax(logits_3 / 1.25)"
        " + 0.1 * softmax(logits_4 / 1.75)"
    )
    trees = replace(blend(), members=(TreesMember("tree\n"),))
    assert model_card(trees).startswith("# Boosted trees")
    assert trees.parameters == 0
