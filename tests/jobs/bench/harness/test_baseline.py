"""The plain network that benchmarks compare with computes what MIBFNet computes."""

from __future__ import annotations

import torch

from jobs.bench.harness.baseline import PlainNetwork
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, WIDE, NetworkSpec, SourceSpec


def test_plain_network_matches_mibfnet_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    sources = (SourceSpec("a", 5, WIDE), SourceSpec("b", 2, NARROW, scale=2), SourceSpec("c", 1, NARROW))
    # Without noise and bottleneck sampling, which are random: the only parts where training may differ.
    spec = NetworkSpec(sources, classes=4, without=frozenset({"noise", "bottleneck"}))
    ours, plain = MIBFNet(spec), PlainNetwork(spec)
    plain.load_state_dict(ours.state_dict())
    patches = [torch.rand(8, s.bands, 7 * s.scale, 7 * s.scale) for s in sources]
    results = [network.train()(patches) for network in (ours, plain)]
    for output in results:
        torch.autograd.backward(output.logits.square().sum())
    torch.testing.assert_close(results[1].logits, results[0].logits)
    torch.testing.assert_close(results[1].gate, results[0].gate)
    torch.testing.assert_close(plain.noise.mean_gate, ours.noise.mean_gate)
    for own, other in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_plain_network_adds_centre_path() -> None:
    torch.manual_seed(0)
    spec = NetworkSpec((SourceSpec("a", 3, WIDE), SourceSpec("b", 1, NARROW)), classes=4, centre=True)
    ours, plain = MIBFNet(spec), PlainNetwork(spec)
    torch.nn.init.normal_(ours.centre.output.weight)
    plain.load_state_dict(ours.state_dict())
    patches = [torch.rand(8, s.bands, 7, 7) for s in spec.sources]
    torch.testing.assert_close(plain.eval()(patches).logits, ours.eval()(patches).logits)


def test_plain_network_adds_noise_to_one_source_only_in_training() -> None:
    spec = NetworkSpec((SourceSpec("a", 3, WIDE), SourceSpec("b", 1, NARROW)), classes=4)
    noise = PlainNetwork(spec).noise
    features = [torch.zeros(20, 64, 3, 3) for _ in range(2)]
    disturbed = [x for x in noise.train()(features) if x.any()]
    assert len(disturbed) == 1
    assert 0 < int(disturbed[0].flatten(1).any(dim=1).sum()) <= 14
    assert not any(x.any() for x in noise.eval()(features))
