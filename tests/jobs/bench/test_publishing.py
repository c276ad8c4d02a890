"""The benchmark of publishing: all ways publish the same map, and a change of one tile is published as such."""

from __future__ import annotations

from pathlib import Path

from jobs.bench import publishing
from jobs.bench.harness.stub_workspace import stub_workspace


def test_map_is_published_by_a_thread_and_again_after_a_change(tmp_path: Path) -> None:
    config = stub_workspace(tmp_path, shape_yx=(1024, 1024), tile=publishing.TILE, filled=True)
    publishing._map_tiles(config)
    assert publishing._timed(config, publishing.SCRIPT, str(tmp_path))[publishing.SCRIPT] > 0
    found = publishing._timed(config, publishing.THREAD, str(tmp_path / "published"))
    assert list(found) == [publishing.THREAD, publishing.CHANGE.format(publishing.THREAD)]
    names = {path.name for path in (tmp_path / "published/map").iterdir()}
    rasters = {"class.tif", "class.tif.aux.xml", "class.qml", "confidence.tif", "confidence.qml"}
    assert names == rasters | {"item.json", "quicklook.png"}
