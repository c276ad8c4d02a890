"""Dropout of periods takes them from the names of the store's bands, and needs a source that has some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jobs.config.loader import load
from jobs.config.train import TrainSection
from jobs.train.learner import make_perturbation
from mibf.errors import InputError
from mibf.normalization import BandScaling
from pipeline.store.template import StoredSource
from tests.support.scenes import SmallScene


def limits(bands: int) -> BandScaling:
    return BandScaling(low=np.zeros(bands, np.float32), high=np.ones(bands, np.float32), fill=np.zeros(bands, np.float32))


def test_periods_are_those_of_the_band_names() -> None:
    names = ("red@2024-JJA", "nir@2024-JJA", "red@2024-SON", "nir@2024-SON")
    sources = (
        StoredSource("elevation", 1, "exclude"),
        StoredSource("radar", 2, "fill", 1, ("vv", "vh")),
        StoredSource("optical", 4, "exclude", 1, names, 2, "fill"),
    )
    scaling = {"optical": limits(4), "radar": limits(2)}
    found = make_perturbation(TrainSection(period_dropout=0.5), sources, scaling, torch.device("cpu"))
    assert found is not None
    assert found.period_dropout == 0.5
    assert found.periods == ((0, 0, 1, 1), ())
    assert make_perturbation(TrainSection(), sources, scaling, torch.device("cpu")) is None


def test_period_dropout_without_periods_is_refused(scene: SmallScene) -> None:
    content: dict[str, Any] = scene.config(train={"period_dropout": 0.2})
    with pytest.raises(InputError, match=r"train\.period_dropout is 0\.2, but no source has `stac\.periods`"):
        load(str(scene.write_config(train=content["train"])))
    stac = {"url": "items.json", "assets": ["red"], "composite": "median", "periods": "month"}
    content["scenes"][0]["sources"]["optical"] = {"stac": stac}
    for model in ({}, {"sources": ["radar"]}):
        path = scene.write_config(train=content["train"], scenes=content["scenes"], model=model)
        assert load(str(path)).train.period_dropout == 0.2
