"""The authors' checkpoints: their recorded network is reproduced, others are refused, the command writes a bundle."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor
from typer.testing import CliRunner

from jobs.cli import app
from jobs.workspace import Workspace
from mibf.authors import form, from_bytes, from_state_dict, translate
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.objective import Loss, objective
from mibf.spec import NARROW, NetworkSpec, SourceSpec
from pipeline.grid import Window
from pipeline.predict import TilePredictor
from pipeline.products import product
from pipeline.store import PatchStore
from pipeline.tiles import Tile
from tests.conftest import SmallScene, write_raster

#: Our layers and theirs, written down apart from the module that is tested.
LAYERS = [
    *(
        (f"branches.{i}.{ours}", f"net{i + 1}.{theirs}")
        for i in (0, 1)
        for ours, theirs in (
            ("spatial.", "conv3x3_1."),
            ("spectral.", "conv3x3_2."),
            ("features.", "conv3x3_3."),
            ("attention.weigh.", "SELayer.fc."),
        )
    ),
    ("relation.gate.", "interaction.conv."),
    ("relation.join.", "interaction.conv3."),
    ("refine.0.", "f1."),
    ("refine.1.", "f2."),
    ("join.", "ff."),
    ("bottleneck.hidden.", "IB_fusion.encoder.0."),
    ("bottleneck.mean.", "IB_fusion.fc_mu."),
    ("bottleneck.spread.", "IB_fusion.fc_std."),
    ("bottleneck.decoder.", "IB_fusion.decoder."),
]
#: Biases that a batch norm follows: it takes the batch's mean away, and any constant with it.
BEFORE_NORM = {"net1.conv3x3_2.0.bias", "net2.conv3x3_2.0.bias", "ff.0.bias"}

State = dict[str, Tensor]


def their_name(ours: str) -> str:
    part, theirs = next((part, theirs) for part, theirs in LAYERS if ours.startswith(part))
    return theirs + ours.removeprefix(part)


def network_of(bands: tuple[int, int] = (3, 1), *, classes: int = 3, hidden: int = 128, patch: int = 5) -> MIBFNet:
    """A network whose every parameter and statistic is its own, so that none can be taken for another."""
    torch.manual_seed(3)
    spec = NetworkSpec((SourceSpec("a", bands[0]), SourceSpec("b", bands[1], NARROW)), classes, patch, hidden)
    network = MIBFNet(spec)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * (torch.rand_like(tensor) - 0.5))
    network.noise.mean_gate.fill_(0.5)
    return network.eval()


def their_state(network: MIBFNet) -> State:
    """A network's state as the authors' code would have saved it, with the layer that it never calls."""
    state = {their_name(name): t.clone() for name, t in network.state_dict().items() if name != "noise.mean_gate"}
    return state | {"fc.0.weight": torch.rand(network.spec.classes, 128), "fc.0.bias": torch.rand(network.spec.classes)}


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def patches(network: MIBFNet) -> list[Tensor]:
    torch.manual_seed(5)
    return [torch.rand(6, source.bands, network.spec.patch, network.spec.patch) for source in network.spec.sources]


# --- against what was recorded of the authors' network -------------------------------------------------------------------


class Record:
    """A golden record: the authors' weights, inputs, outputs and gradients, in float32 on a CPU."""

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
        """Our network with all the logits that theirs has."""
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
def test_every_part_gives_what_the_authors_network_gave(record: Record) -> None:
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
def test_the_network_for_maps_has_the_logits_of_the_classes_alone(record: Record) -> None:
    network = from_state_dict(record.state)
    assert not network.training
    assert network.spec.classes == 11
    assert [(s.bands, s.widths) for s in network.spec.sources] == [(64, (128, 64)), (2, (16, 32))]
    assert_near(network(record.sources).logits, record["eval/logits_of_mu"][:, :11])


@pytest.fixture
def trained(record: Record, monkeypatch: pytest.MonkeyPatch) -> tuple[MIBFNet, Loss]:
    """The recorded training step: noise and code drawn as zeros, and the loss's gradients.

    The record's loss is cross-entropy + 1e-3 * KL averaged over the 128 dimensions too, where ours sums them.
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


def test_loss_terms_of_a_training_step(record: Record, trained: tuple[MIBFNet, Loss]) -> None:
    _, loss = trained
    assert_near(loss.total, record["train/loss"])
    assert_near(loss.cross_entropy, record["train/cross_entropy"])
    assert_near(loss.rate / 128, record["train/kl_mean"])


def test_every_gradient_of_a_training_step(record: Record, trained: tuple[MIBFNet, Loss]) -> None:
    """To 1e-4 of a tensor's largest recorded gradient, each element, and to 1e-4 in the norm.

    Element by element against its own size would ask for digits that float32 sums of either sign do not hold: an
    element that cancels to near zero keeps the rounding of its terms. A bias that a batch norm follows is that case
    throughout: its gradient is zero in exact arithmetic, and what was recorded is rounding alone (some 1e-9). Such a
    bias is seen to be nothing beside the weights of its own layer, in the record and in ours.
    """
    network, _ = trained
    compared = set()
    for ours, parameter in network.named_parameters():
        name = their_name(ours)
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
    assert compared == {name for name in record.arrays if name.startswith("train/grad/")}, "every recorded gradient"


# --- without a record --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
def test_a_checkpoint_file_becomes_the_same_network(wrapper: str | None, prefix: str) -> None:
    network = network_of()
    state = {f"{prefix}{name}": tensor for name, tensor in their_state(network).items()}
    content = saved({"epoch": 300, wrapper: state, "best_acc": 0.9} if wrapper else state)
    read = from_bytes(content, name="checkpoint.pth.tar", patch=5, sources=("a", "b"))
    assert read.spec == network.spec
    assert form(read.spec) == "described"
    assert not read.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name
    assert torch.equal(network(patches(network)).logits, read(patches(network)).logits)


@torch.no_grad()
def test_a_released_checkpoint_loses_the_logits_past_its_classes() -> None:
    network = network_of(classes=128, hidden=4)
    whole = translate(their_state(network), patch=5)
    assert (whole.spec.classes, whole.spec.hidden, form(whole.spec)) == (128, 4, "released")
    read = from_state_dict(their_state(network), patch=5)
    assert read.spec.classes == 4
    torch.testing.assert_close(read(patches(network)).logits, network(patches(network)).logits[:, :4])
    assert NetworkSpec.from_json(read.spec.to_json()) == read.spec


def test_widths_are_read_from_the_shapes_and_half_precision_is_widened() -> None:
    spec = NetworkSpec((SourceSpec("first", 2, (24, 48)), SourceSpec("second", 5, (32, 16))), classes=6)
    state = {name: t.half() if t.is_floating_point() else t for name, t in their_state(MIBFNet(spec)).items()}
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
        (lambda state: list(state), "holds a list where a mapping of names to weights was expected"),
        (lambda state: {}, r"without IB_fusion.decoder.bias, .* and \d+ more"),
        (lambda state: {"epoch": 3, "weights": state}, "'epoch' is a int, 'weights' is a dict"),
        (lambda state: dict(enumerate(state.values())), "0 is a Tensor"),
        (without("f2.0.weight"), r"without f2\.0\.weight\. "),
        (put("net3.conv3x3_1.0.weight", torch.ones(1)), r"with net3\.conv3x3_1\.0\.weight, which that has not"),
        (put("ff.0.weight", torch.ones(128, 64, 1, 1)), "is 128 x 64 x 1 x 1 where 128 x 256 x 1 x 1 was expected"),
        (put("f1.1.bias", torch.tensor(1.0)), "f1.1.bias is a single number where 64 was expected"),
        (put("net1.conv3x3_1.0.weight", torch.ones(128)), "net1.conv3x3_1.0.weight is 128 where 4 axes"),
        (put("net2.conv3x3_1.0.weight", torch.ones(16, 0, 3, 3)), "is 16 x 0 x 3 x 3 where 4 axes, none of them empty"),
        (put("IB_fusion.decoder.weight", torch.ones(1, 128)), "at least two classes, 1 given"),
        (put("IB_fusion.encoder.0.weight", torch.ones(9, 128)), "hidden layer of 9 and 3 logits"),
        (put("f1.0.weight", torch.full((64, 64, 3, 3), float("nan"))), "f1.0.weight: not all values are finite"),
        (put("f1.0.weight", torch.ones(64, 64, 3, 3).to_sparse()), "'f1.0.weight' is a Tensor"),
        (put("f1.0.weight", torch.ones(64, 64, 3, 3, dtype=torch.int32)), "'f1.0.weight' is a Tensor of torch.int32"),
        (put("f1.1.running_var", torch.full((64,), -1.0)), "f1.1.running_var: a variance is negative"),
    ],
)  # fmt: skip
def test_what_is_not_their_network_is_refused_with_expected_and_found(change: Callable[[State], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_state_dict(change(their_state(network_of())))


def test_a_patch_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="patch is 6"):
        from_state_dict(their_state(network_of()), patch=6)


@pytest.mark.parametrize("best", [np.float64(0.9), np.float32(0.9), np.int64(3), np.bool_(True)])
def test_numbers_of_numpy_beside_the_weights_are_read_over(best: Any) -> None:
    network = network_of()
    content = saved({"state_dict": their_state(network), "epoch": 3, "best_acc": best})
    assert (
        from_bytes(content, name="checkpoint.pth.tar", patch=5).spec == from_state_dict(their_state(network), patch=5).spec
    )


def test_a_damaged_byte_is_noticed() -> None:
    content = bytearray(saved({"state_dict": their_state(network_of())}))
    content[len(content) // 2] ^= 0x40
    with pytest.raises(InputError, match="cut short or damaged"):
        from_bytes(bytes(content), name="checkpoint.pth.tar", patch=5)


class Touch:
    """Unpickled by Python's own means, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("keep", [saved, pickle.dumps])
def test_a_pickle_is_not_run(tmp_path: Path, keep: Callable[[Any], bytes]) -> None:
    path = tmp_path / "touched"
    content = keep({"state_dict": their_state(network_of()), "arguments": Touch(path)})
    with pytest.raises(InputError, match=r"^sly\.pth: .*torch\.save\(model\.state_dict\(\)"):
        from_bytes(content, name="sly.pth")
    assert not path.exists()


def test_an_object_in_a_checkpoint_is_named() -> None:
    with pytest.raises(InputError, match=r"^whole\.pth: holds torch\.nn\.modules\.linear\.Linear, which is neither"):
        from_bytes(saved(torch.nn.Linear(2, 2)), name="whole.pth")


def test_a_file_that_is_cut_short_or_no_checkpoint_is_refused() -> None:
    whole = saved(their_state(network_of()))
    legacy = io.BytesIO()
    torch.save(their_state(network_of()), legacy, _use_new_zipfile_serialization=False)
    assert from_bytes(legacy.getvalue(), name="old.pth").spec.classes == 3
    contents = [whole[: len(whole) * share // 10] for share in range(10)]
    contents += [legacy.getvalue()[:-100], b"hello, this is text", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(100)]
    for content in contents:
        with pytest.raises(InputError, match=r"^x\.pth: is not a checkpoint that torch\.save wrote, or is cut short"):
            from_bytes(content, name="x.pth")
    with pytest.raises(InputError, match=r"^x\.pth: holds a Tensor where a mapping"):
        from_bytes(saved(torch.ones(2)), name="x.pth")


# --- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(prepared: tuple[SmallScene, Any], tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with a prepared workspace `work` in it, to be changed at will, and the arguments that name it."""
    scene, workspace = prepared
    shutil.copytree(workspace.url, tmp_path / "work")
    config = ["--config", str(scene.write_config()), "--set", f"workspace={tmp_path / 'work'}"]
    return tmp_path, config


def authors(place: tuple[Path, list[str]], network: MIBFNet | bytes, *more: str, name: str = "checkpoint.pth.tar") -> Any:
    """Run the command on a checkpoint of a network, or on a file of that content."""
    content = network if isinstance(network, bytes) else saved({"epoch": 1, "state_dict": their_state(network)})
    (place[0] / name).write_bytes(content)
    return CliRunner().invoke(app, ["authors-to-bundle", str(place[0] / name), *place[1], *more])


def command(name: str, place: tuple[Path, list[str]], *more: str) -> Any:
    return CliRunner().invoke(app, [name, place[1][1], *place[1][2:], *more])


def refused(place: tuple[Path, list[str]], network: MIBFNet | bytes, *more: str) -> str:
    """The message of a checkpoint that must be refused, having seen that nothing is written."""
    work = place[0] / "work"
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()}
    folders = {p for p in work.rglob("*") if p.is_dir()}
    result = authors(place, network, *more)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()} == before
    assert {p for p in work.rglob("*") if p.is_dir()} == folders
    return str(result.stderr)


@torch.no_grad()
def test_the_command_writes_a_bundle_that_maps(place: tuple[Path, list[str]]) -> None:
    result = authors(place, network_of(classes=128, hidden=3), "--json")
    assert result.exit_code == 0, result.output
    stage = json.loads(result.stdout)["stages"][0]
    sha256 = hashlib.sha256((place[0] / "checkpoint.pth.tar").read_bytes()).hexdigest()
    assert stage["figures"]["authors"] == {
        "checkpoint": "checkpoint.pth.tar", "sha256": sha256, "form": "released", "trained_on": "unknown"
    }  # fmt: skip
    workspace = Workspace(str(place[0] / "work"), "main")
    bundle = workspace.read_bundle()
    assert bundle.provenance["authors"] == stage["figures"]["authors"]
    assert [(s.name, s.bands) for s in bundle.spec.sources] == [("optical", 3), ("radar", 1)]
    assert [c.name for c in bundle.classes] == ["water", "forest", "town"]
    store = PatchStore(workspace.store("small"))
    products = [product("class"), product("confidence", "float32")]
    predictor = TilePredictor(bundle, products=products, precision="float32")
    layers = predictor.predict(store, Tile("small", Window(64, 64, 64, 64)))
    assert set(np.unique(layers["class"])) <= {1, 2, 5}
    assert (layers["confidence"] >= 1 / 3).all(), "of three classes, not of 128"


def test_evaluate_says_that_test_pixels_may_have_been_in_its_training(place: tuple[Path, list[str]]) -> None:
    assert authors(place, network_of()).exit_code == 0
    result = command("evaluate", place)
    assert result.exit_code == 0, result.output
    assert "not current" not in result.stderr
    assert (
        "note: the model was read from a checkpoint of the authors, and what it was trained on is unknown" in result.stdout
    )
    evaluation = json.loads((place[0] / "work/runs/main/evaluation.json").read_text())
    assert "test pixels may have been in its training" in evaluation["caveat"]


def test_stores_prepared_anew_ask_for_the_checkpoint_again(place: tuple[Path, list[str]]) -> None:
    assert authors(place, network_of()).exit_code == 0
    assert command("prepare", place, "--set", "split.seed=1").exit_code == 0
    for name in ("evaluate", "run"):
        result = command(name, place, "--set", "split.seed=1")
        assert result.exit_code == 2, result.output
        assert "run `mibf authors-to-bundle` again" in result.stderr
    assert authors(place, network_of(), "--set", "split.seed=1").exit_code == 0
    assert command("evaluate", place, "--set", "split.seed=1").exit_code == 0


def test_training_does_not_overwrite_a_checkpoints_model(place: tuple[Path, list[str]]) -> None:
    assert authors(place, network_of()).exit_code == 0
    before = (place[0] / "work/models/main/weights.safetensors").read_bytes()
    result = command("train", place)
    assert result.exit_code == 2
    assert "was read from a checkpoint of the authors, which training would overwrite" in result.stderr
    assert (place[0] / "work/models/main/weights.safetensors").read_bytes() == before
    assert authors(place, network_of(classes=128, hidden=3)).exit_code == 0, "another checkpoint may"


def test_a_trained_model_is_not_overwritten(place: tuple[Path, list[str]]) -> None:
    started = place[0] / "work/runs/main/started.json"
    started.parent.mkdir(parents=True)
    started.write_text("{}")
    message = refused(place, network_of())
    assert "`mibf train` made or began run 'main', and its model is not overwritten" in message
    assert "--set run=authors" in message
    assert authors(place, network_of(), "--set", "run=authors").exit_code == 0
    assert (place[0] / "work/models/authors/model.json").exists()


def test_a_bundle_of_unknown_origin_is_not_overwritten(place: tuple[Path, list[str]]) -> None:
    assert authors(place, network_of()).exit_code == 0
    path = place[0] / "work/models/main/model.json"
    model = json.loads(path.read_text())
    del model["provenance"]["authors"]
    path.write_text(json.dumps(model))
    assert "its model is not overwritten" in refused(place, network_of())


def test_other_sources_bands_and_classes_are_refused(place: tuple[Path, list[str]]) -> None:
    message = refused(place, network_of((64, 2)))
    assert "takes 64 bands of its first source and 2 of its second; of the scenes' sources optical 3 and radar 1" in message
    assert "swap the sources" in refused(place, network_of((1, 3)))
    message = refused(place, network_of(classes=4))
    assert "tells 4 classes apart; the configuration declares 3 (water, forest, town)" in message


def test_files_that_are_no_checkpoint_are_refused_by_name(place: tuple[Path, list[str]]) -> None:
    assert "checkpoint.pth.tar: is not a checkpoint that torch.save wrote" in refused(place, b"text")
    assert "checkpoint.pth.tar: these are not the weights" in refused(place, saved({"a": torch.ones(2)}))
    for name, cause in (("nowhere.pth", "no such file"), ("", "cannot be read")):
        result = CliRunner().invoke(app, ["authors-to-bundle", str(place[0] / name), *place[1]])
        assert result.exit_code == 2
        assert cause in result.stderr
    assert not (place[0] / "work/models").exists()


def test_what_is_not_prepared_is_refused(scene: SmallScene, tmp_path: Path) -> None:
    (tmp_path / "c.pth").write_bytes(saved(their_state(network_of())))
    result = CliRunner().invoke(app, ["authors-to-bundle", str(tmp_path / "c.pth"), "--config", str(scene.write_config())])
    assert result.exit_code == 2
    assert "run `mibf prepare`" in result.stderr
    assert not (tmp_path / "work").exists()


def test_three_sources_are_refused(scene: SmallScene, tmp_path: Path) -> None:
    write_raster(tmp_path / "height.tif", np.ones((1, 150, 130), np.uint8))
    scenes = scene.config()["scenes"]
    scenes[0]["sources"]["height"] = {"url": str(tmp_path / "height.tif")}
    config = str(scene.write_config(scenes=scenes))
    assert CliRunner().invoke(app, ["prepare", config]).exit_code == 0
    message = refused((tmp_path, ["--config", config]), network_of())
    assert "has two sources; the scenes have 3 (optical, radar, height)" in message


def test_home_and_relative_paths(place: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place[0]))
    monkeypatch.chdir(place[0])
    (place[0] / "c.pth").write_bytes(saved(their_state(network_of())))
    for path in ("~/c.pth", "c.pth", f"file://{place[0]}/c.pth"):
        result = CliRunner().invoke(app, ["authors-to-bundle", path, *place[1]])
        assert result.exit_code == 0, result.output


def test_the_paper_s_patch_is_missed_aloud(place: tuple[Path, list[str]]) -> None:
    result = authors(place, network_of())
    assert "the paper's patches are of 7 pixels; weights do not tell, 5 are taken" in result.stderr


@pytest.mark.slow
def test_a_whole_run_goes_on_from_a_checkpoint(place: tuple[Path, list[str]]) -> None:
    assert authors(place, network_of()).exit_code == 0
    arguments = ["run", place[1][1], *place[1][2:], "--json"]
    result = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    stages = {stage["stage"]: stage["skipped"] for stage in json.loads(result.stdout)["stages"]}
    assert stages == {"prepare": True, "train": True, "evaluate": False, "map": False, "report": False}
    with rasterio.open(place[0] / "work/maps/small/main/class.tif") as dataset:
        assert set(np.unique(dataset.read(1))) <= {1, 2, 5, 255}
    page = (place[0] / "work/report/index.html").read_text()
    assert "What the model was trained on is unknown" in page
    assert "checkpoint.pth.tar" in page
