"""Workspaces on file systems that lack an ability: used without it, or refused with the reason before any work."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from mibf.errors import InputError
from pipeline.io import file_system, storage, zarr_store
from pipeline.io.file_system import check_file_system
from pipeline.maps.ledger import Ledger, LedgerTakenError
from pipeline.rasters.header import RasterFile
from pipeline.scenes.source import Source
from tests.support.ledgers import WINDOWS, make_event, write_ledger
from tests.support.maps import build_small_store
from tests.support.scenes import write_raster

#: What Linux reports of hard links on exFAT, CIFS and gcsfuse.
NUMBERS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS]


def failing(number: int) -> Callable[..., Any]:
    """A system call that a file system does not support."""

    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture(params=NUMBERS, ids=lambda number: errno.errorcode[number])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links."""
    monkeypatch.setattr(os, "link", failing(request.param))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which workspaces were checked."""
    monkeypatch.setattr(file_system, "_checked", set())


@pytest.mark.usefixtures("no_links")
def test_file_is_created_once_without_hard_links(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
    with ThreadPoolExecutor(8) as pool:
        contents = [bytes([i]) * 1000 for i in range(8)]
        created = list(pool.map(lambda content: storage.create_bytes(url, content), contents))
    assert created.count(True) == 1
    assert storage.read_bytes(url) == contents[created.index(True)]
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.usefixtures("no_links")
def test_ledger_and_stores_are_written_without_hard_links(tmp_path: Path) -> None:
    check_file_system(str(tmp_path))
    other = Ledger.open(str(tmp_path / "ledger"))
    write_ledger(str(tmp_path / "ledger"), [make_event()])
    with pytest.raises(LedgerTakenError), other.writing():
        other.append([make_event(WINDOWS[1])])
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(1, 64, 64)
    write_raster(tmp_path / "one.tif", pixels)
    store = build_small_store(tmp_path, [Source("one", ((RasterFile(str(tmp_path / "one.tif")),),))])
    np.testing.assert_array_equal(np.asarray(store.array("sources/one")[:]), pixels)
    group = zarr_store.open_zarr(str(tmp_path / "map.zarr"), mode="w")
    group.create_array("deep/below/class", shape=(4,), dtype="uint8")[:] = 7
    assert np.asarray(zarr.open_group(str(tmp_path / "map.zarr"), mode="r")["deep/below/class"][:]).tolist() == [7] * 4


def test_other_errors_of_links_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        storage.create_bytes(str(tmp_path / "file"), b"")


def test_able_file_system_is_checked_once_and_left_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_file_system(str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()
    monkeypatch.setattr(os, "replace", failing(errno.EPERM))
    check_file_system(str(tmp_path / "work"))
    check_file_system("memory://work")


@pytest.mark.parametrize(
    ("owner", "name", "number", "message"),
    [
        (os, "replace", errno.EPERM, r"cannot replace a file by renaming another \(Operation not permitted\)"),
        (
            fcntl,
            "flock",
            errno.ENOLCK,
            r"cannot lock a file \(No locks available\), which mibf needs to keep two runs",
        ),
        (fcntl, "flock", errno.ENOSYS, r"cannot lock a file \(Function not implemented\)"),
    ],
)
def test_missing_ability_is_refused_with_the_reason_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, message: str
) -> None:
    monkeypatch.setattr(owner, name, failing(number))
    with pytest.raises(InputError, match=rf"workspace .*work: its file system {message}.*Choose a workspace"):
        check_file_system(str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_exclusive_creation_that_overwrites_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "create_bytes", lambda url, content: storage.write_bytes(url, content) is None)
    with pytest.raises(InputError, match=r"cannot create a file only if it does not exist \(.*wrong result\)"):
        check_file_system(str(tmp_path))
