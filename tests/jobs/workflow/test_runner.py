"""Running a stage: skipped if current, recorded only once it has finished; workspaces of an earlier version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.runtime.progress import warn
from jobs.runtime.version import library_versions
from jobs.workflow.errors import StageError
from jobs.workflow.manifest import StageResult, legacy_stages, read_manifest
from jobs.workflow.runner import invalidate, run_stage
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io.lease import Lease
from tests.support.mapped_scene import Mapped
from tests.support.scenes import SmallScene


class Work:
    """A stage that writes one file; it counts its calls and can fail after it has invalidated the earlier result."""

    def __init__(self) -> None:
        self.calls, self.fails = 0, False

    def __call__(self, config: Config, workspace: Workspace, fingerprint: str, lease: Lease) -> StageResult:
        self.calls += 1
        invalidate(workspace, "prepare", lease)
        if self.fails:
            raise StageError("the disk is full")
        warn("files are compressed badly")
        output = Path(workspace.url) / "result"
        output.write_text(fingerprint)
        return StageResult({"pixels": 9}, [f"prepared {config.name}"], [str(output)])


def test_finished_stage_is_recorded_and_skipped_while_current(scene: SmallScene) -> None:
    config, work = load(str(scene.write_config())), Work()
    manifest, ran = run_stage(config, "prepare", work, keep_current=True)
    assert ran
    assert (manifest.stage, manifest.figures, manifest.lines) == ("prepare", {"pixels": 9}, ["prepared small"])
    assert manifest.warnings == ["files are compressed badly"]
    assert manifest == read_manifest(Workspace.of(config), "prepare")
    assert run_stage(config, "prepare", work, keep_current=True) == (manifest, False)
    assert work.calls == 1


def test_manifest_records_the_libraries_and_upgrades_are_reported_once(
    scene: SmallScene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, work = load(str(scene.write_config())), Work()
    manifest, _ = run_stage(config, "prepare", work, keep_current=True)
    assert manifest.versions == library_versions()
    run_stage(config, "prepare", work, keep_current=True)
    assert "was made with" not in capsys.readouterr().err
    monkeypatch.setattr("jobs.workflow.runner.library_versions", lambda: manifest.versions | {"proj": "99.0.0"})
    for _ in range(2):
        assert run_stage(config, "prepare", work, keep_current=True) == (manifest, False), "it stays current"
    printed = capsys.readouterr().err
    assert printed.count(f"`prepare` was made with PROJ {manifest.versions['proj']} (now 99.0.0); it is used as it is") == 1
    assert "stale_on_upgrade" in printed


def test_stage_runs_again_if_forced_changed_or_without_its_output(scene: SmallScene) -> None:
    path, work = str(scene.write_config()), Work()
    run_stage(load(path), "prepare", work, keep_current=True)
    assert run_stage(load(path), "prepare", work, keep_current=False)[1]
    assert run_stage(load(path, overrides=["split.seed=1"]), "prepare", work, keep_current=True)[1]
    (scene.folder / "work/result").unlink()
    assert run_stage(load(path, overrides=["split.seed=1"]), "prepare", work, keep_current=True)[1]


def test_failed_stage_is_unfinished_even_if_it_had_finished_before(scene: SmallScene) -> None:
    config, work = load(str(scene.write_config())), Work()
    run_stage(config, "prepare", work, keep_current=True)
    work.fails = True
    with pytest.raises(StageError, match="the disk is full"):
        run_stage(config, "prepare", work, keep_current=False)
    assert read_manifest(Workspace.of(config), "prepare") is None


def test_stage_whose_dependency_is_unfinished_is_refused_before_it_starts(scene: SmallScene) -> None:
    config, work = load(str(scene.write_config())), Work()
    with pytest.raises(InputError, match="`prepare` is not finished"):
        run_stage(config, "train", work, keep_current=True)
    assert work.calls == 0
    assert not (scene.folder / "work").exists()


def forget_algorithm_versions(folder: Path) -> None:
    """Make the manifests of a workspace those of a version that hashed its source code."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text())
        if isinstance(values, dict) and values.pop("algorithm_version", None) is not None:
            path.write_text(json.dumps(values | {"fingerprint": "0" * 20}))


@pytest.mark.slow
def test_workspace_of_an_earlier_version_is_reported_in_one_line_and_can_still_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scene").mkdir()
    mapped = Mapped.make(tmp_path / "scene")
    forget_algorithm_versions(mapped.folder / "work")
    monkeypatch.setattr("jobs.workflow.runner._legacy_checked", set())  # as in a new process
    workspace = Workspace.of(load(str(mapped.config)))
    assert legacy_stages(workspace) == ["prepare", "train"]
    done = mapped.does("map")  # from the store and with the model of the earlier version
    assert done.stderr.count("earlier version of mibf") == 1
    assert "prepare, train finished with an earlier version of mibf" in done.stderr
    refused = mapped.does("evaluate", status=2)  # cannot know whether the model has seen these test pixels
    assert "run `mibf train` first, or `mibf run`" in refused.stderr
