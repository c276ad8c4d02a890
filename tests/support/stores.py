"""The patch store that `mibf prepare` wrote for a small scene."""

from __future__ import annotations

from tests.support.scenes import SmallScene


def objects(scene: SmallScene, workspace: str = "work") -> dict[str, bytes]:
    """Return every object of the scene's store that holds pixels."""
    store = scene.folder / workspace / "stores" / "small.zarr"
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file() and p.name != "zarr.json"}


#: Override that divides the large scene into 5 x 4 shards.
SHARDS = "prepare.shard=128"
