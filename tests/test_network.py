"""The network: shapes, what two sources mean, scale, parts left out, noise adaptation, objective."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.errors import InputError
from mibf.network import MIBFNet, Output
from mibf.noise import SHARE, NoiseAdaptation
from mibf.objective import objective, rate
from mibf.relation import Relation, shares, small_products
from mibf.spec import NARROW, PARTS, WIDE, NetworkSpec, Part, SourceSpec


def spec_of(
    bands: tuple[int, ...] = (4, 2),
    *,
    classes: int = 3,
    patch: int = 7,
    scales: tuple[int, ...] = (1, 1, 1, 1),
    without: tuple[Part, ...] = (),
) -> NetworkSpec:
    sources = [SourceSpec(f"s{i}", b, NARROW if i else WIDE, scales[i]) for i, b in enumerate(bands)]
    return NetworkSpec(tuple(sources), classes=classes, patch=patch, without=without)


def patches_of(spec: NetworkSpec, count: int) -> list[torch.Tensor]:
    return [torch.rand(count, s.bands, spec.patch * s.scale, spec.patch * s.scale) for s in spec.sources]


#: All ways to leave parts out of a network of two sources and of three, and of one alone.
ABLATED = [
    spec_of(bands, patch=5, without=without)
    for bands in [(4, 2), (3, 1, 2)]
    for count in range(len(PARTS) + 1)
    for without in combinations(PARTS, count)
] + [spec_of((3,), patch=5, without=without) for without in (("noise", "relation"), PARTS)]


def named(spec: NetworkSpec) -> str:
    return f"{len(spec.sources)} without {' '.join(spec.without) or 'nothing'}"


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


@pytest.mark.parametrize("spec", ABLATED, ids=named)
def test_a_network_without_parts_has_the_shapes_of_the_whole_and_trains_every_parameter(spec: NetworkSpec) -> None:
    """Every parameter has a gradient, as data-parallel training wants, and none is there for nothing."""
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
        # The channel attention of a narrow branch has two units, and its ReLU may shut both.
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


@pytest.mark.parametrize("spec", ABLATED, ids=named)
def test_parts_that_stay_keep_names_and_shapes(spec: NetworkSpec) -> None:
    def shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in MIBFNet(spec).state_dict().items()}

    gone = {"noise": (), "relation": ("relation.",), "bottleneck": ("bottleneck.spread.",)}
    prefixes = tuple(prefix for part in spec.without for prefix in gone[part])
    twin = spec if len(spec.sources) > 1 else spec_of((3, 1), patch=5)  # one source: as the first of two
    second = ("branches.1.", "refine.1.", "noise.") if twin is not spec else ()
    whole = shapes(NetworkSpec(twin.sources, classes=3, patch=5))
    wanted = {name: shape for name, shape in whole.items() if not name.startswith((*prefixes, *second))}
    if "relation" in spec.without:
        wanted["join.0.weight"] = (128, 64 * len(spec.sources), 1, 1)
    assert shapes(spec) == wanted | {"noise.mean_gate": (len(spec.sources),)}


@pytest.mark.parametrize("spec", ABLATED, ids=named)
def test_training_draws_unless_both_noise_and_bottleneck_are_left_out(spec: NetworkSpec) -> None:
    torch.manual_seed(0)
    network, x = MIBFNet(spec).train(), patches_of(spec, 8)
    one, other = network(x), network(x)
    assert torch.equal(one.logits, other.logits) == {"noise", "bottleneck"}.issubset(spec.without)
    assert torch.equal(one.mean, other.mean) == ("noise" in spec.without)
    network.eval()
    assert torch.equal(network(x).logits, network(x).logits)


@pytest.mark.parametrize("bands", [(4, 2), (3, 1, 2)])
def test_without_the_relation_sources_meet_in_the_join_alone(bands: tuple[int, ...]) -> None:
    """What enters the join's ReLU is a sum of one function a source: changing two changes it by the sum of both changes."""

    def mixed(network: MIBFNet) -> float:
        """How far the effect of changing two sources is from the sum of the effects of changing each, relatively."""
        seen: list[torch.Tensor] = []
        network.eval().join[0].register_forward_hook(lambda module, inputs, output: seen.append(output.double()))
        first, second = patches_of(network.spec, 5), patches_of(network.spec, 5)
        with torch.no_grad():
            for choice in [(0, 0), (1, 0), (0, 1), (1, 1)]:
                network([(first, second)[c][i] for i, c in enumerate(choice)] + first[2:])
        neither, one, other, both = seen
        return float((both - one - other + neither).abs().max() / (both - neither).abs().max())

    torch.manual_seed(0)
    assert mixed(MIBFNet(spec_of(bands, without=("relation",)))) < 1e-5
    assert mixed(MIBFNet(spec_of(bands))) > 1e-3


@pytest.mark.parametrize("bands", [(4, 2), (3, 1, 2)])
def test_without_the_relation_gates_are_even_and_noise_falls_on_any_source(bands: tuple[int, ...]) -> None:
    network = MIBFNet(spec_of(bands, without=("relation",))).train()
    for _ in range(3):
        gate = network(patches_of(network.spec, 4)).gate
        assert torch.equal(gate, torch.full((4, len(bands)), 1 / len(bands)))
    torch.testing.assert_close(network.noise.mean_gate, torch.full((len(bands),), 1 / len(bands)))


def test_without_noise_the_features_of_training_are_the_branches_own() -> None:
    """The whole network with its noise taken away by hand gives the same."""
    plain = MIBFNet(spec_of(without=("noise",))).train()
    whole = MIBFNet(spec_of()).train()
    whole.load_state_dict(plain.state_dict())
    whole.noise.forward = lambda features: features  # type: ignore[method-assign]  # taken away by the test
    x = patches_of(plain.spec, 6)

    def drawn(network: MIBFNet) -> Output:
        torch.manual_seed(3)
        return network(x)

    for found, wanted in zip(drawn(plain), drawn(whole), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(plain.noise.mean_gate, whole.noise.mean_gate)  # followed all the same


def test_specs_tell_what_is_left_out_and_older_ones_leave_nothing_out() -> None:
    for spec in ABLATED:
        written = json.loads(json.dumps(spec.to_json()))
        assert written["without"] == list(spec.without)
        assert NetworkSpec.from_json(written) == spec
    older = spec_of().to_json()
    del older["without"]
    assert NetworkSpec.from_json(older) == spec_of()
    assert spec_of(without=("bottleneck", "noise")) == spec_of(without=("noise", "bottleneck"))
    assert hash(spec_of(without=("bottleneck", "noise"))) == hash(spec_of(without=("noise", "bottleneck")))
    assert NetworkSpec(spec_of().sources, classes=3, without=["relation"]).without == ("relation",)  # type: ignore[arg-type]  # any sequence will do


def test_parts_that_cannot_be_left_out_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be without 'gate'; it can be without noise, relation, bottleneck"):
        spec_of(without=("gate",))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(InputError, match="`without` names 'noise' twice"):
        spec_of(without=("noise", "relation", "noise"))
    with pytest.raises(InputError, match="`without` is 'noise'; give a list"):
        spec_of(without="noise")  # type: ignore[arg-type]  # wrong on purpose
    for wrong in [(), ("noise",), ("relation",), ("relation", "bottleneck")]:
        with pytest.raises(
            InputError, match=r"at least two sources, 1 given; .* train it alone, without noise and relation"
        ):
            spec_of((4,), without=wrong)
    with pytest.raises(InputError, match="at least two sources, 0 given"):
        spec_of((), without=PARTS)
    alone = MIBFNet(spec_of((4,), without=("noise", "relation")))
    with pytest.raises(InputError, match="2 sources given; the network wants 1, in this order: s0"):
        alone([torch.rand(2, 4, 7, 7), torch.rand(2, 2, 7, 7)])
    with pytest.raises(InputError, match=r"'s0' is 3 x 7 x 7.*wants 4 x 7 x 7"):
        alone([torch.rand(2, 3, 7, 7)])


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
