"""`mibf bench fleet`: the capacity estimate, and the simulation of planning, ledger and reruns."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.bench.fleets.capacity import (
    ATTEMPTS,
    PICTURE_BYTES,
    SMALL_BYTES,
    SMALL_FILES,
    TABLE_PIXELS,
    TABLE_WORKERS,
    Fleet,
    Publisher,
    bottlenecks,
    on_paper,
    page_size,
    simulate,
)
from jobs.cli.common import app
from tests.support.mapped_scene import Mapped


def test_estimate_matches_values_computed_by_hand() -> None:
    """Scenes of 10 x 10 tiles whose parts take round numbers of seconds."""
    fleet = Fleet(
        scenes=4,
        pixels=100 * 512**2,
        workers=10,
        side_by_side=2,
        rate=512**2,
        tile_milliseconds=100,
        publish_seconds=1e-6,
        start_seconds=20,
        price=3.0,
        tile_gets=20,
        get_rate=400,
        publisher="driver",
    )
    paper = on_paper(fleet)
    assert paper.tiles == 400
    publishing = 100 * 512**2 * 1e-6
    assert paper.seconds == pytest.approx(
        {"computing": 40, "scheduling": 20, "requests": 20, "publishing": 2 * publishing, "starting": 40}
    )
    assert paper.total_seconds == pytest.approx(2 * (20 + publishing + 20))
    assert paper.bottleneck == "publishing"
    assert paper.cost == pytest.approx(3 * 10 * paper.total_seconds / 3600)
    assert paper.most_workers == int(100 / publishing) * 2
    shared = on_paper(replace(fleet, publisher="workers"))
    assert shared.seconds["publishing"] == pytest.approx(2 * publishing / 5)
    assert shared.bottleneck in ("computing", "starting")
    assert shared.most_workers == int(100 / 20) * 2
    assert on_paper(replace(fleet, tile_gets=200)).bottleneck == "requests"


@given(st.sampled_from(["driver", "workers"]), st.floats(1, 200), st.integers(1, 20))
def test_table_names_the_longest_part_for_every_size(publisher: Publisher, gets: float, lanes: int) -> None:
    found = bottlenecks(Fleet(publisher=publisher, tile_gets=gets, side_by_side=lanes))
    assert [(pixels, workers) for pixels, workers, _ in found] == list(product(TABLE_PIXELS, TABLE_WORKERS))
    for pixels, _, paper in found:
        assert paper.tiles == round(pixels / 1e8) * 20**2
        assert paper.seconds[paper.bottleneck] == max(paper.seconds.values())


def test_fleet_of_the_documentation_takes_70_million_reads() -> None:
    assert on_paper(Fleet()).requests["GET"] == pytest.approx(70e6, rel=0.05)


def test_page_and_styles_are_counted(reference: Mapped) -> None:
    """As many files as a published map of two sources has, but for the pictures of labels, which most scenes lack."""
    published = [path for path in reference.map.iterdir() if path.is_file() and not path.name.startswith("overview_l")]
    published = [path for path in published if path.name != "overview_split.png"]
    files, size = page_size(2)
    assert len(published) == 2 + SMALL_FILES + files
    other = sum(path.stat().st_size for path in published if path.suffix not in (".tif", ".webp"))
    assert other == pytest.approx(size - 2 * PICTURE_BYTES + SMALL_BYTES, rel=0.1)
    with_page, without = on_paper(Fleet()), on_paper(Fleet(page=False))
    assert with_page.objects - without.objects == 10_000 * files
    assert with_page.requests["PUT"] - without.requests["PUT"] == 10_000 * files
    assert with_page.terabytes["written"] - without.terabytes["written"] == pytest.approx(size / 1e8)


@given(st.integers(1, 5000), st.integers(1, 50), st.floats(1e6, 1e9))
def test_estimate_is_never_slower_with_more_workers_or_parallel_scenes(workers: int, lanes: int, pixels: float) -> None:
    def total(**changes: int) -> float:
        given_ = {"workers": workers, "side_by_side": lanes} | changes
        return on_paper(Fleet(pixels=pixels, **given_)).total_seconds

    assert total(workers=2 * workers) <= total()
    assert total(workers=2 * workers, side_by_side=2 * lanes) <= total()


@given(st.integers(1, 20), st.floats(1e6, 1e9))
def test_computing_is_the_bottleneck_only_up_to_most_workers(lanes: int, pixels: float) -> None:
    most = on_paper(Fleet(pixels=pixels, side_by_side=lanes)).most_workers
    assert on_paper(Fleet(pixels=pixels, side_by_side=lanes, workers=2 * most + 2 * lanes)).bottleneck != "computing"
    if most > lanes:
        assert on_paper(Fleet(pixels=pixels, side_by_side=lanes, workers=most)).bottleneck == "computing"


def test_simulated_reruns_end_with_every_tile_done_or_exhausted() -> None:
    found = simulate(10_000, scenes=4, seed=1)
    assert (found.tiles, found.scenes) == (10_000, 4)
    assert found.tiles < found.attempts < found.tiles * 1.1
    assert found.events == found.attempts
    assert 0 < found.dead < found.tiles * 0.01
    assert found.segments >= 4 * ATTEMPTS
    assert simulate(10_000, scenes=4, seed=1).dead == found.dead, "same seed, same result"


def test_bench_fleet_prints_estimate_and_simulation() -> None:
    done = CliRunner().invoke(app, ["bench", "fleet", "--workers", "400", "--price", "2", "--simulate", "1000", "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["paper"]["scenes"] == 10_000
    assert found["paper"]["tiles"] == 10_000 * 20**2
    assert found["simulated"]["tiles"] == 100 * 3**2
    text = CliRunner().invoke(app, ["bench", "fleet"]).stdout
    assert "first bottleneck: starting" in text
