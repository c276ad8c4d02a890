"""`mibf map`, `rerun`, `status`: what failed or has changed is mapped again, nothing else, and the map is as made anew."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import jobs.map
from pipeline import storage
from tests.conftest import write_raster
from tests.mapped import TILES, Mapped

pytestmark = pytest.mark.slow

#: The tiles whose window and halo of two pixels reach into the shard of the last rows and columns, from 128 on.
AT_CORNER = ["y64_x64", "y64_x128", "y128_x64", "y128_x128"]
ELSEWHERE = [tile for tile in TILES if tile not in AT_CORNER]


@pytest.fixture
def mapped(trained: Mapped, tmp_path: Path) -> Mapped:
    """A trained scene of the test's own, without a map."""
    return trained.copy(tmp_path / "scene")


@pytest.fixture
def done(whole: Mapped, tmp_path: Path) -> Mapped:
    """A mapped scene of the test's own."""
    return whole.copy(tmp_path / "scene")


def damage(path: Path) -> bytes:
    """Cut a shard's file short, as a torn write does; what it held."""
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    return content


def change_corner(mapped: Mapped) -> None:
    """Change the optical source in the shard of the last rows and columns alone, and prepare it."""
    optical = mapped.scene.optical.copy()
    optical[:, 130:, 128:] += 700
    write_raster(mapped.folder / "optical.tif", optical, nodata=0)
    mapped.does("prepare")


# --- tiles that fail


def test_a_damaged_shard_fails_the_tiles_that_reach_into_it_and_no_other(mapped: Mapped, whole: Mapped) -> None:
    content = damage(mapped.shard(1, 1))
    failed = mapped.does("map", status=3)
    assert "small: 4 of 9 tiles failed; nothing was published" in failed.stderr
    assert "then `mibf rerun` maps what is left, and nothing else" in failed.stderr
    assert "small/y64_x64, small/y64_x128, small/y128_x64 and 1 more: " in failed.stderr
    assert "sources/optical/c/0/1/1: is damaged" in failed.stderr
    assert not mapped.published()
    assert set(mapped.count("failed")) == set(AT_CORNER)
    assert set(mapped.count("done")) == set(ELSEWHERE)
    causes = {event["cause"] for event in mapped.events("failed")}
    assert all("sources/optical/c/0/1/1" in cause for cause in causes), causes

    told = mapped.does("status").stdout
    assert "small: 9 tiles: 5 done, 4 failed; nothing is published" in told
    assert "sources/optical/c/0/1/1" in told
    assert "small/y64_x64" in told
    (scene,) = mapped.does("status", "--json").json
    assert scene["tiles"] == {"pending": 0, "done": 5, "failed": 4, "stale": 0}
    assert scene["published"] is None
    assert not scene["current"]
    assert sorted(key for cause in scene["causes"] for key in cause["tiles"]) == sorted(f"small/{t}" for t in AT_CORNER)

    before = {event["tile"]: event for event in mapped.events("done")}
    mapped.shard(1, 1).write_bytes(content)
    mended = mapped.does("rerun")
    assert "4 tiles mapped in " in mended.stdout
    assert mapped.published() == whole.published()
    assert mapped.count("done") == dict.fromkeys(TILES, 1)
    after = {event["tile"]: event for event in mapped.events("done")}
    assert {tile: after[tile] for tile in ELSEWHERE} == before, "they were not touched"


def test_a_tile_is_tried_as_often_as_one_command_may_and_each_attempt_is_recorded(mapped: Mapped) -> None:
    damage(mapped.shard(1, 1))
    failed = mapped.does("map", "map.attempts=3", status=3)
    assert failed.stderr.count("4 tiles failed; trying again") == 2
    assert mapped.count("failed") == dict.fromkeys(AT_CORNER, 3)
    assert [e["attempt"] for e in mapped.events("failed") if e["tile"] == "y64_x64"] == [1, 2, 3]
    assert mapped.count("done") == dict.fromkeys(ELSEWHERE, 1)
    mapped.does("rerun", "map.attempts=2", status=3)
    assert max(e["attempt"] for e in mapped.events("failed")) == 5, "attempts are counted over commands"


def test_a_map_with_failed_tiles_leaves_the_earlier_map_as_it_was(done: Mapped) -> None:
    change_corner(done)
    before = {path: path.read_bytes() for path in done.map.iterdir() if path.is_file()}
    damage(done.shard(1, 1))
    failed = done.does("rerun", status=3)
    assert "4 of 9 tiles failed; the earlier map is still there" in failed.stderr
    assert {path: path.read_bytes() for path in done.map.iterdir() if path.is_file()} == before
    assert "is still there" in done.does("status").stdout


def test_a_tile_that_failed_too_often_is_listed_and_left_alone(mapped: Mapped, whole: Mapped) -> None:
    content = damage(mapped.shard(1, 1))
    mapped.does("map", "map.attempts=2", status=3)
    left = mapped.does("rerun", "--max-attempts", "2", status=3)
    assert "small/y64_x64, small/y64_x128, small/y128_x64 and 1 more: " in left.stderr
    assert "4 of the failed ones were tried 2 times or more and are left alone" in left.stderr
    assert mapped.count("failed") == dict.fromkeys(AT_CORNER, 2), "none was tried"
    mapped.shard(1, 1).write_bytes(content)
    mapped.does("rerun", "--max-attempts", "3")
    assert mapped.published() == whole.published()


def test_a_failed_tile_waits_as_long_as_is_asked_for(mapped: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(mapped.shard(1, 1))
    mapped.does("map", status=3)
    mapped.does("rerun", "--backoff", "3600", status=3)
    assert mapped.count("failed") == dict.fromkeys(AT_CORNER, 1), "an hour has not passed"
    now = time.time()
    monkeypatch.setattr(jobs.map.time, "time", lambda: now + 3700)
    mapped.does("rerun", "--backoff", "3600", status=3)
    assert mapped.count("failed") == dict.fromkeys(AT_CORNER, 2)


# --- what is asked for


def test_where_nothing_is_to_do_a_rerun_says_nothing(done: Mapped) -> None:
    before = done.files()
    silent = done.does("rerun")
    assert (silent.stdout, silent.stderr) == ("", "")
    told = done.does("rerun", "--json").json
    assert told["nothing_to_do"]
    assert told["complete"]
    assert told["scenes"][0]["tiles"] == {"pending": 0, "done": 9, "failed": 0, "stale": 0}
    for chosen in (["--failed"], ["--stale"], ["--missing"], ["--tiles", "y0_x0"]):
        assert done.does("rerun", *chosen).stdout == ""
    assert done.files() == before


def test_preparing_the_same_again_gives_a_rerun_nothing_to_do(done: Mapped) -> None:
    before = done.published()
    done.does("prepare")
    assert done.does("rerun").stdout == ""
    assert done.does("rerun", "--json").json["nothing_to_do"]
    assert done.published() == before
    assert done.count("done") == dict.fromkeys(TILES, 1)


def test_only_the_tiles_that_are_named_are_mapped(mapped: Mapped, whole: Mapped) -> None:
    """A tile goes by its scene and corner; where there is one scene, by its corner."""
    part = mapped.does("rerun", "--tiles", "y0_x64", "--tiles", "small/y128_x0", status=3)
    assert "7 of 9 are pending; nothing was published" in part.stderr
    assert mapped.count("done") == {"y0_x64": 1, "y128_x0": 1}
    assert mapped.states() == {"done": 2, "pending": 7}
    mapped.does("rerun")
    assert mapped.count("done") == dict.fromkeys(TILES, 1)
    assert mapped.published() == whole.published()


@pytest.mark.parametrize("key", ["y0_x63", "other/y0_x0", "nonsense", ""])
def test_a_tile_that_there_is_none_of_is_refused(done: Mapped, key: str) -> None:
    before = done.files()
    refused = done.does("rerun", "--tiles", key, status=2)
    assert f"--tiles {key}: no such tile" in refused.stderr
    assert "small/y0_x0" in refused.stderr, "what one looks like"
    assert done.files() == before


def test_only_the_states_that_are_named_are_mapped(mapped: Mapped) -> None:
    """Four tiles that failed, five that were never begun."""
    content = damage(mapped.shard(1, 1))
    mapped.does("rerun", *(part for tile in AT_CORNER for part in ("--tiles", tile)), status=3)
    assert mapped.states() == {"failed": 4, "pending": 5}
    mapped.shard(1, 1).write_bytes(content)
    mapped.does("rerun", "--stale", status=3)
    assert mapped.states() == {"failed": 4, "pending": 5}
    mapped.does("rerun", "--missing", status=3)
    assert mapped.states() == {"failed": 4, "done": 5}
    change_corner(mapped)
    assert mapped.states() == {"stale": 4, "done": 5}, "what failed did so with another input"
    mapped.does("rerun", "--failed", status=3)
    assert mapped.states() == {"stale": 4, "done": 5}
    mapped.does("rerun", "--failed", "--stale")
    assert mapped.states() == {"done": 9}


def test_all_tiles_are_mapped_where_that_is_asked_for(done: Mapped, whole: Mapped) -> None:
    done.does("map", "--anew")
    assert done.count("done") == dict.fromkeys(TILES, 2)
    assert done.published() == whole.published()


# --- what is stale


def test_a_changed_shard_makes_the_tiles_that_reach_into_it_stale_and_no_other(done: Mapped, tmp_path: Path) -> None:
    change_corner(done)
    told = done.does("status").stdout
    assert "small: 9 tiles: 5 done, 4 stale; the earlier map, of " in told
    assert "the input changed" in told
    (scene,) = done.does("status", "--json").json
    assert scene["causes"] == [{"cause": "the input changed", "tiles": [f"small/{tile}" for tile in AT_CORNER]}]
    done.does("rerun")
    assert done.count("done") == {tile: 2 if tile in AT_CORNER else 1 for tile in TILES}
    assert {event["cause"] for event in done.events("stale")} == {"the input changed"}
    anew = done.copy(tmp_path / "anew")
    anew.does("map", "--anew")
    assert done.published() == anew.published()


def test_labels_and_split_are_no_input_of_a_tile(done: Mapped) -> None:
    done.does("prepare", "split.seed=3")
    assert done.states("split.seed=3") == {"done": 9}


@pytest.mark.parametrize(
    "change", ["map.precision=bf16", "map.products=[class]", "map.tile=128", "prediction.priors=uniform"]
)
def test_changed_settings_make_all_tiles_stale(done: Mapped, change: str) -> None:
    """Tiles of another size are others, of which nothing is known."""
    (scene,) = done.does("status", "--json", change).json
    if change == "map.tile=128":
        assert scene["tiles"] == {"pending": 3, "done": 0, "failed": 0, "stale": 1}, "the first corner is a tile's then, too"
    else:
        assert scene["tiles"]["stale"] == 9
        assert scene["causes"][0]["cause"] == "the settings or the version of mibf changed"
    assert not scene["current"]
    done.does("map", change)
    assert done.states(change)["done"] == sum(scene["tiles"].values())


@pytest.mark.parametrize("change", ["map.workers=1", "map.attempts=5", "map.backoff=2", "map.drift=ignore"])
def test_settings_that_change_no_pixel_leave_the_map_current(done: Mapped, change: str) -> None:
    assert done.states(change) == {"done": 9}
    assert done.does("rerun", change).stdout == ""


def test_the_map_of_another_model_is_replaced_on_request_alone(done: Mapped, whole: Mapped) -> None:
    done.does("train", "train.seed=1")
    before = done.files()
    assert done.states() == {"stale": 9}
    assert "the model changed" in done.does("status").stdout
    for command in ("map", "rerun"):
        refused = done.does(command, status=2)
        assert "holds a map that another model has made (9 tiles). Give `--replace`" in refused.stderr
    assert done.files() == before
    done.does("rerun", "--replace")
    assert done.states() == {"done": 9}
    assert done.published() != whole.published()
    assert (done.pixels() != whole.pixels()).any()


# --- publishing that is interrupted


class HaltedError(Exception):
    """What stands for the end of the process."""


def interrupt(*_: object, **__: object) -> None:
    raise HaltedError


def interrupt_removal(mapped: Mapped, patch: pytest.MonkeyPatch) -> None:
    """Have the removal of the map in work end halfway, as soon as the map is published."""
    remove, shard = storage.remove, mapped.map / "map.zarr/class/c/0/0/0"

    def removed(url: str) -> None:
        if url.endswith("map.zarr") and shard.exists():
            shard.unlink()
            raise HaltedError
        remove(url)

    patch.setattr(storage, "remove", removed)


@pytest.mark.parametrize("step", ["publish", "storage.write_json", "the removal"])
def test_a_map_that_was_interrupted_while_it_was_published_is_completed_without_mapping(
    mapped: Mapped, whole: Mapped, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patch:
        if step == "the removal":
            interrupt_removal(mapped, patch)
        else:
            patch.setattr(f"jobs.map.{step}", interrupt)
        with pytest.raises(HaltedError):
            mapped.mibf("map")
    mapped.does("rerun")
    assert mapped.count("done") == dict.fromkeys(TILES, 1), "none was mapped again"
    assert mapped.published() == whole.published()
    assert not (mapped.map / "map.zarr").exists()
    assert mapped.does("rerun").stdout == ""


def test_what_an_interrupted_removal_has_left_is_not_taken_for_a_map_in_work(
    done: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lacks tiles that the ledger has as done; then the input of others changes."""
    with monkeypatch.context() as patch:
        interrupt_removal(done, patch)
        with pytest.raises(HaltedError):
            done.mibf("map", "--anew")
    change_corner(done)
    done.does("rerun")
    assert done.count("done") == {tile: 3 if tile in AT_CORNER else 2 for tile in TILES}
    kept = done.published()
    done.does("map", "--anew")
    assert done.published() == kept


def test_a_tile_that_is_lost_from_a_map_in_work_is_not_published_and_mapped_again(
    mapped: Mapped, whole: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("jobs.map.publish", interrupt)
        with pytest.raises(HaltedError):
            mapped.mibf("map")
    (mapped.map / "map.zarr/class/c/0/1/1").unlink()
    lost = mapped.does("rerun", status=3)
    assert f"1 of {len(TILES)} are pending" in lost.stderr
    mapped.does("rerun")
    assert mapped.published() == whole.published()
    assert sorted(mapped.count("done").values()) == [1] * (len(TILES) - 1) + [2]
