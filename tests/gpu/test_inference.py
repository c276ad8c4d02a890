"""Inference on the device against inference on the CPU, and against itself."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from mibf.device import Precision, ieee_float32, to_device
from mibf.inference.cell import CELL
from mibf.inference.dense import Dense
from mibf.inference.outputs import PRODUCT_NAMES
from mibf.network.mibfnet import MIBFNet
from tests.support.gpu import BANDS, DEVICE, ON_GPU, PRECISIONS, Figures, learnable_tile, patches, spec_with, trained_network

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
#: Largest difference of a float32 logit between devices.
TOLERANCE = 1e-4
SIDE = 3 * CELL if ON_GPU else CELL
#: Steps of training, and samples per step.
STEPS, BATCH = (150, 256) if ON_GPU else (20, 64)
#: First row of the tiles that the networks are tested on; they were trained on the rows above it.
TESTED = 512
_NETWORKS: dict[tuple[int, ...], MIBFNet] = {}


def network_of(bands: tuple[int, ...]) -> MIBFNet:
    """A trained network on the CPU; trained once."""
    if bands not in _NETWORKS:
        _NETWORKS[bands] = trained_network(spec_with(bands), steps=STEPS, size=BATCH)
    return _NETWORKS[bands]


def on_device(network: MIBFNet) -> MIBFNet:
    return to_device(copy.deepcopy(network), DEVICE)


def tile_of(network: MIBFNet, side: int = SIDE) -> list[Tensor]:
    """A tile that the network was not trained on."""
    return [torch.from_numpy(values) for values in learnable_tile(network.spec, side, row=TESTED)[0]]


def patchwise(network: MIBFNet, sources: list[Tensor]) -> Tensor:
    """Logits (B, classes) on the CPU."""
    device = next(network.parameters()).device
    with torch.inference_mode(), ieee_float32(device):
        placed = [x.to(device, memory_format=torch.channels_last) for x in sources]
        return network(placed).logits.cpu()


def label_differences(reference: Tensor, other: Tensor) -> int:
    """Number of pixels whose label differs, from logits (classes, ..); ties within the tolerance may fall either way."""
    best = reference.topk(2, dim=0).values
    decided = best[0] - best[1] > 2 * TOLERANCE
    return int(((reference.argmax(0) != other.argmax(0)) & decided).sum())


@pytest.mark.parametrize("bands", BANDS)
def test_dense_float32_equals_cpu(bands: tuple[int, ...], figures: Figures) -> None:
    network = network_of(bands)
    tile = tile_of(network)
    ours = Dense(on_device(network))(tile, products=["logits", "class", "confidence"])
    theirs = Dense(network)(tile, products=["logits", "class", "confidence"])
    logits, reference = ours["logits"].cpu(), theirs["logits"]
    accuracy = float((theirs["class"].numpy() == learnable_tile(network.spec, SIDE, row=TESTED)[1]).mean())
    figures.add(
        f"dense against CPU, {bands}",
        logit_difference=float((logits - reference).abs().max()),
        largest_logit=float(reference.abs().max()),
        equal_labels=float((ours["class"].cpu() == theirs["class"]).float().mean()),
        accuracy=accuracy,
    )
    assert accuracy > (0.9 if ON_GPU else 0.25)  # else the comparison would be of arbitrary labels
    torch.testing.assert_close(logits, reference, rtol=0, atol=TOLERANCE)
    assert label_differences(reference, logits) == 0
    torch.testing.assert_close(ours["confidence"].cpu(), theirs["confidence"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bands", BANDS)
def test_patchwise_network_equals_cpu_and_dense(bands: tuple[int, ...], figures: Figures) -> None:
    network = network_of(bands)
    spec, side = network.spec, CELL // 2
    values, labels = learnable_tile(spec, side, row=TESTED)
    pixels = np.argwhere(np.ones((side, side), bool))
    sources = [torch.from_numpy(x) for x in patches(spec, values, labels, pixels).sources]
    placed = on_device(network)
    ours, theirs = patchwise(placed, sources), patchwise(network, sources)
    dense = Dense(placed)([torch.from_numpy(x) for x in values], products=["logits"])["logits"].flatten(1).T.cpu()
    figures.add(
        f"patchwise against CPU, {bands}",
        logit_difference=float((ours - theirs).abs().max()),
        dense_difference=float((ours - dense).abs().max()),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours, dense, rtol=0, atol=TOLERANCE)
    assert label_differences(theirs.T, ours.T) == 0


@pytest.mark.parametrize("precision", ["bf16", *(["fp16"] if ON_GPU else [])])
@pytest.mark.parametrize("bands", BANDS)
def test_16_bits_keep_999_labels_in_a_thousand(bands: tuple[int, ...], precision: Precision, figures: Figures) -> None:
    network = network_of(bands)
    tile, placed = tile_of(network), on_device(network)
    exact = Dense(placed)(tile, products=["class"])["class"]
    rounded = Dense(placed, precision=precision)(tile, products=["class"])["class"]
    share = float((exact == rounded).float().mean())
    figures.add(f"{precision} against float32, {bands}", equal_labels=share)
    assert share >= (0.999 if ON_GPU else 0.9)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bands", BANDS)
def test_kernels_compute_what_tensor_operations_compute(
    bands: tuple[int, ...], precision: Precision, figures: Figures
) -> None:
    network = network_of(bands)
    tile = tile_of(network)
    kernels, operations = (Dense(on_device(network), precision=precision, kernels=each) for each in (True, False))
    assert kernels.kernels == ON_GPU
    ours, theirs = (dense.with_rows(16)(tile, products=["logits", "class"]) for dense in (kernels, operations))
    difference = float((ours["logits"] - theirs["logits"]).abs().max())
    equal = float((ours["class"] == theirs["class"]).float().mean())
    figures.add(f"kernels against tensor operations, {bands}, {precision}", logit_difference=difference, equal_labels=equal)
    assert difference < TOLERANCE or precision != "float32"
    assert equal >= 0.999


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bands", BANDS)
def test_products_are_the_same_bytes_for_any_tile_and_run(bands: tuple[int, ...], precision: Precision) -> None:
    dense = Dense(on_device(network_of(bands)), precision=precision)
    side = 3 * CELL if ON_GPU else 2 * CELL
    tile, reach = tile_of(network_of(bands), side), 2 * dense.spec.halo
    whole = dense(tile, products=PRODUCT_NAMES)
    again = dense(tile, products=PRODUCT_NAMES)
    for name, values in whole.items():
        assert torch.equal(values, again[name]), name
    for y in range(0, side, CELL):
        for x in range(0, side, CELL):
            part = [values[:, y : y + CELL + reach, x : x + CELL + reach] for values in tile]
            for name, values in dense(part, products=PRODUCT_NAMES).items():
                assert torch.equal(values, whole[name][..., y : y + CELL, x : x + CELL]), (name, y, x)
