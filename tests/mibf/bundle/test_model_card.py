"""The model card reports what the bundle contains, and says what is unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mibf.bundle.bundle import Bundle
from mibf.bundle.classes import ClassName
from mibf.bundle.model_card import model_card
from mibf.class_priors import Priors
from mibf.network.spec import NetworkSpec, SourceSpec
from tests.support.bundles import PRIORS, PROVENANCE, make_bundle


def test_model_card_describes_bundle(bundle: Bundle) -> None:
    text = model_card(bundle)
    for fact in (
        "# MIBF-Net, run first try!", "| optical | 3 | 1 |", "| radar | 1 | 2 |", "5 x 5 reference pixels",
        "| 2 | forest \\| wood | #1c5f2c | 0.2000 | 0.3000 |", "scenes valley, hill", "method `blocks` with a buffer of 4",
        "Epoch 4", "overall accuracy 0.876", "expected calibration error 0.021", "Brier score 0.150", "temperature 1.3 ",
        "10.1109/TGRS.2023.3296813", "mibf 0.1.0", "same sensors, bands, order and units",
    ):  # fmt: skip  # a list of names: one per line would fill a page
        assert fact in text
    assert "kappa" not in text, "a metric that is not a number must be omitted"
    assert "leaks" not in text


def test_model_card_names_classes_that_other_priors_raise_only_in_part(bundle: Bundle) -> None:
    text = model_card(make_bundle(priors=replace(PRIORS, support=(400, 3, 100))))
    assert "Other priors raise forest \\| wood only in part: fewer than 100 training or validation samples." in text
    assert "only in part" not in model_card(bundle)


@pytest.mark.parametrize(
    ("provenance", "fact"),
    [
        ({}, "is not recorded"),
        ({"split": {"method": "random"}}, "was random and leaks"),
        (
            {"split": {"method": "raster", "caveat": "the raster split leaks: up to 9%"}},
            "**The raster split leaks: up to 9%.**",
        ),
        ({"split": {"method": "raster", "caveat": None}}, "No test patch shared a pixel with a training patch"),
        ({"split": {"method": "raster"}}, "only if test patches share no pixel with training patches"),
        ({"chosen": 3, "split": "blocks", "scenes": 4, "versions": []}, "is not recorded"),
        ({"authors": {"checkpoint": "m.pth", "sha256": "aa"}}, "The training data are unknown"),
        ({"authors": True}, "The training data are unknown"),
    ],
)
def test_model_card_with_missing_provenance_says_unknown(provenance: dict[str, Any], fact: str) -> None:
    text = model_card(make_bundle(provenance=provenance, priors=None))
    assert fact in text
    assert "class proportions in training are not known" in text


def test_model_card_says_how_epoch_was_selected() -> None:
    last = model_card(make_bundle(provenance=PROVENANCE | {"hyperparameters": {"select": "last"}}))
    assert "The model is that of epoch 4, the last one." in last
    assert "Brier score 0.150." in last
    assert "select" not in last
    never = model_card(make_bundle(provenance=PROVENANCE | {"chosen": {"epoch": 4, "train_loss": 0.1}}))
    assert "The model is that of epoch 4, the last one." in never
    assert "no validation pixels, so confidences are not calibrated" in never


def test_model_card_stays_under_80_lines() -> None:
    spec = NetworkSpec(tuple(SourceSpec(f"s{i}", 40) for i in range(20)), classes=200)
    classes = tuple(ClassName(i, f"line\nbreak {i}", "#000000") for i in range(200))
    provenance = PROVENANCE | {"scenes": [f"scene {i}" for i in range(500)], "versions": {f"p{i}": "1" for i in range(99)}}
    text = model_card(make_bundle(spec=spec, classes=classes, provenance=provenance, priors=Priors.even(200)))
    assert len(text.splitlines()) < 80
    assert "and 484 more" in text
    full = NetworkSpec(tuple(SourceSpec(f"s{i}", 2) for i in range(16)), classes=16)
    text = model_card(make_bundle(spec=full, classes=classes[:16], priors=Priors.even(16)))
    assert len(text.splitlines()) < 80


def test_model_card_says_once_what_a_network_of_one_source_lacks(bundle: Bundle) -> None:
    spec = NetworkSpec((SourceSpec("optical", 3),), classes=3, patch=5, without=("noise", "relation"))
    text = model_card(make_bundle(spec=spec))
    sentence = "With one source, the network has neither a relation between sources nor noise adaptation."
    assert text.count(sentence) == 1
    assert "into one of 3 classes, from one source." in text
    assert sentence not in model_card(bundle)
    assert "from 2 co-registered sources." in model_card(bundle)
