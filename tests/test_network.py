"""The network: shapes, what two sources mean, scale, noise adaptation, objective."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.noise import SHARE, NoiseAdaptation
from mibf.objective import objective, rate
from mibf.relation import Relation, shares, small_products
from mibf.spec import NARROW, WIDE, NetworkSpec, SourceSpec


def spec_of(
    bands: tuple[int, ...] = (4, 2), *, classes: int = 3, patch: int = 7, scales: tuple[int, ...] = (1, 1, 1, 1)
) -> NetworkSpec:
    sources = [SourceSpec(f"s{i}", b, NARROW if i else WIDE, scales[i]) for i, b in enumerate(bands)]
    return NetworkSpec(tuple(sources), classes=classes, patch=patch)


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


@pytest.mark.parametrize("scale", [2, 4])
def test_a_finer_source_enters_with_all_its_pixels_where_they_are(scale: int) -> None:
    """Each fine pixel reaches the output, as the channel (band, row, column in the reference pixel) of that pixel."""
    network = MIBFNet(spec_of((3, 2), patch=5, scales=(1, scale))).eval()
    x = [torch.rand(1, 3, 5, 5), torch.rand(1, 2, 5 * scale, 5 * scale, requires_grad=True)]
    network(x).logits.square().sum().backward()
    assert (x[1].grad != 0).float().mean() > 0.95  # all but those that a ReLU shuts out
    plain = MIBFNet(spec_of((3, 2 * scale**2), patch=5)).eval()
    plain.load_state_dict(network.state_dict())
    stacked = torch.stack(
        [x[1][:, band, row::scale, column::scale] for band in range(2) for row in range(scale) for column in range(scale)],
        dim=1,
    )
    torch.testing.assert_close(plain([x[0], stacked]).logits, network(x).logits)


def test_wrong_inputs_are_refused_with_expected_and_found() -> None:
    network = MIBFNet(spec_of())
    with pytest.raises(InputError, match=r"'s0' is 3 x 7 x 7.*wants 4 x 7 x 7"):
        network([torch.rand(2, 3, 7, 7), torch.rand(2, 2, 7, 7)])
    with pytest.raises(InputError, match="1 sources given; the network wants 2, in this order: s0, s1"):
        network([torch.rand(2, 4, 7, 7)])
    for wrong in (4, 3, 17):
        with pytest.raises(InputError, match="odd number"):
            spec_of(patch=wrong)
    with pytest.raises(InputError, match="inner widths"):
        SourceSpec("a", 3, widths=(128, 8))
    with pytest.raises(InputError, match="two sources have one name: a, a"):
        NetworkSpec((SourceSpec("a", 3), SourceSpec("a", 3)), classes=2)
    with pytest.raises(InputError, match="'s1' has scale 3; it must be one of 1, 2, 4"):
        spec_of(scales=(1, 3))
    finer = MIBFNet(spec_of(scales=(1, 2)))
    with pytest.raises(InputError, match=r"'s1' is 2 x 7 x 7.*wants 2 x 14 x 14.* at scale 2"):
        finer([torch.rand(2, 4, 7, 7), torch.rand(2, 2, 7, 7)])
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


@given(st.integers(2, 5), st.integers(1, 6))
def test_gates_of_any_number_of_sources_sum_to_one_and_two_are_the_special_case(sources: int, pixels: int) -> None:
    logits = torch.randn(pixels, sources - 1, 4)
    gates = shares(logits, dim=1)
    assert len(gates) == sources
    torch.testing.assert_close(torch.stack(gates).sum(dim=0), torch.ones(pixels, 4))
    # A further source that the gate shuts out, its logit far below, leaves the others' gates as they were.
    wider = shares(torch.cat([torch.full((pixels, 1, 4), -1e4), logits], dim=1), dim=1)
    for gate, same in zip(gates, wider[1:], strict=True):
        torch.testing.assert_close(gate, same)


def test_a_third_source_shut_out_leaves_the_relation_of_two() -> None:
    """The generalisation holds the paper's relation: embed its weights, close the third gate, and it comes out."""
    torch.manual_seed(0)
    two, three = Relation(2).eval(), Relation(3).eval()
    features = [torch.rand(5, 64, 3, 3) for _ in range(3)]
    with torch.no_grad():
        # Logits of three: first, second, and zero for the last, which is the one shut out.
        three.gate.weight.zero_()
        three.gate.weight[:64, :128] = two.gate.weight
        three.gate.bias.copy_(torch.cat([two.gate.bias + 50, torch.full((64,), 50.0)]))
        three.join[0].weight[:, :64] = two.join[0].weight
        found, gates = three(features)
        wanted, wanted_gates = two(features[:2])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gates[:, :2], wanted_gates, atol=1e-5, rtol=1e-5)
    assert gates[:, 2].max() < 1e-6


@given(st.integers(1, 7))
def test_small_products_are_matrix_products(q: int) -> None:
    a, b = (torch.rand(2, 3, q, q, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(small_products(a, b), a @ b)
    assert torch.autograd.gradcheck(small_products, (a, b))


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


def test_the_disturbed_source_is_drawn_with_the_probability_of_its_mean_gate() -> None:
    torch.manual_seed(0)
    noise = NoiseAdaptation(3).train()
    noise.mean_gate.copy_(torch.tensor([0.6, 0.3, 0.1]))
    features = [torch.rand(4, 64, 3, 3) for _ in range(3)]
    counts = torch.zeros(3)
    for _ in range(600):
        changed = torch.tensor([not torch.equal(a, b) for a, b in zip(noise(features), features, strict=True)])
        assert int(changed.sum()) == 1
        counts += changed
    assert torch.allclose(counts / 600, noise.mean_gate, atol=0.06)  # three standard deviations


def test_noise_has_the_scale_of_features_far_from_zero() -> None:
    noise = NoiseAdaptation(2).train()
    noise.mean_gate.copy_(torch.tensor([1.0, 0.0]))
    features = [50 + 1e-3 * torch.randn(64, 64, 3, 3), torch.rand(64, 64, 3, 3)]
    added = (noise(features)[0] - features[0]).flatten(1)
    added = added[(added != 0).any(dim=1)]
    assert 0.9e-3 < float(added.std()) < 1.1e-3


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
