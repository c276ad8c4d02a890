"""`mibf map`, `rerun`, `status`: only failed, stale or missing tiles are mapped; the result equals a map from scratch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import jobs.map.scene_map
from jobs.runtime.version import library_versions
from pipeline.io import storage
from tests.support.mapped_scene import TILES, Mapped
from tests.support.scenes import write_raster

pytestmark = pytest.mark.slow
#: Tiles whose window, including the halo of two pixels, overlaps the bottom-right shard, which starts at pixel 128.
AT_CORNER = ["y64_x64", "y64_x128", "y128_x64", "y128_x128"]
ELSEWHERE = [tile for tile in TILES if tile not in AT_CORNER]


@pytest.fixture
def mapped(trained: Mapped, tmp_path: Path) -> Mapped:
    """A private copy of the trained scene, without a map."""
    return trained.copy(tmp_path / "scene")


@pytest.fixture
def done(reference: Mapped, tmp_path: Path) -> Mapped:
    """A private copy of the mapped scene."""
    return reference.copy(tmp_path / "scene")


def truncate_shard(path: Path) -> bytes:
    """Truncate a shard's file, as an interrupted write does, and return its original content."""
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    return content


def change_corner(mapped: Mapped) -> None:
    """Change the optical source in the bottom-right shard only, and prepare again."""
    optical = mapped.scene.optical.copy()
    optical[:, 130:, 128:] += 700
    write_raster(mapped.folder / "optical.tif", optical, nodata=0)
    mapped.does("prepare")


# --- versions of the libraries


def item_of(mapped: Mapped) -> Any:
    """The item of the published map."""
    return storage.read_json(str(mapped.map / "item.json"))


def test_rerun_after_an_upgrade_says_that_the_map_mixes_versions(done: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    change_corner(done)
    before = library_versions()
    after = before | {"gdal": "99.1.0"}
    monkeypatch.setattr(jobs.map.scene_map, "library_versions", lambda: after)
    printed = done.does("rerun").stderr
    assert f"small: 5 tiles finished with GDAL {before['gdal']} (now 99.1.0) are kept, so the map mixes versions" in printed
    assert item_of(done)["properties"]["mibf:versions"] == [before, after]
    done.does("map", "--restart")
    assert item_of(done)["properties"]["mibf:versions"] == [after]


# --- failed tiles


def test_damaged_shard_fails_only_overlapping_tiles(mapped: Mapped, reference: Mapped) -> None:
    content = truncate_shard(mapped.shard(1, 1))
    failed = mapped.does("map", status=3)
    assert "small: 4 of 9 tiles failed; nothing was published" in failed.stderr
    assert "then run `mibf rerun` to map only the remaining tiles" in failed.stderr
    assert "small/y64_x64, small/y64_x128, small/y128_x64 and 1 more: " in failed.stderr
    assert "sources/optical/c/0/1/1: is damaged" in failed.stderr
    assert not mapped.published()
    assert set(mapped.count("failed")) == set(AT_CORNER)
    assert set(mapped.count("done")) == set(ELSEWHERE)
    causes = {event["cause"] for event in mapped.events("failed")}
    assert all("sources/optical/c/0/1/1" in cause for cause in causes), causes

    status = mapped.does("status").stdout
    assert "small: 9 tiles: 5 done, 4 failed; nothing is published" in status
    assert "sources/optical/c/0/1/1" in status
    assert "small/y64_x64" in status
    (scene,) = mapped.does("status", "--json").json
    assert scene["tiles"] == {"pending": 0, "done": 5, "failed": 4, "stale": 0}
    assert scene["published"] is None
    assert not scene["current"]
    assert sorted(key for cause in scene["causes"] for key in cause["tiles"]) == sorted(f"small/{t}" for t in AT_CORNER)

    before = {event["tile"]: event for event in mapped.events("done")}
    mapped.shard(1, 1).write_bytes(content)
    rerun = mapped.does("rerun")
    assert "4 tiles mapped in " in rerun.stdout
    assert mapped.published() == reference.published()
    assert mapped.count("done") == dict.fromkeys(TILES, 1)
    after = {event["tile"]: event for event in mapped.events("done")}
    assert {tile: after[tile] for tile in ELSEWHERE} == before, "tiles that were done must not be mapped again"


def test_failed_tile_is_retried_up_to_map_attempts_and_each_attempt_is_recorded(mapped: Mapped) -> None:
    truncate_shard(mapped.shard(1, 1))
    failed = mapped.does("map", "map.attempts=3", status=3)
    assert failed.stderr.count("4 tiles failed; retrying") == 2
    assert mapped.count("failed") == dict.fromkeys(AT_CORNER, 3)
    assert [e["attempt"] for e in mapped.events("failed") if e["tile"] == "y64_x64"] == [1, 2, 3]
    assert mapped.count("done") == dict.fromkeys(ELSEWHERE, 1)
    mapped.does("rerun", "map.attempts=2", status=3)
    assert max(e["attempt"] for e in mapped.events("failed")) == 5, "attempts are counted across commands"


def test_map_with_failed_tiles_keeps_the_earlier_map_unchanged(done: Mapped) -> None:
    change_corner(done)
    before = {path: path.read_bytes() for path in done.map.iterdir() if path.is_file()}
    truncate_shard(done.shard(1, 1))
    failed = done.does("rerun", status=3)
    assert "4 of 9 tiles failed; the earlier map is still published" in failed.stderr
    assert {path: path.read_bytes() for path in done.map.iterdir() if path.is_file()} == before
    assert "is still published" in done.does("status").stdout


def test_tile_at_max_attempts_is_listed_and_skipped(mapped: Mapped, reference: Mapped) -> None:
    content = truncate_shard(mapped.shard(1, 1))
    mapped.does("map", "map.attempts=2", status=3)
    left = mapped.does("rerun", "--max-attempts", "2", status=3)
    assert "small/y64_x64, small/y64_x128, small/y128_x64 and 1 more: " in left.stderr
    assert "skipped 4 of the failed tiles, which had 2 or more failed attempts" in left.stderr
    assert mapped.count("failed") == dict.fromkeys(AT_CORNER, 2), "no failed tile was retried"
    mapped.shard(1, 1).write_bytes(content)
    mapped.does("rerun", "--max-attempts", "3")
    assert mapped.published() == reference.published()


def test_failed_tile_is_retried_only_after_backoff(mapped: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    truncate_shard(mapped.shard(1, 1))
    mapped.does("map", status=3)
    mapped.does("rerun", "--backoff", "3600", status=3)
    assert mapped.count("failed") == dict.fromkeys(AT_CORNER, 1), "the backoff of one hour has not elapsed"
    now = time.time()
    monkeypatch.setattr(jobs.map.scene_map.time, "time", lambda: now + 3700)
    mapped.does("rerun", "--backoff", "3600", status=3)
    assert mapped.count("failed") == dict.fromkeys(AT_CORNER, 2)


# --- selecting tiles


def test_rerun_with_nothing_to_do_prints_nothing(done: Mapped) -> None:
    before = done.files()
    silent = done.does("rerun")
    assert (silent.stdout, silent.stderr) == ("", "")
    summary = done.does("rerun", "--json").json
    assert summary["nothing_to_do"]
    assert summary["complete"]
    assert summary["scenes"][0]["tiles"] == {"pending": 0, "done": 9, "failed": 0, "stale": 0}
    for chosen in (["--failed"], ["--stale"], ["--missing"], ["--tiles", "y0_x0"]):
        assert done.does("rerun", *chosen).stdout == ""
    assert done.files() == before


def test_map_on_workers_with_nothing_to_do_does_not_import_ray(done: Mapped) -> None:
    """Importing Ray takes seconds."""
    (done.folder / "work/runs/main/manifests/map.json").unlink()  # otherwise the stage is skipped
    script = "import sys; from jobs.cli import app\napp(sys.argv[1:], standalone_mode=False); print('ray' in sys.modules)"
    arguments = done.arguments("map", "map.workers=2")
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "False"
    assert done.count("done") == dict.fromkeys(TILES, 1)


def test_preparing_unchanged_inputs_leaves_rerun_nothing_to_do(done: Mapped) -> None:
    before = done.published()
    done.does("prepare")
    assert done.does("rerun").stdout == ""
    assert done.does("rerun", "--json").json["nothing_to_do"]
    assert done.published() == before
    assert done.count("done") == dict.fromkeys(TILES, 1)


def test_rerun_tiles_option_maps_only_named_tiles(mapped: Mapped, reference: Mapped) -> None:
    """A tile is named by scene and corner, or by corner alone when there is only one scene."""
    part = mapped.does("rerun", "--tiles", "y0_x64", "--tiles", "small/y128_x0", status=3)
    assert "7 of 9 are pending; nothing was published" in part.stderr
    assert mapped.count("done") == {"y0_x64": 1, "y128_x0": 1}
    assert mapped.states() == {"done": 2, "pending": 7}
    mapped.does("rerun")
    assert mapped.count("done") == dict.fromkeys(TILES, 1)
    assert mapped.published() == reference.published()


@pytest.mark.parametrize("key", ["y0_x63", "other/y0_x0", "nonsense", ""])
def test_unknown_tile_name_is_rejected(done: Mapped, key: str) -> None:
    before = done.files()
    refused = done.does("rerun", "--tiles", key, status=2)
    assert f"--tiles {key}: no such tile" in refused.stderr
    assert "small/y0_x0" in refused.stderr, "the message shows a valid tile name"
    assert done.files() == before


def test_rerun_state_options_map_only_tiles_in_those_states(mapped: Mapped) -> None:
    """Start from four failed tiles and five pending ones."""
    content = truncate_shard(mapped.shard(1, 1))
    mapped.does("rerun", *(part for tile in AT_CORNER for part in ("--tiles", tile)), status=3)
    assert mapped.states() == {"failed": 4, "pending": 5}
    mapped.shard(1, 1).write_bytes(content)
    mapped.does("rerun", "--stale", status=3)
    assert mapped.states() == {"failed": 4, "pending": 5}
    mapped.does("rerun", "--missing", status=3)
    assert mapped.states() == {"failed": 4, "done": 5}
    change_corner(mapped)
    assert mapped.states() == {"stale": 4, "done": 5}, "failures with an earlier input count as stale"
    mapped.does("rerun", "--failed", status=3)
    assert mapped.states() == {"stale": 4, "done": 5}
    mapped.does("rerun", "--failed", "--stale")
    assert mapped.states() == {"done": 9}


def test_map_from_scratch_maps_all_tiles_again(done: Mapped, reference: Mapped) -> None:
    done.does("map", "--restart")
    assert done.count("done") == dict.fromkeys(TILES, 2)
    assert done.published() == reference.published()


# --- stale tiles


def test_changed_shard_makes_only_overlapping_tiles_stale(done: Mapped, tmp_path: Path) -> None:
    change_corner(done)
    status = done.does("status").stdout
    assert "small: 9 tiles: 5 done, 4 stale; the earlier map (" in status
    assert "the input changed" in status
    (scene,) = done.does("status", "--json").json
    assert scene["causes"] == [{"cause": "the input changed", "tiles": [f"small/{tile}" for tile in AT_CORNER]}]
    done.does("rerun")
    assert done.count("done") == {tile: 2 if tile in AT_CORNER else 1 for tile in TILES}
    assert {event["cause"] for event in done.events("stale")} == {"the input changed"}
    scratch = done.copy(tmp_path / "scratch")
    scratch.does("map", "--restart")
    assert done.published() == scratch.published()


def test_changed_split_leaves_tiles_current(done: Mapped) -> None:
    done.does("prepare", "split.seed=3")
    assert done.states("split.seed=3") == {"done": 9}


@pytest.mark.parametrize(
    "change", ["map.precision=bf16", "map.products=[class]", "map.tile_size=128", "prediction.priors=uniform"]
)
def test_changed_map_settings_make_all_tiles_stale(done: Mapped, change: str) -> None:
    """Tiles of another size are different tiles, unknown to the ledger and therefore pending."""
    (scene,) = done.does("status", "--json", change).json
    if change == "map.tile_size=128":
        assert scene["tiles"] == {"pending": 3, "done": 0, "failed": 0, "stale": 1}, "y0_x0 is a tile at both sizes"
    else:
        assert scene["tiles"]["stale"] == 9
        assert scene["causes"][0]["cause"] == "the settings or the algorithm version changed"
    assert not scene["current"]
    done.does("map", change)
    assert done.states(change)["done"] == sum(scene["tiles"].values())


@pytest.mark.parametrize("change", ["map.workers=1", "map.attempts=5", "map.backoff=2", "map.drift=ignore"])
def test_settings_that_do_not_affect_pixels_leave_the_map_current(done: Mapped, change: str) -> None:
    assert done.states(change) == {"done": 9}
    assert done.does("rerun", change).stdout == ""


def test_map_of_another_model_is_replaced_only_with_replace_option(done: Mapped, reference: Mapped) -> None:
    done.does("train", "train.seed=1")
    before = done.files()
    assert done.states() == {"stale": 9}
    assert "the model changed" in done.does("status").stdout
    for command in ("map", "rerun"):
        refused = done.does(command, status=2)
        assert "contains a map made by another model (9 tiles). Pass `--replace`" in refused.stderr
    assert done.files() == before
    done.does("rerun", "--replace")
    assert done.states() == {"done": 9}
    assert done.published() != reference.published()
    assert (done.pixels() != reference.pixels()).any()


# --- interrupted publishing


class HaltedError(Exception):
    """Simulate the end of the process."""


def interrupt(*_: object, **__: object) -> None:
    raise HaltedError


def interrupt_removal(mapped: Mapped, patch: pytest.MonkeyPatch) -> None:
    """Interrupt the removal of the working map halfway, once the map is published."""
    remove, shard = storage.remove, mapped.map / "map.zarr/class/c/0/0/0"

    def removed(url: str) -> None:
        if url.endswith("map.zarr") and shard.exists():
            shard.unlink()
            raise HaltedError
        remove(url)

    patch.setattr(storage, "remove", removed)


@pytest.mark.parametrize("step", ["encode_part", "replace_published", "working map removal"])
def test_rerun_completes_interrupted_publishing_without_mapping(
    mapped: Mapped, reference: Mapped, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patch:
        if step == "working map removal":
            interrupt_removal(mapped, patch)
        else:
            patch.setattr(f"pipeline.publishing.publish_map.{step}", interrupt)
        with pytest.raises(HaltedError):
            mapped.mibf("map")
    mapped.does("rerun")
    assert mapped.count("done") == dict.fromkeys(TILES, 1), "no tile was mapped again"
    assert mapped.published() == reference.published()
    assert not (mapped.map / "map.zarr").exists()
    assert mapped.does("rerun").stdout == ""


@pytest.mark.parametrize("number", [1, 2])
def test_replacement_interrupted_between_two_files_is_completed_and_keeps_all_tiles(
    done: Mapped, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The tiles that have not changed are in the published files alone, which are being replaced."""
    change_corner(done)
    real, calls = storage.move_file, list[str]()

    def moved(url: str, target: str) -> None:
        calls.append(target)
        if len(calls) == number:
            raise HaltedError
        real(url, target)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "move_file", moved)
        with pytest.raises(HaltedError):
            done.mibf("rerun")
    assert not (done.map / "item.json").exists()
    done.does("rerun")
    assert done.count("done") == {tile: 2 if tile in AT_CORNER else 1 for tile in TILES}
    kept = done.published()
    done.does("map", "--restart")
    assert done.published() == kept
    assert not list(done.map.glob(".staging*"))


def test_partly_removed_working_map_is_not_reused(done: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lacks tiles that the ledger records as done; then the input of other tiles changes."""
    with monkeypatch.context() as patch:
        interrupt_removal(done, patch)
        with pytest.raises(HaltedError):
            done.mibf("map", "--restart")
    change_corner(done)
    done.does("rerun")
    assert done.count("done") == {tile: 3 if tile in AT_CORNER else 2 for tile in TILES}
    kept = done.published()
    done.does("map", "--restart")
    assert done.published() == kept


def test_tile_missing_from_working_map_blocks_publishing_and_is_mapped_again(
    mapped: Mapped, reference: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.publishing.publish_map.encode_part", interrupt)
        with pytest.raises(HaltedError):
            mapped.mibf("map")
    (mapped.map / "map.zarr/class/c/0/1/1").unlink()
    lost = mapped.does("rerun", status=3)
    assert f"1 of {len(TILES)} are pending" in lost.stderr
    mapped.does("rerun")
    assert mapped.published() == reference.published()
    assert sorted(mapped.count("done").values()) == [1] * (len(TILES) - 1) + [2]
