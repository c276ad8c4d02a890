"""Dense inference: equals the network on each patch, is bit-identical for any tile, bounds memory and checks for NaN."""

from __future__ import annotations

import doctest
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mibf.inference.dense
from mibf.errors import InputError
from mibf.inference.cell import BAND, CELL, rows_within_budget
from mibf.inference.dense import Dense
from mibf.inference.outputs import NEEDS_CODE, PRODUCT_NAMES
from mibf.network.bottleneck import kl_divergence
from mibf.network.mibfnet import MIBFNet, Output
from mibf.network.spec import PARTS, NetworkPart
from mibf.training.batch import Batch
from mibf.training.epoch import TrainState, train_epoch
from mibf.training.optimizer import make_optimizer
from tests.support.networks import spec_of
from tests.support.operations import Operations


def network_of(
    *bands: int,
    patch: int = 7,
    scales: tuple[int, ...] = (1, 1, 1, 1),
    classes: int = 5,
    without: tuple[NetworkPart, ...] = (),
    centre: bool = False,
) -> MIBFNet:
    """Return a network whose batch norms and code are as far from their initial values as after training."""
    torch.manual_seed(1)
    spec = spec_of(bands, classes=classes, patch=patch, scales=scales, without=without, centre=centre)
    network = MIBFNet(spec).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.3, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_(0, 0.2)
        if network.bottleneck.spread is not None:
            network.bottleneck.spread.bias.fill_(4.0)  # a standard deviation large enough for samples to differ
        if network.centre is not None:
            network.centre.output.weight.normal_(0, 0.2)
            network.centre.output.bias.normal_(0, 0.2)
    return network


def tile_of(network: MIBFNet, height: int, width: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reach = 2 * network.spec.halo
    return [
        torch.rand(s.bands, (height + reach) * s.scale, (width + reach) * s.scale, generator=generator)
        for s in network.spec.sources
    ]


@torch.inference_mode()
def network_on_patches(network: MIBFNet, tile: Sequence[Tensor], pixels: Sequence[tuple[int, int]]) -> Output:
    """Run the network on the patches of the given pixels, each cropped by hand."""
    patch = network.spec.patch
    return network(
        [
            torch.stack([x[:, y * s.scale : (y + patch) * s.scale, c * s.scale : (c + patch) * s.scale] for y, c in pixels])
            for x, s in zip(tile, network.spec.sources, strict=True)
        ]
    )


CASES: list[tuple[tuple[int, ...], int, tuple[int, ...], tuple[NetworkPart, ...]]] = [
    ((4, 2), 7, (1, 1), ()),
    ((64, 2), 7, (1, 1), ()),
    ((3, 1), 5, (1, 2), ()),
    ((2, 1), 9, (4, 1), ()),
    ((3, 1, 2), 7, (1, 1, 2), ()),
    ((2, 2, 1, 1), 5, (1, 1, 1, 1), ()),
    ((2, 1), 11, (1, 1), ()),
    ((2, 1), 15, (1, 1), ()),
    ((4, 2), 7, (1, 1), ("noise",)),
    ((4, 2), 7, (1, 1), ("relation",)),
    ((4, 2), 7, (1, 1), ("bottleneck",)),
    ((3, 1, 2), 5, (1, 1, 2), ("relation",)),
    ((3, 1, 2), 5, (1, 1, 2), PARTS),
    ((4,), 7, (1,), ("noise", "relation")),
    ((2,), 5, (2,), PARTS),
    ((1,) * 12, 5, (1,) * 12, ()),
    ((400,), 5, (1,), ("noise", "relation")),
]


@pytest.mark.parametrize(("bands", "patch", "scales", "without"), CASES)
def test_dense_output_of_each_pixel_equals_network_on_its_patch(
    bands: tuple[int, ...], patch: int, scales: tuple[int, ...], without: tuple[NetworkPart, ...]
) -> None:
    network = network_of(*bands, patch=patch, scales=scales, without=without)
    height, width = 70, 9  # more than one cell, and not a multiple of the cell size
    tile = tile_of(network, height, width)
    pixels = [(y, x) for y in range(height) for x in range(width)]
    wanted = network_on_patches(network, tile, pixels)
    products = [name for name in PRODUCT_NAMES if "bottleneck" not in without or name not in NEEDS_CODE]
    found = Dense(network)(tile, products=products)

    def flat(name: str) -> Tensor:
        return found[name].flatten(-2).movedim(-1, 0)

    torch.testing.assert_close(flat("logits"), wanted.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(flat("probabilities"), wanted.logits.softmax(dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat("confidence"), wanted.logits.softmax(dim=1).amax(dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat("gate"), wanted.gate, atol=1e-5, rtol=0)
    if wanted.std is not None:
        torch.testing.assert_close(flat("kl"), kl_divergence(wanted.mean, wanted.std), atol=1e-5, rtol=1e-5)
    entropy = torch.distributions.Categorical(logits=wanted.logits).entropy()
    torch.testing.assert_close(flat("entropy"), entropy, atol=1e-5, rtol=0)
    # Nearly equal logits may swap order in the last bit; the class must match the logits found exactly.
    assert torch.equal(found["class"], found["logits"].argmax(dim=0))
    assert torch.equal(found["second_class"], found["logits"].topk(2, dim=0).indices[1])
    top = wanted.logits.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-5
    assert torch.equal(flat("class")[clear], wanted.logits.argmax(dim=1)[clear])
    assert clear.float().mean() > 0.99


@pytest.mark.parametrize(
    ("bands", "patch", "scales", "without"),
    [
        ((4, 2), 7, (1, 1), ()),
        ((3, 1, 2), 5, (1, 2, 4), ()),
        ((2, 1), 5, (4, 1), ("relation",)),
        ((2,), 5, (2,), PARTS),
    ],
)
def test_dense_output_with_centre_path_equals_network_on_patch_with_missing_data(
    bands: tuple[int, ...], patch: int, scales: tuple[int, ...], without: tuple[NetworkPart, ...]
) -> None:
    """The last source has one value in a part of the tile, as where it is missing; some pixels have no data at all."""
    network = network_of(*bands, patch=patch, scales=scales, without=without, centre=True)
    height, width = 70, 9
    tile = tile_of(network, height, width)
    tile[-1][:, : 30 * scales[len(bands) - 1]] = 0.4
    reach = 2 * network.spec.halo
    valid = torch.rand(height + reach, width + reach, generator=torch.Generator().manual_seed(2)) > 0.1
    zeroed = [
        x * torch.from_numpy(np.kron(valid.numpy(), np.ones((s.scale, s.scale), np.float32)))
        for x, s in zip(tile, network.spec.sources, strict=True)
    ]
    pixels = [(y, x) for y in range(height) for x in range(width)]
    wanted = network_on_patches(network, zeroed, pixels).logits
    with torch.inference_mode():
        network.centre, kept = None, network.centre
        assert (network_on_patches(network, zeroed, pixels).logits - wanted).abs().max() > 0.01  # the path matters
        network.centre = kept
    everywhere = torch.ones(height, width, dtype=torch.bool)
    found = Dense(network)(tile, products=["logits"], valid=valid, wanted=everywhere)["logits"]
    torch.testing.assert_close(found.flatten(1).T, wanted, atol=1e-5, rtol=0)
    rough = Dense(network, precision="bf16")(tile, products=["logits"], valid=valid, wanted=everywhere)["logits"]
    assert (rough - found).abs().max() < 0.05 * found.abs().max()


def test_result_with_centre_path_is_bit_identical_for_any_tile() -> None:
    network = network_of(2, 1, patch=5, scales=(1, 2), centre=True)
    whole = tile_of(network, 2 * CELL, CELL + 20)
    part = [whole[0][:, CELL : CELL + 44, : CELL + 4], whole[1][:, 2 * CELL : 2 * (CELL + 44), : 2 * (CELL + 4)]]
    dense = Dense(network)
    full, found = (dense(x, products=["logits", "kl"]) for x in (whole, part))
    for name, values in found.items():
        assert torch.equal(values, full[name][..., CELL : CELL + 40, :CELL]), name


def test_centre_path_costs_two_pointwise_layers_per_pixel() -> None:
    """With 64 + 2 bands these are 0.025 of 3.3 million multiply-adds; those of vector code are not counted."""

    def multiply_adds(centre: bool) -> float:
        network = network_of(64, 2, centre=centre)
        tile, dense = tile_of(network, CELL, CELL), Dense(network, kernels=False)
        with FlopCounterMode(display=False) as counter:
            dense(tile)
        return counter.get_total_flops() / 2 / CELL**2

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees only this thread
    try:
        plain, more = multiply_adds(False), multiply_adds(True)
    finally:
        torch.set_num_threads(before)
    assert more - plain == (64 + 2) * 128 + 128 * 128
    assert more / plain < 1.01


def test_mutual_information_matches_monte_carlo_samples_of_decoder() -> None:
    """Compare with samples decoded one by one with the network's own decoder."""
    network = network_of(3, 2, patch=5)
    tile = tile_of(network, 4, 6)
    dense = Dense(network, mc_samples=40, seed=3)
    found = dense(tile, products=["mutual_information"])["mutual_information"].flatten()
    output = network_on_patches(network, tile, [(y, x) for y in range(4) for x in range(6)])
    sampled = torch.stack(
        [network.bottleneck.decoder(output.mean + output.std * eps).softmax(dim=1) for eps in dense.decoder.noise]
    )
    categorical = torch.distributions.Categorical
    wanted = categorical(probs=sampled.mean(dim=0)).entropy() - categorical(probs=sampled).entropy().mean(dim=0)
    torch.testing.assert_close(found, wanted.detach(), atol=1e-5, rtol=0)
    assert found.max() > 1e-3
    again = Dense(network, mc_samples=40, seed=4)(tile, products=["mutual_information"])["mutual_information"].flatten()
    assert not torch.equal(again, found)


def test_temperature_changes_confidence_but_not_class() -> None:
    network = network_of(3, 2, patch=5)
    tile = tile_of(network, 8, 8)
    sharp, soft = (Dense(network, temperature=t)(tile, products=["class", "confidence"]) for t in (1.0, 3.0))
    assert torch.equal(sharp["class"], soft["class"])
    assert (soft["confidence"] < sharp["confidence"]).all()


@given(
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(1, 3 * CELL),
    st.integers(1, 3 * CELL),
    st.sampled_from(["float32", "bf16"]),
)
@settings(max_examples=12, deadline=None)
def test_result_is_bit_identical_for_any_tile(row: int, column: int, height: int, width: int, precision: str) -> None:
    """A tile that starts at any cell corner and ends anywhere has the same bits as the full scene."""
    network = network_of(2, 1, patch=5)
    whole = tile_of(network, 3 * CELL, 3 * CELL)
    dense = Dense(network, precision=precision)
    y, x = row * CELL, column * CELL
    height, width = min(height, 3 * CELL - y), min(width, 3 * CELL - x)
    reach = 2 * network.spec.halo
    part = [s[:, y : y + height + reach, x : x + width + reach] for s in whole]
    key = (precision,)
    if key not in _FULL_SCENE:
        _FULL_SCENE[key] = dense(whole, products=PRODUCT_NAMES)
    found = dense(part, products=PRODUCT_NAMES)
    for name, values in found.items():
        assert torch.equal(values, _FULL_SCENE[key][name][..., y : y + height, x : x + width]), name


_FULL_SCENE: dict[tuple[str], dict[str, Tensor]] = {}


def test_result_is_bit_identical_for_any_thread_count_and_torch_threads_unchanged() -> None:
    network = network_of(3, 2)
    tile = tile_of(network, CELL + 10, 2 * CELL)
    dense = Dense(network)
    with_nan = [x.clone() for x in tile]
    with_nan[1][0, 75, 100] = torch.nan  # in the last cell
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(dense(tile, products=["logits"])["logits"])
            assert torch.get_num_threads() == threads
            with pytest.raises(InputError, match="row 75, column 100"):
                dense(with_nan)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_pixel_result_is_independent_of_other_pixels_in_its_cell() -> None:
    network = network_of(3, 2)
    tile = tile_of(network, CELL, CELL)
    dense = Dense(network)
    before = dense(tile, products=["logits"])["logits"]
    changed = [x.clone() for x in tile]
    for x in changed:
        x[:, :40] = torch.rand_like(x[:, :40])
    after = dense(changed, products=["logits"])["logits"]
    assert torch.equal(before[:, 40:], after[:, 40:])
    assert not torch.equal(before[:, :34], after[:, :34])
    valid = torch.ones(70, 70, dtype=torch.bool)
    valid[3 + 10, 3 + 20] = False
    wanted = valid[3:-3, 3:-3]
    fewer = dense(tile, products=["logits"], wanted=wanted)["logits"]
    assert torch.equal(fewer[:, wanted], before[:, wanted])  # unwanted pixels are still read
    assert torch.isnan(fewer[:, ~wanted]).all()
    masked = dense(tile, products=["logits"], valid=valid)["logits"]
    untouched = torch.ones(CELL, CELL, dtype=torch.bool)
    untouched[10 - 3 : 10 + 4, 20 - 3 : 20 + 4] = False
    assert torch.equal(masked[:, untouched], before[:, untouched])


def test_nonfinite_input_raises_unless_masked_as_invalid() -> None:
    network = network_of(3, 2, patch=5, scales=(1, 2))
    tile = tile_of(network, 20, 30)
    dense = Dense(network)
    clean = dense(tile, products=["class", "confidence", "gate"])
    tile[1][1, 13, 21] = torch.nan  # the reference pixel (6, 10) with its halo, (4, 8) without
    with pytest.raises(InputError, match=r"source 's1' has nan in band 2, row 13, column 21 "):
        dense(tile)
    tile[0][0, 0, 0] = torch.inf
    with pytest.raises(InputError, match="source 's0' has inf in band 1, row 0, column 0"):
        dense(tile)
    valid = torch.ones(24, 34, dtype=torch.bool)
    valid[6, 10] = valid[0, 0] = False
    found = dense(tile, products=["class", "confidence", "gate"], valid=valid)
    assert found["class"][4, 8] == -1
    assert int((found["class"] == -1).sum()) == 1
    assert torch.isnan(found["confidence"]).sum() == 1
    assert torch.isnan(found["gate"]).sum() == 2
    far = (slice(8, None), slice(12, None))
    assert torch.equal(found["confidence"][far], clean["confidence"][far])
    nothing = dense(tile, valid=torch.zeros(24, 34, dtype=torch.bool))
    assert (nothing["class"] == -1).all()
    with pytest.raises(InputError, match="validity is 20 x 30; it must be 24 x 34"):
        dense(tile, valid=valid[:20, :30])


def test_tiles_and_arguments_that_do_not_match_spec_raise() -> None:
    dense = Dense(network_of(4, 2))
    for tile, message in [
        ([torch.rand(4, 70, 70)], "1 sources given; the network needs 2"),
        ([], "0 sources given"),
        ([torch.rand(3, 70, 70), torch.rand(2, 70, 70)], r"'s0' is 3 x 70 x 70.*needs 4 x 70 x 70"),
        ([torch.rand(4, 70, 70), torch.rand(2, 140, 140)], r"'s1' is 2 x 140 x 140.*needs 2 x 70 x 70.*scale 1"),
        ([torch.rand(4, 6, 70), torch.rand(2, 6, 70)], r"'s0' is 4 x 6 x 70.*needs 4 x 7 x 70"),
        ([torch.rand(70, 70), torch.rand(70, 70)], r"'s0' is 70 x 70 "),
    ]:
        with pytest.raises(InputError, match=message):
            dense(tile)
    with pytest.raises(InputError, match="unknown product 'doubt'; must be one of class, second_class, confidence"):
        dense([torch.rand(4, 70, 70), torch.rand(2, 70, 70)], products=["doubt"])
    with pytest.raises(InputError, match="products are 'class'; pass a list"):
        dense([torch.rand(4, 70, 70), torch.rand(2, 70, 70)], products="class")
    with pytest.raises(InputError, match=r"source 's1' is torch\.uint8; .* float32 tensor, scaled"):
        dense([torch.rand(4, 70, 70), torch.ones(2, 70, 70, dtype=torch.uint8)])
    with pytest.raises(InputError, match=r"source 's0' is ndarray"):
        dense([np.ones((4, 70, 70), np.float32), torch.rand(2, 70, 70)])
    with pytest.raises(InputError, match="mask of wanted pixels is 64 x 63; it must be 64 x 64"):
        dense([torch.rand(4, 70, 70), torch.rand(2, 70, 70)], wanted=torch.ones(64, 63, dtype=torch.bool))
    with pytest.raises(InputError, match=r"validity is torch\.float32; it must be a bool tensor"):
        dense([torch.rand(4, 70, 70), torch.rand(2, 70, 70)], valid=torch.ones(70, 70))


def test_products_that_need_bottleneck_raise_without_it() -> None:
    dense = Dense(network_of(2, 1, patch=5, without=("bottleneck",)))
    tile = [torch.rand(2, 8, 8), torch.rand(1, 8, 8)]
    for name in NEEDS_CODE:
        with pytest.raises(InputError, match=f"product '{name}' .* trained without the bottleneck.* Leave the product out"):
            dense(tile, products=["class", name])
    assert dense(tile, products=["class"])["class"].shape == (4, 4)


@pytest.mark.parametrize("without", [("relation",), PARTS])
def test_without_relation_gate_is_uniform(without: tuple[NetworkPart, ...]) -> None:
    network = network_of(2, 1, 1, patch=5, without=without)
    assert torch.equal(Dense(network)(tile_of(network, 5, 4), products=["gate"])["gate"], torch.full((3, 5, 4), 1 / 3))


def test_invalid_settings_and_networks_raise() -> None:
    network = network_of(4, 2)
    for wrong, message in [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"mc_samples": 1}, "mc_samples is 1; .* two samples"),
        ({"precision": "fp16"}, "precision is fp16, which needs a GPU"),
        ({"precision": "fp8"}, "precision is 'fp8'; it must be one of float32, bf16, fp16"),
    ]:
        with pytest.raises(InputError, match=message):
            Dense(network, **wrong)
    with pytest.raises(InputError, match="training mode"):
        Dense(network_of(4, 2).train())
    with torch.no_grad():
        network.join[0].weight[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"weight join\.0\.weight of the network is not finite"):
        Dense(network)


def test_products_may_be_any_iterable_and_duplicates_are_returned_once() -> None:
    network = network_of(2, 1, patch=5)
    found = Dense(network)(tile_of(network, 3, 3), products=iter(["class", "class", "gate"]))
    assert list(found) == ["class", "gate"]
    torch.testing.assert_close(found["gate"].sum(dim=0), torch.ones(3, 3))


@pytest.mark.parametrize(("bands", "without"), [((8, 2), ()), ((8, 2), ("relation",)), ((8,), PARTS)])
def test_bf16_logits_are_close_to_float32(bands: tuple[int, ...], without: tuple[NetworkPart, ...]) -> None:
    network = network_of(*bands, without=without)
    tile = tile_of(network, CELL, CELL)
    exact, rough = (Dense(network, precision=p)(tile, products=["logits"])["logits"] for p in ("float32", "bf16"))
    assert (exact - rough).abs().max() < 0.05 * exact.abs().max()


def test_bf16_changes_few_labels_of_trained_network() -> None:
    """Use a scene whose classes differ by small amounts around large values, like reflectances."""
    torch.manual_seed(0)
    side, spec = 2 * CELL, spec_of((3, 1), classes=4, patch=5)
    rough = F.interpolate(torch.rand(1, 4, 12, 12), size=(side + 4, side + 4), mode="bicubic")[0]
    truth = (rough[0] > 0.5).long() * 2 + (rough[3] > 0.5).long()
    fields = 0.6 + 0.1 * rough + 0.005 * torch.randn(rough.shape)
    tile = [fields[:3].contiguous(), fields[3:].contiguous()]
    network = MIBFNet(spec)
    optimizer, schedule = make_optimizer(network.parameters(), learning_rate=3e-3, weight_decay=5e-4, steps=120, warmup=10)

    def batches() -> Iterator[Batch]:
        for _ in range(120):
            y, x = torch.randint(0, side, (2, 64)).tolist()
            cut = [np.stack([s[:, a : a + 5, b : b + 5].numpy() for a, b in zip(y, x, strict=True)]) for s in tile]
            yield Batch((cut[0], cut[1]), truth[2:-2, 2:-2][y, x].numpy())

    train_epoch(TrainState(network, optimizer, schedule, beta=1e-4), batches())
    exact, fast = (Dense(network.eval(), precision=p)(tile, products=["class"])["class"] for p in ("float32", "bf16"))
    assert (exact == truth[2:-2, 2:-2]).float().mean() > 0.9  # the network has learnt
    # Labels change only where two classes are nearly equal: up to 0.012 apart was observed. The number of such pixels
    # depends on the scene and on the CPU's order of summation: 0.9992 are equal on one CPU, 0.9990 on another.
    first, second = (
        Dense(network, precision="float32")(tile, products=["probabilities"])["probabilities"].topk(2, dim=0).values
    )
    assert ((first - second)[exact != fast] < 0.05).all()
    assert (exact == fast).float().mean() >= 0.998


@given(st.sampled_from([5, 7, 11, 15]), st.integers(1, 200 << 20))
def test_rows_per_step_stay_within_memory_budget(patch: int, budget: int) -> None:
    spec = spec_of((64, 2), patch=patch)
    rows = rows_within_budget(spec, torch.float32, budget, cells=1)
    assert CELL % rows == 0
    gathered = (patch + 1) ** 2 * (64 + 32)
    convolved = (patch - 1) ** 2 * 64
    assert rows == 1 or rows * CELL * (gathered + convolved) * 4 < budget


def test_cells_computed_together_give_the_results_of_one_at_a_time() -> None:
    network = network_of(3, 2, patch=5)
    tile = tile_of(network, 150, 70)  # six cells: a group of four, and one that is filled up
    valid = torch.ones(154, 74, dtype=torch.bool)
    valid[20:100, 30:] = False
    alone, together = (Dense(network, cells=cells)(tile, products=["logits", "class"], valid=valid) for cells in (1, 4))
    torch.testing.assert_close(together["logits"], alone["logits"], atol=1e-5, rtol=0, equal_nan=True)
    assert torch.equal(together["class"] == -1, ~valid[2:-2, 2:-2])
    with pytest.raises(InputError, match="cells is 0; at least one"):
        Dense(network, cells=0)


def test_float16_keeps_labels_and_refuses_values_beyond_its_range(monkeypatch: pytest.MonkeyPatch, small_cells: int) -> None:
    """Products are the same as on a GPU; a CPU is only refused because it is slow in float16."""
    monkeypatch.setattr(mibf.inference.dense, "check_precision", lambda *_, **__: None)
    network = network_of(3, 2, patch=5)
    tile = tile_of(network, small_cells, small_cells)
    exact, rough = (Dense(network, precision=p)(tile, products=["class"])["class"] for p in ("float32", "fp16"))
    assert (exact == rough).float().mean() > 0.97
    with torch.no_grad():
        network.join[0].weight.mul_(1e6)
    Dense(network)(tile, products=["class"])
    with pytest.raises(InputError, match="values overflow float16 in the network; use precision bf16 or float32"):
        Dense(network, precision="fp16")(tile, products=["class"])


def test_sixteen_cells_take_few_operations(monkeypatch: pytest.MonkeyPatch, small_cells: int) -> None:
    """As on a GPU without its kernels: with many small operations, most of the time would be that of launching them."""
    monkeypatch.setitem(BAND, "cpu", BAND["cuda"])
    dense = Dense(network_of(64, 2), cells=16)
    dense.rows = small_cells // 4  # in float32, a quarter of the rows fits
    with Operations() as operations:
        dense(tile_of(network_of(64, 2), 4 * small_cells, 4 * small_cells))
    assert 200 < operations.count <= 1200, "fewer: other threads computed, whose operations are not counted"


def test_with_rows_returns_close_results_and_leaves_original_unchanged() -> None:
    network = network_of(3, 2, patch=5)
    tile = tile_of(network, 70, 20)
    dense = Dense(network)
    rows = dense.rows
    fewer = dense.with_rows(1)
    assert (fewer.rows, dense.rows) == (1, rows)
    torch.testing.assert_close(fewer(tile)["confidence"], dense(tile)["confidence"], atol=1e-5, rtol=0)
    several = Dense(network, cells=16, budget=2 << 30)
    assert several.rows > 16
    assert [several.with_rows(several.rows // part).cells for part in (1, 2, 8, 16)] == [16, 8, 2, 1]
    assert several.with_rows(several.rows // 2).with_rows(1).cells == 1
    for wrong in (0, 3, 128):
        with pytest.raises(InputError, match=f"rows is {wrong}; it must be a divisor of 64"):
            dense.with_rows(wrong)


def test_docstring_example_runs() -> None:
    assert doctest.testmod(mibf.inference.dense).failed == 0
    assert doctest.testmod(mibf.inference.dense).attempted > 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_gpu_agrees_with_cpu() -> None:
    network = network_of(64, 2)
    tile = tile_of(network, 100, 100)
    here = Dense(network)(tile, products=["logits"])["logits"]
    there = Dense(network.cuda())(tile, products=["logits"])["logits"].cpu()
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)
