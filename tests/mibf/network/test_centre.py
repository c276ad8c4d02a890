"""The centre path: which values it uses, that it starts at zero, and its place in the specification."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import PARTS, NetworkSpec
from mibf.training.loss import objective
from tests.support.networks import patches_of, spec_of


def trained_centre(spec: NetworkSpec) -> MIBFNet:
    """Return a network in evaluation mode whose centre path is not zero and whose batch norm has seen data."""
    network = MIBFNet(spec)
    with torch.no_grad():
        network.centre.output.weight.normal_(0, 0.3)
        network.centre.output.bias.normal_(0, 0.3)
        network.centre.values[1].running_mean.normal_(0, 0.2)
        network.centre.values[1].running_var.uniform_(0.3, 2)
    return network.eval()


@pytest.mark.parametrize("without", [(), ("bottleneck",), ("relation",), PARTS])
def test_untrained_network_equals_that_without_the_path(without: tuple[str, ...]) -> None:
    torch.manual_seed(4)
    plain = MIBFNet(spec_of(patch=5, without=without))
    torch.manual_seed(4)
    network = MIBFNet(spec_of(patch=5, without=without, centre=True))
    added = set(network.state_dict()) - set(plain.state_dict())
    assert added
    assert all(name.startswith("centre.") for name in added)
    assert not any("centre" in name for name in plain.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    x = patches_of(plain.spec, 6)
    for train in (True, False):
        found = []
        for each in (plain.train(train), network.train(train)):
            torch.manual_seed(5)
            found.append(each(x).logits)
        assert torch.equal(*found)


@pytest.mark.parametrize(("scales", "patch"), [((1, 1), 7), ((1, 2), 5), ((4, 1), 9)])
def test_path_depends_on_all_values_of_the_centre_pixel_and_no_others(scales: tuple[int, ...], patch: int) -> None:
    """Compare with numpy: values by source, band, row and column, a layer, batch norm, ReLU, and a layer."""
    torch.manual_seed(0)
    network = trained_centre(spec_of((3, 2), patch=patch, scales=scales, centre=True))
    x = patches_of(network.spec, 5)
    values = []
    for patches, scale in zip(x, scales, strict=True):
        side = slice(patch // 2 * scale, patch // 2 * scale + scale)
        values.append(patches.numpy()[:, :, side, side].reshape(5, -1))
    state = {name: tensor.double().numpy() for name, tensor in network.centre.state_dict().items()}
    hidden = np.concatenate(values, axis=1) @ state["values.0.weight"][:, :, 0, 0].T
    hidden = (hidden - state["values.1.running_mean"]) / np.sqrt(state["values.1.running_var"] + 1e-5)
    hidden = np.maximum(hidden * state["values.1.weight"] + state["values.1.bias"], 0)
    wanted = hidden @ state["output.weight"].T + state["output.bias"]
    with torch.inference_mode():
        np.testing.assert_allclose(network.centre(x).numpy(), wanted, atol=1e-5)


def test_path_is_added_to_the_pooled_features() -> None:
    torch.manual_seed(0)
    network = trained_centre(spec_of(patch=5, centre=True))
    x, seen = patches_of(network.spec, 4), []
    network.bottleneck.hidden.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.inference_mode():
        change = network.centre(x)
        network(x)
        network.centre = None
        network(x)
    torch.testing.assert_close(seen[0] - seen[1], change, atol=1e-5, rtol=0)
    assert change.abs().max() > 0.1


@pytest.mark.parametrize("without", [w for n in range(len(PARTS) + 1) for w in combinations(PARTS, n)])
def test_every_parameter_of_the_path_gets_a_gradient_from_the_second_step_on(without: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    network = MIBFNet(spec_of(patch=5, without=without, centre=True))
    x, labels = patches_of(network.spec, 6), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in (1, 2):
        optimizer.zero_grad()
        objective(network(x), labels, beta=1e-3).total.backward()
        for name, parameter in network.centre.named_parameters():
            assert parameter.grad is not None, name
            # The last layer starts at zero and lets no gradient through until it has changed.
            assert bool((parameter.grad != 0).any()) == (step == 2 or name.startswith("output.")), (step, name)
        optimizer.step()


def test_spec_json_mentions_the_path_only_where_there_is_one() -> None:
    with_path = spec_of(centre=True)
    assert json.loads(json.dumps(with_path.to_json()))["centre"] is True
    assert NetworkSpec.from_json(json.loads(json.dumps(with_path.to_json()))) == with_path
    assert "centre" not in spec_of().to_json()
    assert NetworkSpec.from_json(spec_of().to_json()) == spec_of()
    assert with_path != spec_of()


@pytest.mark.parametrize("wrong", ["true", 1, None])
def test_spec_with_centre_that_is_not_true_or_false_raises(wrong: object) -> None:
    with pytest.raises(InputError, match=r"`centre` is .*; it must be true or false"):
        NetworkSpec.from_json(spec_of().to_json() | {"centre": wrong})
