"""Models other than a single network: boosted trees, several networks, a blend, and the recipe `auto`, in this process."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.config.train import ModelSection, SamplingSection, TrainSection
from jobs.evaluate.stage import evaluate
from jobs.models import auto, members
from jobs.models.members import fit_members
from jobs.train.stage import _reach_notes, train
from jobs.trials.candidates import Candidate
from jobs.trials.folds import Fold, Folds
from jobs.trials.networks import NetworkRecipe
from jobs.trials.table import Choice, Member, TrialRow
from jobs.workflow.runner import run_stage
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.bundle.members import LinearMember, TreesMember
from mibf.ensemble import Blend
from mibf.errors import InputError
from mibf.network.spec import BETWEEN
from pipeline.io import storage
from tests.support.bundles import make_bundle
from tests.support.networks import spec_of
from tests.support.scenes import SmallScene, make_scene

Prepared = tuple[SmallScene, Workspace]
FAST: dict[str, Any] = {
    "recipe": "standard",
    "steps": 30,
    "validate_steps": 15,
    "batch_size": 64,
    "batch_norm_samples": 512,
    "workers": 0,
}


@pytest.fixture
def own(prepared: Prepared, tmp_path: Path) -> SmallScene:
    """The small scene, prepared, in a folder of the test."""
    return copy_of(prepared, tmp_path)


def copy_of(prepared: Prepared, folder: Path) -> SmallScene:
    scene, workspace = prepared
    copied = SmallScene(folder, scene.truth, scene.optical)
    make_scene(folder)
    shutil.copytree(workspace.url, folder / "work")
    return copied


def configured(scene: SmallScene, **changes: Any) -> Config:
    train_section = FAST | changes.pop("train", {})
    return load(str(scene.write_config(train=train_section, **changes)))


def trained(config: Config) -> tuple[Any, Workspace]:
    run_stage(config, "prepare", _prepare, keep_current=True)
    manifest, _ = run_stage(config, "train", train, keep_current=True)
    return manifest, Workspace.of(config)


def _prepare(*arguments: Any) -> Any:
    from jobs.prepare.stage import prepare

    return prepare(*arguments)


def test_boosted_trees_are_trained_evaluated_and_calibrated(own: SmallScene) -> None:
    config = configured(own, model={"patch": 5, "kind": "boosting"})
    manifest, workspace = trained(config)
    bundle = workspace.read_bundle()
    assert [m.kind for m in bundle.members] == ["trees"]
    assert bundle.parameters == 0
    assert manifest.figures["chosen"]["rounds"] > 0
    assert bundle.members[0].temperature == pytest.approx(manifest.figures["chosen"]["temperature"])
    evaluated, _ = run_stage(config, "evaluate", evaluate, keep_current=True)
    assert evaluated.figures["overall_accuracy"] > 0.9
    assert set(evaluated.figures["by_priors"]) == {"trained", "natural", "uniform"}
    assert evaluated.figures["members"][0]["kind"] == "trees"
    _, again = trained(configured(own, model={"patch": 5, "kind": "boosting"}, run="again"))
    other = again.read_bundle()
    assert other.trees[0].text == bundle.trees[0].text, "the same seed gives the same trees"


def test_boosted_trees_need_one_source_only(own: SmallScene) -> None:
    _, workspace = trained(configured(own, model={"patch": 5, "kind": "boosting", "sources": ["radar"]}))
    bundle = workspace.read_bundle()
    assert [s.name for s in bundle.spec.sources] == ["radar"]


def test_logistic_regression_is_trained_evaluated_and_calibrated(own: SmallScene) -> None:
    config = configured(own, model={"patch": 5, "kind": "linear", "penalty": 1e-4})
    manifest, workspace = trained(config)
    bundle = workspace.read_bundle()
    assert [m.kind for m in bundle.members] == ["linear"]
    assert bundle.members[0].temperature == pytest.approx(manifest.figures["chosen"]["temperature"])
    evaluated, _ = run_stage(config, "evaluate", evaluate, keep_current=True)
    assert evaluated.figures["overall_accuracy"] > 0.9
    _, other = trained(configured(own, model={"patch": 5, "kind": "linear", "penalty": 10.0}, run="strong"))
    strong = other.read_bundle().linear[0].weights["coefficients"]
    assert strong.norm() < bundle.linear[0].weights["coefficients"].norm(), "the penalty shrinks the coefficients"


@pytest.mark.parametrize(
    ("split", "noted"),
    [
        ({"method": "blocks", "buffer": 4}, True),
        ({"method": "blocks", "buffer": 6}, False),
        ({"method": "random", "buffer": 0}, False),
        ({"method": "raster", "buffer": None}, False),
    ],
)
def test_buffer_narrower_than_the_features_is_noted(split: dict[str, Any], noted: bool) -> None:
    assert bool(_reach_notes(split)) is noted


def test_trees_and_logistic_regression_make_a_model_without_networks(own: SmallScene) -> None:
    _, workspace = trained(configured(own, model={"patch": 5, "kind": "boosting"}, train={"blend": True}))
    bundle = workspace.read_bundle()
    assert not bundle.networks
    assert {m.kind for m in bundle.members} <= {"trees", "linear"}
    assert sum(m.share for m in bundle.members) == pytest.approx(1)
    assert bundle.provenance["chosen"]["temperature"] == bundle.members[0].temperature


def test_balanced_sampling_weights_the_samples_of_trees(own: SmallScene) -> None:
    """Priors mean the same for trees as for networks: with balanced frequencies all classes count the same."""
    config = configured(own, model={"patch": 5, "kind": "boosting"}, sampling={"frequencies": "balanced"})
    _, workspace = trained(config)
    priors = workspace.read_bundle().priors
    assert priors is not None
    assert priors.trained == pytest.approx((1 / 3,) * 3)


def test_seeds_make_one_model_of_several_networks_and_trees(own: SmallScene) -> None:
    config = configured(own, train={"seeds": [3, 4], "ensemble": True, "blend": True})
    manifest, workspace = trained(config)
    bundle = workspace.read_bundle()
    assert [m.kind for m in bundle.members][:2] == ["network", "network"]
    assert bundle.members[0].share == bundle.members[1].share
    assert sum(m.share for m in bundle.members) == pytest.approx(1)
    assert bundle.provenance["member_seeds"] == [3, 4]
    assert not any(name.startswith("seed-") for name in storage.names(workspace.bundle))
    assert manifest.figures["parameters"] == bundle.parameters > 0
    evaluated, _ = run_stage(config, "evaluate", evaluate, keep_current=True)
    assert evaluated.figures["temperature"] is None
    assert len(evaluated.figures["seeds"]) == 1


def test_ensemble_of_one_seed_is_refused(own: SmallScene) -> None:
    with pytest.raises(InputError, match=r"makes one model of several networks, but there is one seed"):
        configured(own, train={"ensemble": True})


def test_member_that_knows_nothing_gets_no_share_and_networks_share_equally() -> None:
    network = make_bundle().networks[0]
    bundle = replace(make_bundle(), members=(network, network, TreesMember("")))
    labels = np.arange(300) % 3
    right = 4.0 * np.eye(3)[labels]
    wrong = np.random.default_rng(0).normal(size=(300, 3))
    assert fit_members(bundle, [wrong, wrong, right], labels).shares == (0.0, 0.0, 1.0)
    assert fit_members(bundle, [right, right, wrong], labels).shares == (0.5, 0.5, 0.0)
    assert fit_members(bundle, [right, right, right], labels).shares == pytest.approx((0.25, 0.25, 0.5))


@pytest.mark.parametrize("shares", [(1.0, 0.0, 0.0), (0.6, 0.4, 0.0), (0.6, 0.0, 0.4), (0.0, 0.7, 0.3), (0.5, 0.3, 0.2)])
def test_members_without_a_planned_share_are_left_out(shares: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials may give any of the kinds a share; the others were trained, too, and are dropped."""
    labels = np.arange(300) % 3
    logits = {"network": 2.0 * np.eye(3)[labels], "trees": 3.0 * np.eye(3)[labels], "linear": 4.0 * np.eye(3)[labels]}

    def of_members(bundle: Bundle, *_: Any) -> Any:
        return [logits[member.kind] for member in bundle.members], labels

    monkeypatch.setattr(members, "draw_pixels", lambda *_, **__: [object()])
    monkeypatch.setattr(members, "member_logits", of_members)
    network = make_bundle().networks[0]
    given = members.combine(make_bundle(), [network, network], [TreesMember("a"), LinearMember({})])
    trials = members.TrialBlend(Blend((4.0, 4.0, 4.0), shares), weight=1.0)
    found = members.fit_to_validation(given, [], seed=0, trials=trials)
    by_kind: dict[str, float] = {}
    for member in found.members:
        by_kind[member.kind] = by_kind.get(member.kind, 0) + member.share
    expected = {kind: share for kind, share in zip(("network", "trees", "linear"), shares, strict=True) if share > 0}
    assert by_kind == pytest.approx(expected)
    assert all(member.temperature < 4.0 for member in found.members), "validation pixels support more confidence"


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 0.5), (0.25, 0.875), (0.0, 1.0)])
def test_trials_count_less_the_more_samples_training_has(
    weight: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials saw no difference; on validation pixels the network knows all classes and the trees none."""
    labels = np.arange(300) % 3
    logits = {"network": 4.0 * np.eye(3)[labels], "trees": np.random.default_rng(0).normal(size=(300, 3))}

    def of_members(bundle: Bundle, *_: Any) -> Any:
        return [logits[member.kind] for member in bundle.members], labels

    monkeypatch.setattr(members, "draw_pixels", lambda *_, **__: [object()])
    monkeypatch.setattr(members, "member_logits", of_members)
    given = members.combine(make_bundle(), [make_bundle().networks[0]], [TreesMember("a")])
    trials = members.TrialBlend(Blend((1.0, 1.0), (0.5, 0.5)), weight=weight)
    found = members.fit_to_validation(given, [], seed=0, trials=trials)
    assert sum(member.share for member in found.networks) == pytest.approx(expected)
    assert sum(member.share for member in found.members) == pytest.approx(1)
    unseen = members.TrialBlend(Blend((1.0, 1.0), (0.0, 1.0)), weight=weight)
    kinds = {member.kind for member in members.fit_to_validation(given, [], seed=0, trials=unseen).members}
    assert ("network" in kinds) == (weight < 1), "validation pixels can give a share to what had none in the trials"


def test_weight_of_trials_follows_the_samples_that_they_train_on() -> None:
    assert auto.trial_weight(8000, 8000) == 1
    assert auto.trial_weight(8000, 40_000) == 1
    assert auto.trial_weight(8000, 80_000) == pytest.approx(0.5)
    assert auto.trial_weight(8000, 800_000) == pytest.approx(0.05)


# --- auto ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of few samples and steps."""
    shorten(monkeypatch)


def shorten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(auto, "SAMPLES", 600)
    patch.setattr(auto, "STEPS", (4, 8))
    patch.setattr(auto, "ROUNDS", (5,))
    patch.setattr(auto, "STATISTICS", 512)


@pytest.fixture(scope="module")
def chosen(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Any, Workspace]:
    """A configuration with the recipe `auto`, trained once, with its manifest and workspace."""
    scene = copy_of(prepared, tmp_path_factory.mktemp("chosen"))
    config = load(str(scene.write_config(train={"recipe": "auto", "workers": 0, "budget_minutes": 1.0})))
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        return config, *trained(config)


@pytest.mark.usefixtures("quick")
def test_auto_reports_what_it_tried_and_trains_what_it_chose(chosen: tuple[Config, Any, Workspace]) -> None:
    config, manifest, workspace = chosen
    record = storage.read_json(workspace.trials)
    names = {row["name"] for row in record["trials"]["rows"]}
    assert {"boosted trees", "network", "network, turned patches"} <= names
    assert sum(row["chosen"] for row in record["trials"]["rows"]) == 1
    assert any("chosen:" in line for line in record["lines"])
    bundle = workspace.read_bundle()
    assert sum(m.share for m in bundle.members) == pytest.approx(1)
    assert manifest.figures["chosen"]["validation_overall_accuracy"] > 0.5
    again, ran = run_stage(config, "train", train, keep_current=True)
    assert not ran
    assert again.fingerprint == manifest.fingerprint


def test_trials_of_one_source_try_no_source_alone(own: SmallScene) -> None:
    spec = spec_of((400,), without=BETWEEN)
    recipes = auto._recipes(load(str(own.write_config())), spec, batch=32)
    assert [recipe.name for recipe in recipes] == ["network", "network, turned patches"]
    assert all(recipe.spec(spec) == spec for recipe in recipes)


@pytest.mark.parametrize(
    "change", ["map.products=[class, gate]", "train.source_dropout=0.2", "model.sources=[radar, optical]"]
)
def test_trials_try_no_source_alone_where_several_are_needed(own: SmallScene, change: str) -> None:
    path, spec = str(own.write_config()), spec_of((3, 1))
    assert len(auto._recipes(load(path), spec, batch=32)) == 4
    assert len(auto._recipes(load(path, overrides=[change]), spec, batch=32)) == 2


def test_sources_for_which_trials_had_no_time_are_one_note(own: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(auto, "network_candidates", lambda *_, **__: ([], []))
    config = load(str(own.write_config(train={"recipe": "auto", "blend": False})))
    spec = spec_of((1,) * 12)
    recipes = auto._recipes(config, spec, batch=32)
    found = auto._candidates(config, None, None, spec, recipes, seconds=5, clock=lambda: next(seconds))  # type: ignore[arg-type]  # not read
    assert len(recipes) == 14
    assert found[1] == [
        "network on s2 alone, network on s3 alone, network on s4 alone and 7 more: not tried, because the time for trials "
        "was used up"
    ]


@pytest.mark.usefixtures("quick")
def test_resumed_training_keeps_the_recorded_choice(
    chosen: tuple[Config, Any, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _, workspace = chosen
    before = workspace.read_bundle().digest
    storage.remove(workspace.manifest("train"))
    monkeypatch.setattr(auto, "read_trial_samples", _unexpected)
    trained(config)
    assert workspace.read_bundle().digest == before


def _unexpected(*_: Any, **__: Any) -> Any:
    raise AssertionError("the trials were repeated")


@pytest.mark.usefixtures("quick")
def test_auto_keeps_what_the_configuration_gives(own: SmallScene) -> None:
    values = {
        "recipe": "auto", "workers": 0, "budget_minutes": 1.0, "steps": 6, "augment": True, "seeds": [7], "batch_size": 32,
    }  # fmt: skip  # one per line would fill a page
    config = load(str(own.write_config(train=values)))
    _, workspace = trained(config)
    record = storage.read_json(workspace.trials)
    assert not {"steps", "augment", "seeds", "batch_size"} & set(record["train"])
    assert "network" not in {row["name"] for row in record["trials"]["rows"]}, "only with turned patches, as given"
    bundle = workspace.read_bundle()
    assert len(bundle.networks) <= 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("blend", [True, False])
def test_blend_that_is_given_limits_what_auto_tries(own: SmallScene, blend: bool) -> None:
    values = {"recipe": "auto", "workers": 0, "budget_minutes": 0.2, "steps": 6, "blend": blend, "augment": False}
    config = load(str(own.write_config(train=values)))
    _, workspace = trained(config)
    record = storage.read_json(workspace.trials)
    assert ("boosted trees" in {row["name"] for row in record["trials"]["rows"]}) is blend
    assert "blend" not in record["train"]
    assert load(workspace.configuration).train.blend is blend, "the saved configuration trains the same model"
    bundle = workspace.read_bundle()
    assert blend or not bundle.pixelwise
    assert sum(m.share for m in bundle.members) == pytest.approx(1)


def test_network_of_a_blend_that_is_given_is_the_best_one_of_the_trials() -> None:
    """Where the trials choose trees alone or a network alone, their shares are of no use for the blend."""
    figures = dict.fromkeys(("overall_accuracy", "macro_f1", "kappa", "ece"), 0.5)
    rows = [
        TrialRow(name, (kind,), (steps,), (1.0,), (1.5,), figures | {"log_loss": loss}, None, 1.0, kind == "trees", "")
        for name, kind, steps, loss in (
            ("boosted trees", "trees", 30, 0.1),
            ("network", "network", 100, 0.4),
            ("network", "network", 200, 0.3),
        )
    ]
    chosen = Choice(tuple(rows), (Member("boosted trees", "trees", 30, 1.5, 1.0),), "chosen: trees.", 10, 4, 16, 3, ())
    candidates = [Candidate(r.name, "network", r.steps[0], np.zeros((1, 2)), 1.0) for r in rows]
    folds = Folds((Fold(np.arange(5), np.arange(5)),), np.zeros(5, np.int64), 16, np.zeros(5, np.int64))
    for blend, kind, shares in ((None, "boosting", [0.0, 1.0]), (True, None, [])):
        section = {"recipe": "auto"} | ({} if blend is None else {"blend": blend})
        config = SimpleNamespace(
            train=TrainSection.model_validate(section), model=ModelSection(), sampling=SamplingSection()
        )
        found = auto._from_choice(
            config,  # type: ignore[arg-type]  # only these sections are read
            chosen,
            candidates,
            [NetworkRecipe("network")],
            folds,
            5,
            batch=64,
            seconds=1e9,
            notes=(),
        )
        assert found["model"].get("kind") == kind
        assert found["shares"] == shares
        if blend:
            assert found["train"]["steps"] == 400, "twice the 200 steps at which the loss still fell"


def test_budget_grows_with_the_samples_within_limits(own: SmallScene) -> None:
    config = configured(own)
    assert auto.budget_seconds(config, 100) == 60 * auto.LEAST_MINUTES
    assert auto.budget_seconds(config, 4 * auto.SMALL) == 2 * 60 * auto.LEAST_MINUTES
    assert auto.budget_seconds(config, 10**9) == 60 * auto.MOST_MINUTES
    assert auto.budget_seconds(configured(own, train={"budget_minutes": 0.5}), 10**9) == 30


def test_budget_of_zero_is_refused(own: SmallScene) -> None:
    with pytest.raises(InputError, match=r"budget_minutes"):
        configured(own, train={"budget_minutes": 0})


def test_recipes_differ_in_their_fingerprints(own: SmallScene) -> None:
    from jobs.workflow.fingerprint import fingerprint

    one = load(str(own.write_config(train={"recipe": "standard"})))
    two = load(str(own.write_config(train={"recipe": "auto"})))
    assert fingerprint(one, "train") != fingerprint(two, "train")


@pytest.mark.usefixtures("quick")
def test_record_of_trials_holds_no_values_that_json_cannot(own: SmallScene) -> None:
    config = load(str(own.write_config(train={"recipe": "auto", "workers": 0, "budget_minutes": 0.05})))
    _, workspace = trained(config)
    json.loads(storage.read_bytes(workspace.trials), parse_constant=_unexpected)
