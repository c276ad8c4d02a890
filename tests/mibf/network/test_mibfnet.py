"""Network tests: shapes, the two-source case, source scale, ablated parts, noise adaptation and training objective."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.errors import InputError
from mibf.network.bottleneck import kl_divergence
from mibf.network.mibfnet import MIBFNet, Output
from mibf.network.noise_adaptation import SHARE, NoiseAdaptation
from mibf.network.relation import Relation, gate_weights, small_products
from mibf.network.spec import PARTS, NetworkSpec, SourceSpec
from mibf.training.loss import objective
from tests.support.networks import ABLATED, patches_of, spec_of


def case_id(spec: NetworkSpec) -> str:
    return f"{len(spec.sources)} without {' '.join(spec.without) or 'nothing'}"


@pytest.mark.parametrize("bands", [(4, 2), (1, 1), (3, 2, 1), (2, 2, 2, 2)])
@pytest.mark.parametrize("patch", [5, 7, 9, 15])
def test_output_shapes_for_any_number_of_sources_and_patch_size(bands: tuple[int, ...], patch: int) -> None:
    network = MIBFNet(spec_of(bands, patch=patch))
    output = network([torch.rand(6, b, patch, patch) for b in bands])
    assert output.logits.shape == (6, 3)
    assert output.mean.shape == output.std.shape == (6, 128)
    assert output.gate.shape == (6, len(bands))
    torch.testing.assert_close(output.gate.sum(dim=1), torch.ones(6))
    assert (output.std > 0).all()


def test_parameter_count_matches_paper_for_144_and_1_bands() -> None:
    """Count the parameters by hand from the layers described in the paper, to detect a missing or wider layer."""

    def branch(bands: int, first: int, second: int) -> int:
        spatial, spectral = 9 * bands * first + 2 * first, first * second + second + 2 * second
        return spatial + spectral + 2 * second * (second // 16) + 9 * second * 64 + 128

    relation = 128 * 64 + 64 + 64 * 128 + 256
    join = 2 * (9 * 64 * 64 + 128) + 256 * 128 + 128 + 256
    bottleneck = 3 * (128 * 128 + 128) + 128 * 11 + 11
    wanted = branch(144, 128, 64) + branch(1, 16, 32) + relation + join + bottleneck
    assert sum(p.numel() for p in MIBFNet(spec_of((144, 1), classes=11)).parameters()) == wanted


@pytest.mark.parametrize("scale", [2, 4])
def test_finer_source_pixels_become_channels_in_band_row_column_order(scale: int) -> None:
    """Each fine pixel reaches the output as channel (band, row, column) of its reference pixel."""
    network = MIBFNet(spec_of((3, 2), patch=5, scales=(1, scale))).eval()
    x = [torch.rand(1, 3, 5, 5), torch.rand(1, 2, 5 * scale, 5 * scale, requires_grad=True)]
    network(x).logits.square().sum().backward()
    assert (x[1].grad != 0).float().mean() > 0.95  # all except those zeroed by a ReLU
    plain = MIBFNet(spec_of((3, 2 * scale**2), patch=5)).eval()
    plain.load_state_dict(network.state_dict())
    stacked = torch.stack(
        [x[1][:, band, row::scale, column::scale] for band in range(2) for row in range(scale) for column in range(scale)],
        dim=1,
    )
    torch.testing.assert_close(plain([x[0], stacked]).logits, network(x).logits)


def test_wrong_inputs_raise_with_expected_and_found_shape() -> None:
    network = MIBFNet(spec_of())
    with pytest.raises(InputError, match=r"'s0' is 3 x 7 x 7.*needs 4 x 7 x 7"):
        network([torch.rand(2, 3, 7, 7), torch.rand(2, 2, 7, 7)])
    with pytest.raises(InputError, match="1 sources given; the network needs 2, in this order: s0, s1"):
        network([torch.rand(2, 4, 7, 7)])
    for wrong in (4, 3, 17):
        with pytest.raises(InputError, match="odd number"):
            spec_of(patch=wrong)
    with pytest.raises(InputError, match="inner widths"):
        SourceSpec("a", 3, widths=(128, 8))
    with pytest.raises(InputError, match="two sources have the same name: a, a"):
        NetworkSpec((SourceSpec("a", 3), SourceSpec("a", 3)), classes=2)
    with pytest.raises(InputError, match="'s1' has scale 3; it must be one of 1, 2, 4"):
        spec_of(scales=(1, 3))
    finer = MIBFNet(spec_of(scales=(1, 2)))
    with pytest.raises(InputError, match=r"'s1' is 2 x 7 x 7.*needs 2 x 14 x 14.* at scale 2"):
        finer([torch.rand(2, 4, 7, 7), torch.rand(2, 2, 7, 7)])
    with pytest.raises(InputError, match="at least two sources"):
        spec_of((4,))


@pytest.mark.parametrize("spec", ABLATED, ids=case_id)
def test_ablated_network_keeps_output_shapes_and_every_parameter_gets_gradient(spec: NetworkSpec) -> None:
    """Every parameter gets a gradient, as data-parallel training requires, so none is unused."""
    network = MIBFNet(spec)
    output = network(patches_of(spec, 6))
    assert output.logits.shape == (6, 3)
    assert output.mean.shape == (6, 128)
    assert output.gate.shape == (6, len(spec.sources))
    torch.testing.assert_close(output.gate.sum(dim=1), torch.ones(6))
    loss = objective(output, torch.tensor([0, 1, 2, 0, 1, 2]), beta=1e-3)
    loss.total.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # The channel attention of a narrow branch has two units, and its ReLU may zero both.
        assert (parameter.grad != 0).any() or ".attention." in name, name
    if "bottleneck" in spec.without:
        assert output.std is None
        assert float(loss.rate) == 0
        assert torch.equal(loss.total, loss.cross_entropy)
        assert torch.equal(output.logits, network.bottleneck.decoder(output.mean))
    else:
        assert output.std is not None
        assert output.std.shape == (6, 128)
        assert loss.rate > 0


@pytest.mark.parametrize("spec", ABLATED, ids=case_id)
def test_remaining_parts_keep_parameter_names_and_shapes(spec: NetworkSpec) -> None:
    def shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in MIBFNet(spec).state_dict().items()}

    gone = {"noise": (), "relation": ("relation.",), "bottleneck": ("bottleneck.spread.",)}
    prefixes = tuple(prefix for part in spec.without for prefix in gone[part])
    twin = spec if len(spec.sources) > 1 else spec_of((3, 1), patch=5)  # a single source has the layers of the first of two
    second = ("branches.1.", "refine.1.", "noise.") if twin is not spec else ()
    full = shapes(NetworkSpec(twin.sources, classes=3, patch=5))
    wanted = {name: shape for name, shape in full.items() if not name.startswith((*prefixes, *second))}
    if "relation" in spec.without:
        wanted["join.0.weight"] = (128, 64 * len(spec.sources), 1, 1)
    assert shapes(spec) == wanted | {"noise.mean_gate": (len(spec.sources),)}


@pytest.mark.parametrize("spec", ABLATED, ids=case_id)
def test_training_is_stochastic_unless_noise_and_bottleneck_are_omitted(spec: NetworkSpec) -> None:
    torch.manual_seed(0)
    network, x = MIBFNet(spec).train(), patches_of(spec, 8)
    one, other = network(x), network(x)
    assert torch.equal(one.logits, other.logits) == {"noise", "bottleneck"}.issubset(spec.without)
    assert torch.equal(one.mean, other.mean) == ("noise" in spec.without)
    network.eval()
    assert torch.equal(network(x).logits, network(x).logits)


@pytest.mark.parametrize("bands", [(4, 2), (3, 1, 2)])
def test_without_relation_sources_interact_only_in_join(bands: tuple[int, ...]) -> None:
    """The input of the join's ReLU is a sum of one function per source, so the effects of changing two sources add up."""

    def interaction(network: MIBFNet) -> float:
        """Return the relative difference between changing two sources at once and the sum of changing each one."""
        seen: list[torch.Tensor] = []
        network.eval().join[0].register_forward_hook(lambda module, inputs, output: seen.append(output.double()))
        first, second = patches_of(network.spec, 5), patches_of(network.spec, 5)
        with torch.no_grad():
            for choice in [(0, 0), (1, 0), (0, 1), (1, 1)]:
                network([(first, second)[c][i] for i, c in enumerate(choice)] + first[2:])
        neither, one, other, both = seen
        return float((both - one - other + neither).abs().max() / (both - neither).abs().max())

    torch.manual_seed(0)
    assert interaction(MIBFNet(spec_of(bands, without=("relation",)))) < 1e-5
    assert interaction(MIBFNet(spec_of(bands))) > 1e-3


@pytest.mark.parametrize("bands", [(4, 2), (3, 1, 2)])
def test_without_relation_gates_and_noise_probabilities_are_uniform(bands: tuple[int, ...]) -> None:
    network = MIBFNet(spec_of(bands, without=("relation",))).train()
    for _ in range(3):
        gate = network(patches_of(network.spec, 4)).gate
        assert torch.equal(gate, torch.full((4, len(bands)), 1 / len(bands)))
    torch.testing.assert_close(network.noise.mean_gate, torch.full((len(bands),), 1 / len(bands)))


def test_without_noise_training_features_equal_branch_outputs() -> None:
    """The output equals that of the full network with its noise layer replaced by the identity."""
    plain = MIBFNet(spec_of(without=("noise",))).train()
    full = MIBFNet(spec_of()).train()
    full.load_state_dict(plain.state_dict())
    full.noise.forward = lambda features: features
    x = patches_of(plain.spec, 6)

    def seeded_output(network: MIBFNet) -> Output:
        torch.manual_seed(3)
        return network(x)

    for found, wanted in zip(seeded_output(plain), seeded_output(full), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(plain.noise.mean_gate, full.noise.mean_gate)  # still tracked


def test_spec_json_records_omitted_parts_and_defaults_to_none() -> None:
    for spec in ABLATED:
        written = json.loads(json.dumps(spec.to_json()))
        assert written["without"] == list(spec.without)
        assert NetworkSpec.from_json(written) == spec
    older = spec_of().to_json()
    del older["without"]
    assert NetworkSpec.from_json(older) == spec_of()
    assert spec_of(without=("bottleneck", "noise")) == spec_of(without=("noise", "bottleneck"))
    assert hash(spec_of(without=("bottleneck", "noise"))) == hash(spec_of(without=("noise", "bottleneck")))
    assert NetworkSpec(spec_of().sources, classes=3, without=["relation"]).without == ("relation",)


def test_invalid_omitted_parts_raise() -> None:
    with pytest.raises(InputError, match="cannot be built without 'gate'; `without` accepts noise, relation, bottleneck"):
        spec_of(without=("gate",))
    with pytest.raises(InputError, match="`without` lists 'noise' twice"):
        spec_of(without=("noise", "relation", "noise"))
    with pytest.raises(InputError, match="`without` is 'noise'; pass a list"):
        spec_of(without="noise")
    for wrong in [(), ("noise",), ("relation",), ("relation", "bottleneck")]:
        with pytest.raises(
            InputError, match=r"at least two sources, 1 given; .* train it alone, without noise and relation"
        ):
            spec_of((4,), without=wrong)
    with pytest.raises(InputError, match="at least two sources, 0 given"):
        spec_of((), without=PARTS)
    alone = MIBFNet(spec_of((4,), without=("noise", "relation")))
    with pytest.raises(InputError, match="2 sources given; the network needs 1, in this order: s0"):
        alone([torch.rand(2, 4, 7, 7), torch.rand(2, 2, 7, 7)])
    with pytest.raises(InputError, match=r"'s0' is 3 x 7 x 7.*needs 4 x 7 x 7"):
        alone([torch.rand(2, 3, 7, 7)])


def test_evaluation_is_deterministic_and_training_is_stochastic() -> None:
    network = MIBFNet(spec_of())
    x = [torch.rand(8, 4, 7, 7), torch.rand(8, 2, 7, 7)]
    network.eval()
    assert torch.equal(network(x).logits, network(x).logits)
    network.train()
    assert not torch.equal(network(x).logits, network(x).logits)


def test_gate_of_two_sources_equals_paper_sigmoid() -> None:
    relation = Relation(2).eval()
    a, b = torch.rand(5, 64, 3, 3), torch.rand(5, 64, 3, 3)
    gate = torch.sigmoid(relation.gate(torch.cat([a, b], dim=1)))
    joined = relation.join(torch.matmul(a * gate, b * (1 - gate)))
    found, shares = relation([a, b])
    torch.testing.assert_close(found, joined)
    torch.testing.assert_close(shares[:, 0], gate.mean(dim=(1, 2, 3)))


@given(st.integers(2, 5), st.integers(1, 6))
def test_gates_sum_to_one_and_ignore_source_with_very_low_logit(sources: int, pixels: int) -> None:
    logits = torch.randn(pixels, sources - 1, 4)
    gates = gate_weights(logits, dim=1)
    assert len(gates) == sources
    torch.testing.assert_close(torch.stack(gates).sum(dim=0), torch.ones(pixels, 4))
    # An additional source with a very low logit leaves the gates of the others unchanged.
    wider = gate_weights(torch.cat([torch.full((pixels, 1, 4), -1e4), logits], dim=1), dim=1)
    for gate, same in zip(gates, wider[1:], strict=True):
        torch.testing.assert_close(gate, same)


def test_relation_of_three_reduces_to_two_when_third_gate_is_closed() -> None:
    """With the weights of two sources embedded and the third gate closed, the relation of three equals the paper's."""
    torch.manual_seed(0)
    two, three = Relation(2).eval(), Relation(3).eval()
    features = [torch.rand(5, 64, 3, 3) for _ in range(3)]
    with torch.no_grad():
        # Logits for three sources: first, second, and zero for the last, whose gate is closed.
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
def test_small_products_equal_matrix_products(q: int) -> None:
    a, b = (torch.rand(2, 3, q, q, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(small_products(a, b), a @ b)
    assert torch.autograd.gradcheck(small_products, (a, b))


@given(st.integers(2, 40), st.floats(0.1, 100.0))
@settings(deadline=None)
def test_noise_perturbs_fixed_share_of_rows_at_feature_scale(batch: int, scale: float) -> None:
    noise = NoiseAdaptation(2).train()
    noise.mean_gate.copy_(torch.tensor([1.0, 0.0]))  # the first source dominates, so only it is perturbed
    features = [scale * torch.rand(batch, 64, 3, 3), torch.rand(batch, 64, 3, 3)]
    first, second = noise(features)
    assert torch.equal(second, features[1])
    disturbed = (first != features[0]).flatten(1).any(dim=1)
    assert int(disturbed.sum()) == round(SHARE * batch)
    added = (first - features[0])[disturbed].std()
    assert 0.7 < float(added / features[0].std()) < 1.4


def test_perturbed_source_is_sampled_with_probability_of_its_mean_gate() -> None:
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


def test_noise_scale_is_correct_for_features_far_from_zero() -> None:
    noise = NoiseAdaptation(2).train()
    noise.mean_gate.copy_(torch.tensor([1.0, 0.0]))
    features = [50 + 1e-3 * torch.randn(64, 64, 3, 3), torch.rand(64, 64, 3, 3)]
    added = (noise(features)[0] - features[0]).flatten(1)
    added = added[(added != 0).any(dim=1)]
    assert 0.9e-3 < float(added.std()) < 1.1e-3


def test_evaluation_adds_no_noise_and_keeps_mean_gate() -> None:
    network = MIBFNet(spec_of()).eval()
    before = network.noise.mean_gate.clone()
    network([torch.rand(4, 4, 7, 7), torch.rand(4, 2, 7, 7)])
    assert torch.equal(network.noise.mean_gate, before)
    network.train()
    output = network([torch.rand(4, 4, 7, 7), torch.rand(4, 2, 7, 7)])
    torch.testing.assert_close(network.noise.mean_gate, output.gate.mean(dim=0))
    assert not network.noise.mean_gate.requires_grad
    assert "noise.mean_gate" in network.state_dict()


def test_kl_term_is_summed_over_dimensions() -> None:
    mean, std = torch.randn(5, 16), torch.rand(5, 16) + 0.1
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(kl_divergence(mean, std), wanted)


def test_objective_adds_beta_times_kl_term() -> None:
    output = MIBFNet(spec_of())([torch.rand(4, 4, 7, 7), torch.rand(4, 2, 7, 7)])
    labels = torch.tensor([0, 1, 2, 0])
    loss = objective(output, labels, beta=0.5)
    torch.testing.assert_close(loss.total, loss.cross_entropy + 0.5 * loss.rate)
    torch.testing.assert_close(loss.cross_entropy, torch.nn.functional.cross_entropy(output.logits, labels))


def test_twelve_sources_of_400_bands_are_related_in_66_pairs_and_all_gated() -> None:
    spec = spec_of((1,) * 10 + (200, 190), patch=5)
    network = MIBFNet(spec).train()
    assert network.relation is not None
    assert len(set(network.relation.pairs)) == 66
    output = network(patches_of(spec, 6))
    torch.testing.assert_close(output.gate.sum(dim=1), torch.ones(6))
    assert (output.gate > 0).all()
    assert torch.equal(network.noise.mean_gate, output.gate.detach().mean(dim=0))
    objective(output, torch.tensor([0, 1, 2, 0, 1, 2]), beta=1e-3).total.backward()
    assert all((refine[0].weight.grad != 0).any() for refine in network.refine)
