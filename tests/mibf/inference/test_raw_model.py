"""A model from raw values: normalization, patches and the mean of networks, against what maps are computed with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mibf.inference.dense import Dense
from mibf.inference.raw_model import RawModel
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NetworkSpec
from mibf.normalization import BandScaling
from tests.support.networks import spec_of

SPECS = [
    spec_of((4, 2), scales=(1, 2)),
    spec_of((3, 2), scales=(2, 1), patch=5, centre=True),
    spec_of((3,), patch=5, without=("noise", "relation")),
]


@pytest.mark.parametrize("spec", SPECS, ids=["finer", "first finer, centre", "one source"])
def test_probabilities_are_those_of_dense_inference(spec: NetworkSpec) -> None:
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    networks = [MIBFNet(spec).eval() for _ in range(2)]
    scaling = {}
    for source in spec.sources:
        low = random.uniform(-100, 100, source.bands).astype(np.float32)
        high = low + random.uniform(1, 1000, source.bands).astype(np.float32)
        high[0] = low[0]  # a constant band
        scaling[source.name] = BandScaling(low=low, high=high, fill=(low + high) / 2)
    model = RawModel(networks, temperatures=[1.5, 0.7], shares=[0.3, 0.1], scaling=scaling, class_ids=[4, 7, 9])
    reach = spec.patch - 1
    raw = [
        random.normal(0, 500, (2, s.bands, (5 + reach) * s.scale, (8 + reach) * s.scale)).astype(np.float32)
        for s in spec.sources
    ]
    raw[0][0, 1, :3, 4] = np.nan
    with torch.inference_mode():
        probabilities, classes = model(*map(torch.from_numpy, raw))
    assert probabilities.shape == (2, 3, 5, 8)
    for window in range(2):
        expected = torch.zeros(3, 5, 8)
        for network, temperature, share in zip(networks, [1.5, 0.7], [0.75, 0.25], strict=True):
            scaled = [
                torch.from_numpy(scaling[s.name].apply(values[window], ~np.isnan(values[window]).any(axis=0)))
                for s, values in zip(spec.sources, raw, strict=True)
            ]
            expected += share * Dense(network, temperature=temperature)(scaled, products=["probabilities"])["probabilities"]
        torch.testing.assert_close(probabilities[window], expected, rtol=0, atol=1e-5)
        assert torch.equal(classes[window], torch.tensor([4, 7, 9], dtype=torch.uint8)[probabilities[window].argmax(dim=0)])
