"""The report, the model card and `mibf bundle show` of boosted trees, and of a blend of networks and boosted trees."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli.common import app
from jobs.config.loader import load
from jobs.report.stage import report
from jobs.workflow.workspace import Workspace
from mibf.bundle.members import KIND_NAMES
from pipeline.io import storage
from pipeline.io.lease import Lease
from tests.support.commands import run
from tests.support.scenes import SmallScene, make_scene

QUICK: dict[str, Any] = {"recipe": "standard", "batch_size": 64, "workers": 0, "threads": 1}
MAP = {"workers": 0, "tile_size": 256}


def page_of(scene: SmallScene) -> str:
    return unescape((scene.folder / "work/report/index.html").read_text())


def training_of(page: str) -> str:
    """The page's text on training, without markup."""
    section = page[page.index("<h2>Training</h2>") : page.index("<h2>Run time and memory</h2>")]
    return " ".join(re.sub(r"<[^>]+>", " ", section).split())


def shown(scene: SmallScene) -> str:
    return CliRunner().invoke(app, ["bundle", "show", str(scene.folder / "work/models/main")]).output


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> SmallScene:
    """A scene that was mapped and reported on with a blend of two networks and boosted trees."""
    scene = make_scene(tmp_path_factory.mktemp("blend"))
    train = QUICK | {
        "steps": 30,
        "validate_steps": 15,
        "batch_norm_samples": 512,
        "blend": True,
        "seeds": [0, 1],
        "ensemble": True,
    }
    run(scene, command="run", train=train, map=MAP)
    return scene


def test_report_of_boosted_trees_has_rounds_and_no_curve(scene: SmallScene) -> None:
    run(scene, command="run", model={"patch": 5, "kind": "boosting"}, train=QUICK, map=MAP)
    chosen = json.loads((scene.folder / "work/models/main/model.json").read_text())["provenance"]["chosen"]
    page = page_of(scene)
    text = training_of(page)
    assert f"boosted trees 1.000 {chosen['temperature']:.2f}" in text
    assert f"Boosted trees of {chosen['rounds']} rounds" in text
    assert f"validation subset: {chosen['validation_overall_accuracy']:.3f}." in text
    assert "by epoch" not in page
    assert "members" not in text
    assert "temperatures of the members, which were fitted on validation pixels" in " ".join(page.split())
    card = (scene.folder / "work/models/main/README.md").read_text()
    assert "It uses means and deviations of the 7 x 7 reference pixels around each pixel. 0 parameters" in card
    assert f"{chosen['rounds']} rounds of boosting; validation pixels decided their number." in card
    found = shown(scene)
    assert f"  rounds {chosen['rounds']}; on validation pixels overall accuracy" in found
    assert "7 x 7 reference pixels" in found
    assert "widths" not in found
    assert "5 x 5" not in card + found


def test_boosted_trees_without_validation_pixels_are_not_called_calibrated(scene: SmallScene) -> None:
    split = {"method": "random", "train": 0.1, "validation": 0}
    run(scene, command="run", model={"patch": 5, "kind": "boosting"}, train=QUICK, map=MAP, split=split)
    assert "no temperature was fitted" in page_of(scene)
    card = (scene.folder / "work/models/main/README.md").read_text()
    assert "60 rounds of boosting, a fixed number." in card
    assert "There were no validation pixels, so confidences are not calibrated." in card


def test_report_of_a_blend_has_its_members_and_the_curve_of_the_best_network(blend: SmallScene) -> None:
    model = json.loads((blend.folder / "work/models/main/model.json").read_text())
    members, provenance = model["members"], model["provenance"]
    assert [member["kind"] for member in members[:2]] == ["network", "network"]
    assert {member["kind"] for member in members[2:]} <= {"trees", "linear"}
    page = page_of(blend)
    text = training_of(page)
    for member in members:
        assert f"{KIND_NAMES[member['kind']]} {member['share']:.3f} {member['temperature']:.2f}" in text
    assert sum(member["share"] for member in members) == pytest.approx(1)
    assert f"network of seed {provenance['seed']}; epoch {provenance['chosen']['epoch']} is in the model." in text
    assert "training against validation" in page
    assert "trials" not in text.lower()
    card = (blend.folder / "work/models/main/README.md").read_text()
    both = "the 5 x 5 reference pixels around each pixel for its networks, and means and deviations of the 7 x 7"
    assert both in card
    found = shown(blend)
    assert both in found
    assert ", ".join(f"{name} {m['share']:.2f}" for name, m in zip(("network", "network"), members, strict=False)) in found
    assert "widths" in found


def test_blend_whose_networks_get_no_share_is_described_as_boosted_trees(scene: SmallScene) -> None:
    """After four steps, networks are no better than chance."""
    run(scene)
    done = run(scene, command="train", train=QUICK | {"steps": 4, "blend": True}, map=MAP)
    assert "networks were trained, too, but got no share" in done["stages"][0]["lines"][0]
    chosen = json.loads((scene.folder / "work/models/main/model.json").read_text())["provenance"]["chosen"]
    assert "epoch" not in chosen
    assert f"{chosen['rounds']} rounds of boosting" in (scene.folder / "work/models/main/README.md").read_text()


def test_report_shows_the_trials_of_the_recipe_auto(blend: SmallScene) -> None:
    config = load(str(blend.folder / "small.yaml"))
    workspace = Workspace.of(config)
    figures = {"overall_accuracy": 0.8125, "macro_f1": 0.7, "kappa": 0.6, "log_loss": 0.5, "ece": None}
    row = {"steps": [100], "shares": [1.0], "figures": figures, "intervals": None, "seconds": 3.21}
    trials = {
        "rows": [
            row | {"name": "network & more", "chosen": True, "why": "the best"},
            row | {"name": "boosted trees", "chosen": False, "why": "1.2 points below"},
        ],
        "sentence": "chosen: network & more",
        "samples": 12000, "blocks": 17, "side": 20, "folds": 3,
    }  # fmt: skip  # a list of numbers
    made = workspace.read_bundle().provenance["fingerprint"]
    for record, wanted in (
        ({"fingerprint": made, "lines": [], "trials": trials}, "network & more 100 0.812 0.700 0.600 0.500 - 3.2 the best"),
        ({"fingerprint": made, "lines": ["no trials: one block"]}, "Trials of the recipe auto no trials: one block."),
        ({"fingerprint": "of another training", "lines": [], "trials": trials}, None),
    ):
        storage.write_json(workspace.trials, record)
        report(config, workspace, "print", Lease())
        text = training_of(unescape(storage.read_bytes(workspace.report).decode()))
        assert wanted in text if wanted else "Trials of the recipe" not in text
    Path(workspace.trials).unlink()
