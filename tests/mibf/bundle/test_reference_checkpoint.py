"""Reference checkpoints: recorded values are reproduced, and invalid files are refused."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mibf.bundle.reference_checkpoint import form, from_bytes, from_state_dict, translate
from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NetworkSpec, SourceSpec
from mibf.training.loss import Loss, objective
from tests.support.reference_checkpoint import State, network_of, reference_name, reference_state, saved

#: Biases that precede a batch norm, which subtracts the batch mean and with it any constant.
BEFORE_NORM = {"net1.conv3x3_2.0.bias", "net2.conv3x3_2.0.bias", "ff.0.bias"}


def patches(network: MIBFNet) -> list[Tensor]:
    torch.manual_seed(5)
    return [torch.rand(6, source.bands, network.spec.patch, network.spec.patch) for source in network.spec.sources]


# --- comparison with recorded values of the authors' network ---


class Record:
    """Golden record: weights, inputs, outputs and gradients of the authors' code, in float32 on a CPU."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as content:
            self.arrays = {name: content[name] for name in content.files}

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    @property
    def state(self) -> State:
        return {n.removeprefix("state/"): self[n] for n in self.arrays if n.startswith("state/")}

    @property
    def sources(self) -> list[Tensor]:
        return [self["x1"], self["x2"]]

    def network(self) -> MIBFNet:
        """Return our network with all the logits of the authors' network."""
        spec, weights = translate(self.state)
        network = MIBFNet(spec)
        network.load_state_dict(weights)
        return network.eval()


@pytest.fixture(scope="module", params=["described", "released"])
def record(request: pytest.FixtureRequest, shared: Callable[[str], Path]) -> Record:
    return Record(shared(f"golden/mibf_{request.param}_64_2_11.npz"))


def assert_near(found: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(found, recorded, atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_part_reproduces_recorded_outputs(record: Record) -> None:
    network = record.network()
    features = [branch(x) for branch, x in zip(network.branches, record.sources, strict=True)]
    relation, gate = network.relation(features)
    output = network(record.sources)
    assert_near(features[0], record["eval/branch1"])
    assert_near(features[1], record["eval/branch2"])
    assert_near(relation, record["eval/relation"])
    assert_near(gate[:, 0].mean(), record["eval/gate_mean"])
    assert_near(output.mean, record["eval/mu"])
    assert_near(output.std, record["eval/std"])
    assert_near(output.logits, record["eval/logits_of_mu"])


@torch.no_grad()
def test_imported_network_has_only_class_logits(record: Record) -> None:
    network = from_state_dict(record.state)
    assert not network.training
    assert network.spec.classes == 11
    assert [(s.bands, s.widths) for s in network.spec.sources] == [(64, (128, 64)), (2, (16, 32))]
    assert_near(network(record.sources).logits, record["eval/logits_of_mu"][:, :11])


@pytest.fixture
def trained(record: Record, monkeypatch: pytest.MonkeyPatch) -> tuple[MIBFNet, Loss]:
    """Run the recorded training step, with noise and code sampled as zeros, and compute the gradients of the loss.

    The recorded loss is cross-entropy + 1e-3 * KL averaged over the 128 dimensions; ours sums over them.
    """
    monkeypatch.setattr(torch, "randn", torch.zeros)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    network = record.network().train()
    output = network(record.sources)
    loss = objective(output, record["y"], beta=1e-3 / 128)
    torch.autograd.backward(loss.total)
    assert_near(output.logits, record["train/logits"])
    assert_near(output.mean, record["train/mu"])
    assert_near(output.std, record["train/std"])
    return network, loss


def test_training_step_reproduces_recorded_loss_terms(record: Record, trained: tuple[MIBFNet, Loss]) -> None:
    _, loss = trained
    assert_near(loss.total, record["train/loss"])
    assert_near(loss.cross_entropy, record["train/cross_entropy"])
    assert_near(loss.rate / 128, record["train/kl_mean"])


def test_training_step_reproduces_recorded_gradients(record: Record, trained: tuple[MIBFNet, Loss]) -> None:
    """Each element agrees to 1e-4 of the tensor's largest recorded gradient, and each tensor to 1e-4 in the norm.

    A tolerance relative to each element would be too strict: where float32 terms of opposite sign cancel to nearly
    zero, only their rounding error remains. This is the case for every bias that precedes a batch norm: its gradient
    is zero in exact arithmetic, and the recorded value is only rounding error (about 1e-9). For such a bias, check that
    both gradients are negligible compared with those of the weights of its layer.
    """
    network, _ = trained
    compared = set()
    for ours, parameter in network.named_parameters():
        name = reference_name(ours)
        recorded, found = record[f"train/grad/{name}"], parameter.grad
        assert found is not None
        if name in BEFORE_NORM:
            weights = record[f"train/grad/{name.removesuffix('bias')}weight"].abs().max()
            assert recorded.abs().max() < 1e-5 * weights, name
            assert found.abs().max() < 1e-5 * weights, name
        else:
            assert (found - recorded).abs().max() <= 1e-4 * recorded.abs().max(), name
            assert (found - recorded).norm() <= 1e-4 * recorded.norm(), name
        compared.add(f"train/grad/{name}")
    assert compared == {name for name in record.arrays if name.startswith("train/grad/")}, "a gradient was not compared"


# --- import without recorded values ---


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
def test_reference_checkpoint_is_imported_with_equal_weights(wrapper: str | None, prefix: str) -> None:
    network = network_of()
    state = {f"{prefix}{name}": tensor for name, tensor in reference_state(network).items()}
    content = saved({"epoch": 300, wrapper: state, "best_acc": 0.9} if wrapper else state)
    read = from_bytes(content, name="checkpoint.pth.tar", patch=5, sources=("a", "b"))
    assert read.spec == network.spec
    assert form(read.spec) == "described"
    assert not read.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name
    assert torch.equal(network(patches(network)).logits, read(patches(network)).logits)


@torch.no_grad()
def test_released_checkpoint_drops_logits_beyond_classes() -> None:
    network = network_of(classes=128, hidden=4)
    full = translate(reference_state(network), patch=5)
    assert (full.spec.classes, full.spec.hidden, form(full.spec)) == (128, 4, "released")
    read = from_state_dict(reference_state(network), patch=5)
    assert read.spec.classes == 4
    torch.testing.assert_close(read(patches(network)).logits, network(patches(network)).logits[:, :4])
    assert NetworkSpec.from_json(read.spec.to_json()) == read.spec


def test_widths_are_inferred_from_shapes_and_float16_becomes_float32() -> None:
    spec = NetworkSpec((SourceSpec("first", 2, (24, 48)), SourceSpec("second", 5, (32, 16))), classes=6)
    state = {name: t.half() if t.is_floating_point() else t for name, t in reference_state(MIBFNet(spec)).items()}
    network = from_state_dict(state)
    assert network.spec == spec
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def without(name: str) -> Callable[[State], Any]:
    return lambda state: {n: t for n, t in state.items() if n != name}


def put(name: str, value: Any) -> Callable[[State], Any]:
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: list(state), "contains a list where a mapping of names to weights was expected"),
        (lambda state: {}, r"missing IB_fusion.decoder.bias, .* and \d+ more"),
        (lambda state: {"epoch": 3, "weights": state}, "'epoch' is a int, 'weights' is a dict"),
        (lambda state: dict(enumerate(state.values())), "0 is a Tensor"),
        (without("f2.0.weight"), r"missing f2\.0\.weight\. "),
        (put("net3.conv3x3_1.0.weight", torch.ones(1)), r"unexpected net3\.conv3x3_1\.0\.weight"),
        (put("ff.0.weight", torch.ones(128, 64, 1, 1)), "is 128 x 64 x 1 x 1, expected 128 x 256 x 1 x 1"),
        (put("f1.1.bias", torch.tensor(1.0)), "f1.1.bias is a single number, expected 64"),
        (put("net1.conv3x3_1.0.weight", torch.ones(128)), "net1.conv3x3_1.0.weight is 128, expected 4 axes"),
        (put("net2.conv3x3_1.0.weight", torch.ones(16, 0, 3, 3)), "is 16 x 0 x 3 x 3, expected 4 axes, none of them empty"),
        (put("IB_fusion.decoder.weight", torch.ones(1, 128)), "at least two classes, 1 given"),
        (put("IB_fusion.encoder.0.weight", torch.ones(9, 128)), "9 hidden units and 3 logits"),
        (put("f1.0.weight", torch.full((64, 64, 3, 3), float("nan"))), "f1.0.weight: some values are not finite"),
        (put("f1.0.weight", torch.ones(64, 64, 3, 3).to_sparse()), "'f1.0.weight' is a Tensor"),
        (put("f1.0.weight", torch.ones(64, 64, 3, 3, dtype=torch.int32)), "'f1.0.weight' is a Tensor of torch.int32"),
        (put("f1.1.running_var", torch.full((64,), -1.0)), "f1.1.running_var: a variance is negative"),
    ],
)
def test_state_dict_of_another_network_raises_with_expected_and_found(change: Callable[[State], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_state_dict(change(reference_state(network_of())))


def test_even_patch_size_raises() -> None:
    with pytest.raises(InputError, match="patch is 6"):
        from_state_dict(reference_state(network_of()), patch=6)


@pytest.mark.parametrize("best", [np.float64(0.9), np.float32(0.9), np.int64(3), np.bool_(True)])
def test_numpy_scalars_next_to_weights_are_ignored(best: Any) -> None:
    network = network_of()
    content = saved({"state_dict": reference_state(network), "epoch": 3, "best_acc": best})
    assert (
        from_bytes(content, name="checkpoint.pth.tar", patch=5).spec
        == from_state_dict(reference_state(network), patch=5).spec
    )


def test_flipped_bit_in_reference_checkpoint_raises() -> None:
    content = bytearray(saved({"state_dict": reference_state(network_of())}))
    content[len(content) // 2] ^= 0x40
    with pytest.raises(InputError, match="truncated or damaged"):
        from_bytes(bytes(content), name="checkpoint.pth.tar", patch=5)


class Touch:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("keep", [saved, pickle.dumps])
def test_pickle_in_reference_checkpoint_is_not_executed(tmp_path: Path, keep: Callable[[Any], bytes]) -> None:
    path = tmp_path / "touched"
    content = keep({"state_dict": reference_state(network_of()), "arguments": Touch(path)})
    with pytest.raises(InputError, match=r"^sly\.pth: .*torch\.save\(model\.state_dict\(\)"):
        from_bytes(content, name="sly.pth")
    assert not path.exists()


def test_pickled_module_raises_with_its_class_name() -> None:
    with pytest.raises(InputError, match=r"^whole\.pth: contains torch\.nn\.modules\.linear\.Linear, which is neither"):
        from_bytes(saved(torch.nn.Linear(2, 2)), name="whole.pth")


def test_truncated_file_or_other_content_raises() -> None:
    complete = saved(reference_state(network_of()))
    legacy = io.BytesIO()
    torch.save(reference_state(network_of()), legacy, _use_new_zipfile_serialization=False)
    assert from_bytes(legacy.getvalue(), name="old.pth").spec.classes == 3
    contents = [complete[: len(complete) * share // 10] for share in range(10)]
    contents += [legacy.getvalue()[:-100], b"hello, this is text", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(100)]
    for content in contents:
        with pytest.raises(InputError, match=r"^x\.pth: is not a checkpoint written by torch\.save, or is truncated"):
            from_bytes(content, name="x.pth")
    with pytest.raises(InputError, match=r"^x\.pth: contains a Tensor where a mapping"):
        from_bytes(saved(torch.ones(2)), name="x.pth")
