"""The network: shapes, what two sources mean, noise adaptation, objective, dense inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.dense import CELL, cell_logits
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.noise import SHARE, NoiseAdaptation
from mibf.objective import objective, rate
from mibf.relation import Relation, small_products
from mibf.spec import NARROW, NetworkSpec, SourceSpec


def spec_of(bands: tuple[int, ...] = (4, 2), *, classes: int = 3, patch: int = 7) -> NetworkSpec:
    widths = [SourceSpec(f"s{i}", b) if i == 0 else SourceSpec(f"s{i}", b, NARROW) for i, b in enumerate(bands)]
    return NetworkSpec(tuple(widths), classes=classes, patch=patch)


@pytest.mark.parametrize("bands", [(4, 2), (1, 1), (3, 2, 1), (2, 2, 2, 2)])
@pytest.mark.parametrize("patch", [5, 7, 9, 15])
def test_shapes_for_any_sources_and_patch(bands: tuple[int, ...], patch: int) -> None:
    network = MIBFNet(spec_of(bands, patch=patch))
    output = network([torch.rand(6, b, patch, patch) for b in bands])
    assert output.logits.shape == (6, 3)
    assert output.mean.shape == output.std.shape == (6, 128)
    assert output.gate.shape == (6, len(bands))
    torch.testing.assert_close(output.gate.sum(dim=1), torch.ones(6))
    assert (output.std > 0).all()


def test_parameters_of_the_paper_with_144_and_1_bands() -> None:
    """Counted by hand from the layers as the paper describes them; a layer lost or widened shows here."""

    def branch(bands: int, first: int, second: int) -> int:
        spatial, spectral = 9 * bands * first + 2 * first, first * second + second + 2 * second
        return spatial + spectral + 2 * second * (second // 16) + 9 * second * 64 + 128

    relation = 128 * 64 + 64 + 64 * 128 + 256
    join = 2 * (9 * 64 * 64 + 128) + 256 * 128 + 128 + 256
    bottleneck = 3 * (128 * 128 + 128) + 128 * 11 + 11
    wanted = branch(144, 128, 64) + branch(1, 16, 32) + relation + join + bottleneck
    assert sum(p.numel() for p in MIBFNet(spec_of((144, 1), classes=11)).parameters()) == wanted


def test_wrong_inputs_are_refused_with_expected_and_found() -> None:
    network = MIBFNet(spec_of())
    with pytest.raises(InputError, match=r"'s0' is 3 x 7 x 7.*wants 4 x 7 x 7"):
        network([torch.rand(2, 3, 7, 7), torch.rand(2, 2, 7, 7)])
    with pytest.raises(InputError, match="1 sources given; the network wants 2, in this order: s0, s1"):
        network([torch.rand(2, 4, 7, 7)])
    for wrong in (4, 3, 17):
        with pytest.raises(InputError, match="odd number"):
            spec_of(patch=wrong)
    with pytest.raises(InputError, match="at least two sources"):
        spec_of((4,))


def test_evaluation_is_deterministic_and_training_draws() -> None:
    network = MIBFNet(spec_of())
    x = [torch.rand(8, 4, 7, 7), torch.rand(8, 2, 7, 7)]
    network.eval()
    assert torch.equal(network(x).logits, network(x).logits)
    network.train()
    assert not torch.equal(network(x).logits, network(x).logits)


def test_the_gate_of_two_sources_is_the_papers_sigmoid() -> None:
    relation = Relation(2).eval()
    a, b = torch.rand(5, 64, 3, 3), torch.rand(5, 64, 3, 3)
    gate = torch.sigmoid(relation.gate(torch.cat([a, b], dim=1)))
    joined = relation.join(torch.matmul(a * gate, b * (1 - gate)))
    found, shares = relation([a, b])
    torch.testing.assert_close(found, joined)
    torch.testing.assert_close(shares[:, 0], gate.mean(dim=(1, 2, 3)))


@given(st.integers(1, 7))
def test_small_products_are_matrix_products(q: int) -> None:
    a, b = torch.rand(2, 3, q, q), torch.rand(2, 3, q, q)
    torch.testing.assert_close(small_products(a, b), a @ b)


@given(st.integers(2, 40), st.floats(0.1, 100.0))
@settings(deadline=None)
def test_noise_falls_on_its_share_of_rows_without_replacement_and_in_the_features_scale(batch: int, scale: float) -> None:
    noise = NoiseAdaptation(2).train()
    noise.mean_gate.copy_(torch.tensor([1.0, 0.0]))  # the first source dominates: it alone is disturbed
    features = [scale * torch.rand(batch, 64, 3, 3), torch.rand(batch, 64, 3, 3)]
    first, second = noise(features)
    assert torch.equal(second, features[1])
    disturbed = (first != features[0]).flatten(1).any(dim=1)
    assert int(disturbed.sum()) == round(SHARE * batch)
    added = (first - features[0])[disturbed].std()
    assert 0.7 < float(added / features[0].std()) < 1.4


def test_noise_is_absent_in_evaluation_and_the_mean_gate_stays() -> None:
    network = MIBFNet(spec_of()).eval()
    before = network.noise.mean_gate.clone()
    network([torch.rand(4, 4, 7, 7), torch.rand(4, 2, 7, 7)])
    assert torch.equal(network.noise.mean_gate, before)
    network.train()
    output = network([torch.rand(4, 4, 7, 7), torch.rand(4, 2, 7, 7)])
    torch.testing.assert_close(network.noise.mean_gate, output.gate.mean(dim=0))
    assert not network.noise.mean_gate.requires_grad
    assert "noise.mean_gate" in network.state_dict()


def test_rate_is_the_kl_divergence_summed_over_dimensions() -> None:
    mean, std = torch.randn(5, 16), torch.rand(5, 16) + 0.1
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(rate(mean, std), wanted)


def test_objective_adds_beta_times_the_rate() -> None:
    output = MIBFNet(spec_of())([torch.rand(4, 4, 7, 7), torch.rand(4, 2, 7, 7)])
    labels = torch.tensor([0, 1, 2, 0])
    loss = objective(output, labels, beta=0.5)
    torch.testing.assert_close(loss.total, loss.cross_entropy + 0.5 * loss.rate)
    torch.testing.assert_close(loss.cross_entropy, torch.nn.functional.cross_entropy(output.logits, labels))


@pytest.mark.parametrize(("bands", "patch"), [((4, 2), 7), ((3, 1, 2), 5)])
def test_dense_inference_equals_the_network_on_each_patch(bands: tuple[int, ...], patch: int) -> None:
    torch.manual_seed(0)
    network = MIBFNet(spec_of(bands, patch=patch)).eval()
    side = CELL + patch - 1
    windows = [torch.rand(b, side, side) for b in bands]
    logits = cell_logits(network, windows)
    for y, x in [(0, 0), (0, CELL - 1), (CELL - 1, 0), (31, 17), (CELL - 1, CELL - 1)]:
        alone = network([w[None, :, y : y + patch, x : x + patch] for w in windows]).logits[0]
        torch.testing.assert_close(logits[:, y, x], alone, atol=1e-5, rtol=1e-5)


def test_dense_inference_refuses_other_windows_and_training_mode() -> None:
    network = MIBFNet(spec_of()).eval()
    with pytest.raises(InputError, match="wants"):
        cell_logits(network, [torch.rand(4, 66, 66), torch.rand(2, 66, 66)])
    with pytest.raises(ValueError, match="training mode"):
        cell_logits(network.train(), [torch.rand(4, 70, 70), torch.rand(2, 70, 70)])


def test_bf16_agrees_with_float32_closely() -> None:
    torch.manual_seed(1)
    network = MIBFNet(spec_of()).eval()
    windows = [torch.rand(4, 70, 70), torch.rand(2, 70, 70)]
    exact = cell_logits(network, windows)
    rough = cell_logits(network, windows, precision="bf16")
    assert np.abs((exact - rough).numpy()).max() < 0.05 * float(exact.abs().max())
