"""Which files are missing, and which are only not reached."""

from __future__ import annotations

from pathlib import Path

from pipeline.io.checksums import is_missing
from tests.support.http_server import served


def test_file_is_missing_only_if_its_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"a")
    assert is_missing(str(tmp_path / "b.tif"))
    assert not is_missing(str(tmp_path / "a.tif"))
    with served(tmp_path) as url:
        assert is_missing(f"{url}/b.tif")
        assert not is_missing(f"{url}/a.tif")
    assert not is_missing(f"{url}/b.tif"), "nothing answers there any more"
