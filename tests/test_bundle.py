"""The bundle: what is written is read again or refused, its class priors, STAC fields, card, and `mibf bundle show`."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.cli import app
from mibf import mlm
from mibf.bundle import CARD, MODEL, WEIGHTS, Bundle, ClassName
from mibf.card import card
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.priors import CHOICES, Priors
from mibf.scaling import BandScaling, scaling_to_json
from mibf.spec import NARROW, NetworkSpec, SourceSpec
from pipeline import storage
from pipeline.bundles import file_of, folder_of, read_bundle, write_bundle

SPEC = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW, scale=2)), classes=3, patch=5)
CLASSES = (
    ClassName(1, "open water", "#466b9f"),
    ClassName(2, "forest | wood", "#1c5f2c"),
    ClassName(5, "Dörfer", "#d1182c"),
)
PRIORS = Priors(natural=(0.7, 0.2, 0.1), trained=(0.4, 0.3, 0.3))
PROVENANCE: dict[str, Any] = {
    "run": "first try!",
    "fingerprint": "abc",
    "chosen": {
        "epoch": 4,
        "validation_overall_accuracy": 0.876,
        "validation_kappa": float("nan"),
        "calibration": {"temperature": 1.3, "ece": 0.021, "brier": 0.15},
    },
    "scenes": ["valley", "hill"],
    "split": {"method": "blocks", "buffer": 4},
    "versions": {"mibf": "0.1.0", "torch": "2.13.0+cpu"},
    "hyperparameters": {"beta": 1e-4, "not a name": 1},
}


def limits(bands: int) -> BandScaling:
    low = np.arange(bands, dtype=np.float32)
    return BandScaling(low=low, high=low + 10, fill=low + 3)


def make(**changes: Any) -> Bundle:
    spec = changes.get("spec", SPEC)
    torch.manual_seed(3)
    return Bundle(**{
        "spec": spec,
        "weights": MIBFNet(spec).state_dict(),
        "scaling": {source.name: limits(source.bands) for source in spec.sources},
        "classes": CLASSES,
        "temperature": 1.3,
        "provenance": PROVENANCE,
        "priors": PRIORS,
    } | changes)  # fmt: skip


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make()


@pytest.fixture(scope="module")
def files(bundle: Bundle) -> dict[str, bytes]:
    return bundle.to_files()


def changed(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The files with other values in model.json; None takes a key away."""
    model = {key: value for key, value in (json.loads(files[MODEL]) | changes).items() if value is not None}
    return files | {MODEL: json.dumps(model).encode()}


def logits(network: MIBFNet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sources = [torch.rand(6, s.bands, 5 * s.scale, 5 * s.scale, generator=generator) for s in SPEC.sources]
    with torch.inference_mode():
        return network(sources).logits.double()


# What is written is read again.


def test_a_bundle_survives_its_files(bundle: Bundle, files: dict[str, bytes]) -> None:
    again = Bundle.from_files({name: files[name] for name in (WEIGHTS, MODEL)})
    assert (again.spec, again.classes, again.temperature, again.priors) == (SPEC, CLASSES, 1.3, PRIORS)
    assert scaling_to_json(again.scaling) == scaling_to_json(bundle.scaling)
    assert again.provenance["chosen"]["calibration"] == PROVENANCE["chosen"]["calibration"]
    assert again.provenance["chosen"]["validation_kappa"] is None, "JSON has no NaN"
    assert (logits(again.network()) == logits(bundle.network())).all()
    assert again.to_files() == files


def test_the_card_comes_before_what_says_that_the_bundle_is_there(files: dict[str, bytes]) -> None:
    assert list(files) == [WEIGHTS, CARD, MODEL]


def test_format_2_is_read_and_knows_no_priors(bundle: Bundle, files: dict[str, bytes]) -> None:
    old = changed(files, format=2, priors=None, weights=None, properties=None, stac_extensions=None)
    again = Bundle.from_files(old)
    assert again.priors is None
    assert (logits(again.network()) == logits(bundle.network())).all()
    for choice in ("natural", "uniform"):
        with pytest.raises(InputError, match=r"not known.*Take priors 'trained', or train again"):
            again.network(choice)


def test_another_format_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="has format 4, this version reads 2 and 3"):
        Bundle.from_files(changed(files, format=4))


# What is not whole is refused.


@pytest.mark.parametrize("broken", [{MODEL: b"{}"}, {MODEL: b"not json"}, {MODEL: b"[]"}, {MODEL: b"\xff"}, {WEIGHTS: b"x"}])
def test_what_is_no_bundle_is_refused(files: dict[str, bytes], broken: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match=r"damaged|cut short"):
        Bundle.from_files(files | broken)


def test_weights_cut_short_are_told_with_both_digests(files: dict[str, bytes]) -> None:
    whole, cut = files[WEIGHTS], files[WEIGHTS][:-9]
    with pytest.raises(InputError) as refused:
        Bundle.from_files(files | {WEIGHTS: cut})
    told = str(refused.value)
    assert f"{WEIGHTS} is cut short: {len(cut):,} bytes of {len(whole):,}" in told
    for content in (whole, cut):
        assert hashlib.sha256(content).hexdigest()[:12] in told
    assert "train again" in told


@given(st.data())
@settings(max_examples=25)
def test_any_changed_byte_of_the_weights_is_noticed(files: dict[str, bytes], data: st.DataObject) -> None:
    content = bytearray(files[WEIGHTS])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InputError, match=r"damaged or another model's.*SHA-256"):
        Bundle.from_files(files | {WEIGHTS: bytes(content)})


def test_another_models_weights_are_noticed(files: dict[str, bytes]) -> None:
    other = make(spec=NetworkSpec(SPEC.sources, classes=3, patch=7)).to_files()
    weights = bytearray(other[WEIGHTS])
    weights[-1] ^= 1
    with pytest.raises(InputError, match="another model's"):
        Bundle.from_files(files | {WEIGHTS: bytes(weights)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bottleneck.decoder.bias": torch.zeros(4)}, "bottleneck.decoder.bias is 4 of float32, wanted 3 of float32"),
        ({"bottleneck.decoder.bias": torch.zeros(3).double()}, "is 3 of float64, wanted 3 of float32"),
        ({"bottleneck.decoder.bias": None}, "bottleneck.decoder.bias is none, wanted 3 of float32"),
        ({"more": torch.zeros(2, 2)}, "more is 2 x 2 of float32, wanted none"),
    ],
)
def test_weights_that_do_not_fit_the_network_are_named(bundle: Bundle, change: dict[str, Any], told: str) -> None:
    weights = {name: tensor for name, tensor in (bundle.weights | change).items() if tensor is not None}
    wrong = make(weights=weights)
    with pytest.raises(InputError, match=re.escape(told)):
        wrong.network()
    with pytest.raises(InputError, match=r"does not fit the network of model\.json") as refused:
        Bundle.from_files(wrong.to_files())
    assert "train again" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": [vars(c) for c in CLASSES[:2]]}, "names 2 classes, its network has 3"),
        ({"classes": [vars(CLASSES[0])] * 3}, "class ids 1, 1, 1"),
        ({"priors": Priors.even(2).to_json()}, "priors of 2 classes, its network has 3"),
        ({"priors": {"natural": [1, 1, 1], "trained": [1, 0, 0]}}, r"natural class shares \(1, 1, 1\) sum to 3"),
        ({"scaling": {n: limits(1).to_json() for n in ("optical", "radar")}}, "'optical' is not of its 3 bands"),
        ({"scaling": {}}, "damaged"),
        ({"temperature": 0}, "temperature 0"),
        ({"temperature": "hot"}, "temperature 'hot'"),
        ({"provenance": []}, "provenance"),
        ({"weights": {"bytes": 3}}, "damaged"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(files: dict[str, bytes], change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Bundle.from_files(changed(files, **change))


# Priors.

counts = st.lists(st.integers(1, 1000), min_size=3, max_size=3)


@given(natural=counts, trained=counts, temperature=st.floats(0.3, 5))
@settings(max_examples=25)
def test_corrected_probabilities_are_those_of_the_network_times_target_over_trained(
    natural: list[int], trained: list[int], temperature: float
) -> None:
    priors = Priors.of(natural, trained)
    bundle = make(priors=priors, temperature=temperature)
    plain = (logits(bundle.network()) / temperature).softmax(dim=1)
    assert (logits(bundle.network("trained")) == logits(bundle.network())).all()
    for choice, target in (("natural", priors.natural), ("uniform", (1 / 3,) * 3)):
        wanted = plain * torch.tensor(target).double() / torch.tensor(priors.trained).double()
        wanted /= wanted.sum(dim=1, keepdim=True)
        found = (logits(bundle.network(choice)) / temperature).softmax(dim=1)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_a_network_of_other_priors_leaves_the_bundle_as_it_is(bundle: Bundle) -> None:
    before = bundle.weights["bottleneck.decoder.bias"].clone()
    network = bundle.network("uniform")
    assert (bundle.weights["bottleneck.decoder.bias"] == before).all()
    wanted = before + 1.3 * torch.tensor([1 / 3 / t for t in PRIORS.trained]).log()
    torch.testing.assert_close(network.bottleneck.decoder.bias.detach(), wanted)


def test_a_class_that_training_never_saw_is_not_corrected() -> None:
    priors = Priors(natural=(0.5, 0.25, 0.25), trained=(0.5, 0.5, 0.0))
    assert priors.correction("natural") == pytest.approx((0, np.log(0.5), 0))
    assert priors.correction("uniform")[2] == 0
    assert all(np.isfinite(priors.correction(choice)).all() for choice in CHOICES)


def test_even_priors_correct_nothing() -> None:
    assert all(Priors.even(7).correction(choice) == (0,) * 7 for choice in CHOICES)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
def test_shares_come_from_counts_and_survive_json(values: list[float]) -> None:
    priors = Priors.of(values, reversed(values))
    assert sum(priors.natural) == pytest.approx(1)
    assert Priors.from_json(json.loads(json.dumps(priors.to_json()))) == priors
    assert all(type(share) is float for share in priors.natural)


@pytest.mark.parametrize(
    ("natural", "trained", "told"),
    [
        ((0.5, 0.6), (0.5, 0.5), "natural class shares .* sum to 1.1"),
        ((0.5, 0.5), (1.5, -0.5), "trained class shares are 1.5, -0.5"),
        ((0.5, 0.5), (float("nan"), 1.0), "trained class shares are nan, 1"),
        ((), (), "natural class shares are none"),
        ((0.5, 0.5), (0.2, 0.3, 0.5), "2 natural and 3 trained"),
        ((1.0, 0.0), (0.5, 0.5), "class 2 of 2 has share 0.5 in training and none"),
    ],
)
def test_shares_that_cannot_be_are_refused(natural: tuple[float, ...], trained: tuple[float, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Priors(natural, trained)


@pytest.mark.parametrize("values", [[0, 0], [], [-1, 2], [float("inf"), 1], [float("inf"), float("-inf")]])
def test_counts_that_make_no_shares_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="natural counts or weights"):
        Priors.of(values, [1, 1])


def test_an_unknown_choice_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="'even'; there are trained, natural, uniform"):
        bundle.network("even")


# STAC's fields.


def properties_of(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bundle.to_files()[MODEL])["properties"]
    return found


def test_stac_fields_follow_the_extensions_rules(bundle: Bundle) -> None:
    """The rules of mlm v1.6.0's schema that concern these fields."""
    found = properties_of(bundle)
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", found["mlm:name"])
    assert found["mlm:name"] == "MIBF-Net first try"
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9a-zA-Z.-]+)?(\+[0-9a-zA-Z.-]+)?", found["mlm:framework_version"])
    assert found["mlm:total_parameters"] == sum(p.numel() for p in bundle.network().parameters())
    assert found["mlm:memory_size"] == sum(t.nbytes for t in bundle.weights.values())
    assert all(re.fullmatch(r"[0-9a-zA-Z_.-]+", key) for key in found["mlm:hyperparameters"])
    assert {"beta": 1e-4, "patch": 5}.items() <= found["mlm:hyperparameters"].items()
    assert [entry["input"]["shape"] for entry in found["mlm:input"]] == [[-1, 3, 5, 5], [-1, 1, 10, 10]]
    named = {band["name"] for band in found["bands"]}
    assert named == {"optical 1", "optical 2", "optical 3", "radar 1"}, "inputs refer to bands by name"
    for entry in found["mlm:input"]:
        shape, order = entry["input"]["shape"], entry["input"]["dim_order"]
        assert len(shape) == len(order)
        assert set(entry["bands"]) <= named
        assert len(entry["value_scaling"]) == len(entry["bands"]) == shape[order.index("bands")]
        assert entry["input"]["data_type"] == "float32"
    (output,) = found["mlm:output"]
    assert output["tasks"] == found["mlm:tasks"] == ["semantic-segmentation"]
    assert output["result"] == {"shape": [-1, 3], "dim_order": ["batch", "class"], "data_type": "float32"}
    assert output["post_processing_function"]["expression"] == "softmax(logits / 1.3)"
    for told, c in zip(output["classification:classes"], CLASSES, strict=True):
        assert (told["value"], told["description"]) == (c.id, c.name)
        assert re.fullmatch(r"[0-9A-Za-z_-]+", told["name"])
        assert re.fullmatch(r"[0-9A-F]{6}", told["color_hint"])
    # Trained from scratch: the source is to be null, and to be there.
    assert (found["mlm:pretrained"], found["mlm:pretrained_source"]) == (False, None)


def test_what_stac_says_of_scaling_is_what_is_done(bundle: Bundle) -> None:
    limits = BandScaling(np.array([0, 5, 7], np.float32), np.array([4, 9, 7], np.float32), np.zeros(3, np.float32))
    told = properties_of(make(scaling=bundle.scaling | {"optical": limits}))["mlm:input"][0]["value_scaling"]
    values = np.random.default_rng(0).uniform(-5, 15, (3, 4, 4)).astype(np.float32)
    for band, rule, wanted in zip(values, told, limits.apply(values, np.ones((4, 4), bool)), strict=True):
        low, high = rule["minimum"], rule["maximum"]
        found = band.clip(low, high) if rule["type"] == "clip" else ((band - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_pystac_reads_the_stac_fields(bundle: Bundle) -> None:
    pystac = pytest.importorskip("pystac")
    extension = pytest.importorskip("pystac.extensions.mlm")
    item = pystac.Item.from_dict({
        "type": "Feature", "stac_version": "1.1.0", "id": "m", "geometry": None, "links": [], "assets": {},
        "stac_extensions": [extension.MLMExtension.get_schema_uri()],
        "properties": {"datetime": "2024-01-01T00:00:00Z", **properties_of(bundle)},
    })  # fmt: skip
    read = extension.MLMExtension.ext(item)
    assert (read.mlm_name, read.architecture) == ("MIBF-Net first try", "MIBF-Net")
    assert [extension.TaskType(task) for task in read.tasks] == [extension.TaskType.SEMANTIC_SEGMENTATION]
    assert read.framework == "PyTorch"
    assert read.memory_size == bundle.memory_bytes
    for entry in read.input:
        assert [band if isinstance(band, str) else band.name for band in entry.bands]
        assert entry.input.dim_order == ["batch", "bands", "height", "width"]
        assert {extension.ValueScalingType(rule["type"]) for rule in entry.to_dict()["value_scaling"]} == {"min-max"}
        assert entry.pre_processing_function.format == "python"
    (output,) = read.output
    assert output.result.shape == [-1, 3]
    assert [(c.value, c.description) for c in output.classes] == [(c.id, c.name) for c in CLASSES]


def test_the_pydantic_models_of_the_extension_take_the_fields(bundle: Bundle) -> None:
    schema = pytest.importorskip("stac_model.schema")
    schema.MLModelProperties.model_validate(properties_of(bundle))
    assert mlm.EXTENSIONS[0] == schema.SCHEMA_URI


@pytest.mark.parametrize("run", [None, "", "!!", "ü", "a" * 200, 3])
@pytest.mark.parametrize("version", [None, "2.9.0a0+gitabc", "nightly", 3])
def test_stac_names_and_versions_are_ones_whatever_provenance_holds(run: Any, version: Any) -> None:
    found = properties_of(make(provenance={"run": run, "versions": {"torch": version}, "hyperparameters": 3}))
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", found["mlm:name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+[0-9a-zA-Z.-]+)?", found["mlm:framework_version"])
    assert "mlm:pretrained" not in found


def test_stac_fields_are_not_what_is_read(files: dict[str, bytes]) -> None:
    again = Bundle.from_files(changed(files, properties={"mlm:output": "nonsense"}))
    assert again.classes == CLASSES


# The card.


def test_the_card_tells_what_the_bundle_holds(bundle: Bundle) -> None:
    told = card(bundle)
    for fact in (
        "# MIBF-Net, run first try!", "| optical | 3 | 1 |", "| radar | 1 | 2 |", "5 x 5 reference pixels",
        "| 2 | forest \\| wood | #1c5f2c | 0.2000 | 0.3000 |", "scenes valley, hill", "method `blocks` with a buffer of 4",
        "Epoch 4", "overall accuracy 0.876", "expected calibration error 0.021", "Brier score 0.150", "temperature 1.3 ",
        "10.1109/TGRS.2023.3296813", "mibf 0.1.0", "same sensors, bands, order and units",
    ):  # fmt: skip
        assert fact in told
    assert "kappa" not in told, "a figure that is no number is left out"
    assert "leaks" not in told


@pytest.mark.parametrize(
    ("hyperparameters", "wanted"),
    [({"source_dropout": 0.25}, 0.25), ({"source_dropout": 0}, 0), ({"source_dropout": "much"}, 0), ({}, 0), (None, 0)],
)
def test_a_bundle_tells_what_share_of_samples_lost_a_source(hyperparameters: Any, wanted: float) -> None:
    told = make(provenance={"hyperparameters": hyperparameters})
    assert Bundle.from_files(told.to_files()).source_dropout == wanted
    assert make(provenance={}).source_dropout == 0


@pytest.mark.parametrize(
    ("provenance", "fact"),
    [
        ({}, "is not recorded"),
        ({"split": {"method": "random"}}, "was random and leaks"),
        ({"chosen": 3, "split": "blocks", "scenes": 4, "versions": []}, "is not recorded"),
        ({"authors": {"checkpoint": "m.pth", "sha256": "aa"}}, "What it was trained on is unknown"),
        ({"authors": True}, "What it was trained on is unknown"),
    ],
)
def test_a_card_is_made_of_what_there_is(provenance: dict[str, Any], fact: str) -> None:
    told = card(make(provenance=provenance, priors=None))
    assert fact in told
    assert "shares of the classes in training are not known" in told


def test_a_card_says_who_chose_the_epoch() -> None:
    last = card(make(provenance=PROVENANCE | {"hyperparameters": {"select": "last"}}))
    assert "Epoch 4, the last one, is the model." in last
    assert "Brier score 0.150." in last
    assert "chose" not in last
    never = card(make(provenance=PROVENANCE | {"chosen": {"epoch": 4, "train_loss": 0.1}}))
    assert "Epoch 4, the last one, is the model." in never
    assert "nothing to validate on: confidences are not calibrated" in never


def test_a_card_is_short_whatever_the_bundle_holds() -> None:
    spec = NetworkSpec(tuple(SourceSpec(f"s{i}", 40) for i in range(20)), classes=200)
    classes = tuple(ClassName(i, f"line\nbreak {i}", "#000000") for i in range(200))
    provenance = PROVENANCE | {"scenes": [f"scene {i}" for i in range(500)], "versions": {f"p{i}": "1" for i in range(99)}}
    told = card(make(spec=spec, classes=classes, provenance=provenance, priors=Priors.even(200)))
    assert len(told.splitlines()) < 80
    assert "and 484 more" in told
    full = NetworkSpec(tuple(SourceSpec(f"s{i}", 2) for i in range(16)), classes=16)
    told = card(make(spec=full, classes=classes[:16], priors=Priors.even(16)))
    assert len(told.splitlines()) < 80


# Where bundles lie.


@pytest.mark.parametrize(
    ("url", "folder", "weights"),
    [
        ("/a/b", "/a/b", f"/a/b/{WEIGHTS}"),
        ("/a/b/model.json", "/a/b", f"/a/b/{WEIGHTS}"),
        ("/a/b/model.json/", "/a/b", f"/a/b/{WEIGHTS}"),
        ("model.json", ".", f"./{WEIGHTS}"),
        ("", ".", f"./{WEIGHTS}"),
        ("/a/mymodel.json", "/a/mymodel.json", f"/a/mymodel.json/{WEIGHTS}"),
        ("/a?b/c", "/a?b/c", f"/a?b/c/{WEIGHTS}"),
        ("s3://k/a/model.json", "s3://k/a", f"s3://k/a/{WEIGHTS}"),
        ("https://h/a/model.json?sig=x", "https://h/a?sig=x", f"https://h/a/{WEIGHTS}?sig=x"),
    ],
)
def test_a_bundle_is_found_by_its_folder_or_a_file_in_it(url: str, folder: str, weights: str) -> None:
    assert folder_of(url) == folder
    assert file_of(folder, WEIGHTS) == weights


def test_a_bundle_lies_at_any_url(bundle: Bundle) -> None:
    write_bundle("memory://models/run", bundle)
    assert read_bundle("memory://models/run/model.json").priors == PRIORS
    assert storage.names("memory://models/run") == sorted([WEIGHTS, CARD, MODEL])


# mibf bundle show


def show(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bundle", "show", *arguments])


@pytest.fixture
def folder(files: dict[str, bytes], tmp_path: Path) -> Path:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_show_tells_all(folder: Path, bundle: Bundle) -> None:
    result = show(str(folder))
    assert result.exit_code == 0, result.output
    for fact in (
        "format 3", f"{bundle.parameters:,} parameters", "optical: 3 bands, scale 1", "radar: 1 band, scale 2",
        "band  2: 1 to 11, fill 4", "5 x 5 reference pixels", "open water", "#466b9f", "0.7000", "0.4000", "temperature 1.3",
        "run first try!", "scenes valley, hill", "epoch 4", "overall accuracy 0.876", "mibf 0.1.0", "checked: SHA-256",
    ):  # fmt: skip
        assert fact in result.output
    assert show(str(folder / MODEL)).output == result.output


def test_show_as_json_is_model_json_and_sizes(folder: Path, files: dict[str, bytes]) -> None:
    told = json.loads(show(str(folder), "--json").stdout)
    assert json.loads(files[MODEL]).items() <= told.items()
    assert told["files"] == {name: len(files[name]) for name in (WEIGHTS, MODEL, CARD)}
    (folder / CARD).unlink()
    assert json.loads(show(str(folder), "--json").stdout)["files"][CARD] is None
    assert "no README.md" in show(str(folder)).stdout


def test_show_reads_an_old_format(folder: Path, files: dict[str, bytes]) -> None:
    (folder / MODEL).write_bytes(changed(files, format=2, priors=None, weights=None, properties=None)[MODEL])
    result = show(str(folder))
    assert result.exit_code == 0, result.output
    assert "not checked: a bundle of format 2 has no SHA-256" in result.stdout
    assert "shares of the classes in training are not known" in result.stdout


def test_show_tells_the_range_of_many_bands(tmp_path: Path) -> None:
    spec = NetworkSpec((SourceSpec("optical", 64), SourceSpec("radar", 1)), classes=3)
    write_bundle(str(tmp_path), make(spec=spec, provenance={}, priors=None))
    told = show(str(tmp_path)).stdout
    assert "optical: 64 bands" in told
    assert "low 0 to 63, high 10 to 73" in told
    assert "none is recorded" in told


def test_show_refuses_what_is_no_whole_bundle(folder: Path) -> None:
    def refused(url: Path | str) -> str:
        result = show(str(url))
        assert result.exit_code == 2, result.output
        return str(result.stderr)

    assert f"{folder / 'nowhere'}: no model bundle" in refused(folder / "nowhere")
    assert "WORKSPACE/models/RUN" in refused(folder / "nowhere")
    assert "no model bundle" in refused(folder / "README.md" / "x")
    assert "ftq" in refused("ftq://host/model")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:1000])
    assert f"{folder}: {WEIGHTS} is cut short: 1,000 bytes of {len(whole):,}" in refused(folder)
    (folder / WEIGHTS).unlink()
    assert f"{folder}: has {MODEL} and no {WEIGHTS}" in refused(folder)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save({"a": torch.zeros(2)}))
    (folder / MODEL).write_text("{")
    assert f"{folder}: the model bundle is damaged" in refused(folder)
