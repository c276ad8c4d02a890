"""Replace a published map by files in a staging folder, so that readers never see a mixture of two maps.

A map is published when its item, `item.json`, exists. The order is: build and check every file in a staging folder; write
there what is to be moved, with the item; remove the earlier map's item; move the files; remove what is left of the earlier
map; write the item. A failure before the record is written leaves the earlier map unchanged; after it, the next run
completes the replacement (`finish_interrupted`), so that nothing has to be mapped or built again.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.codes import RENAMED_PRODUCTS
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.maps.products import MAP_PRODUCTS
from pipeline.publishing.page.page_file import is_page_file
from pipeline.publishing.published_map import ITEM, QUICKLOOK

#: The start of the names of staging folders, which end with the run's id.
STAGING = ".staging"
#: Record in a staging folder: everything there is complete.
RECORD = "publication.json"
#: File names of a map, for any products and blocks, those of earlier versions included.
_FILES = re.compile(rf"({'|'.join([*MAP_PRODUCTS, *RENAMED_PRODUCTS])})(_y\d+_x\d+)?\.(tif|tif\.aux\.xml|vrt|qml)")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class PublishError(RuntimeError):
    """A map could not be published, for the reason in the message; an earlier map is unchanged."""


@contextmanager
def staging_folder(folder: str, run: str, lease: Lease) -> Iterator[str]:
    """Provide the staging folder of a run next to a map; afterwards remove it, unless its files are to be moved yet.

    Those that killed runs left are removed first.
    """
    staging = storage.join(folder, f"{STAGING}-{run}")
    with storage.folder_in_use(folder):
        _remove_staging(folder, lease)
        try:
            if storage.is_local(staging):
                with check_disk_space(Path(storage.local_path(folder)), staging):
                    Path(storage.local_path(staging)).mkdir(parents=True)
            yield staging
        finally:
            with suppress(Exception):  # keep the original exception; the next publication removes the folder
                if not storage.exists(storage.join(staging, RECORD)):
                    storage.remove(staging)


def _remove_staging(folder: str, lease: Lease) -> None:
    for name in storage.names(folder):
        if name.startswith(STAGING):
            lease.check()
            storage.remove(storage.join(folder, name))


def replace_published(
    folder: str, staging: str, item: dict[str, Any], *, new: Sequence[str], kept: Sequence[str], lease: Lease
) -> None:
    """Replace the map in a folder.

    Args:
        folder: URL of the map's folder.
        staging: URL of the staging folder.
        item: the new map's item.
        new: names of the files in staging.
        kept: names of files of the earlier map that belong to the new one, too.
        lease: checked before each step that cannot be undone.

    Raises:
        LeaseLostError: the workspace lease was lost; nothing is removed or replaced from then on.
    """
    lease.check()
    storage.write_json(storage.join(staging, RECORD), {"new": list(new), "kept": list(kept), "item": item})
    _replace(folder, staging, lease)


def finish_interrupted(folder: str, lease: Lease) -> bool:
    """Complete a replacement that was interrupted; return whether there was one.

    Raises:
        LeaseLostError: as for `replace_published`.
    """
    for name in storage.names(folder):
        staging = storage.join(folder, name)
        if name.startswith(STAGING) and storage.exists(storage.join(staging, RECORD)):
            _replace(folder, staging, lease)
            return True
    return False


def _replace(folder: str, staging: str, lease: Lease) -> None:
    """Replace the map in a folder according to the record in staging: remove its item, move the files, remove the rest."""
    record = storage.read_json(storage.join(staging, RECORD))
    lease.check()
    storage.remove(storage.join(folder, ITEM))
    waiting = set(storage.names(staging))
    for name in record["new"]:
        if name in waiting:  # otherwise an interrupted run has moved it
            lease.check()
            storage.move_file(storage.join(staging, name), storage.join(folder, name))
    for name in sorted(set(storage.names(folder)) - set(record["new"]) - set(record["kept"])):
        if _FILES.fullmatch(name) or name == QUICKLOOK or is_page_file(name):
            lease.check()
            storage.remove(storage.join(folder, name))
    lease.check()
    storage.write_json(storage.join(folder, ITEM), record["item"])
    with suppress(Exception):  # the map is published; what is left here is removed by the next publication
        storage.remove(staging)


@contextmanager
def check_disk_space(folder: Path, name: str, *, needed: int = 0) -> Iterator[None]:
    """Guard the writing of a file of up to `needed` bytes: turn the error of a full disk into a message with the remedy.

    Raises:
        PublishError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        left = shutil.disk_usage(folder).free / 1e6
        raise PublishError(
            f"{folder}: the disk is full: {left:,.1f} MB are free, and {name} needs up to {needed / 1e6:,.1f} MB. Nothing "
            "was published; an earlier map is unchanged. Free some space, publish fewer products (map.products) or smaller "
            "ones (map.dtype: uint8), or use another disk (move the workspace, or set TMPDIR if the workspace is in an "
            "object store); then run `mibf map` again."
        ) from error
