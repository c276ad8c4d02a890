"""Whether the values of several items can stand beside each other: their scales and offsets."""

from __future__ import annotations

from collections.abc import Sequence

from mibf.errors import InputError
from pipeline.io import storage
from pipeline.stac.assets import AssetFile


def check_values(url: str, assets: Sequence[str], files: Sequence[Sequence[AssetFile]], *, unscale: bool) -> tuple[str, ...]:
    """Check that the values of each asset's files mean the same; return notes on what is applied.

    Args:
        url: of the items.
        assets: names of the assets.
        files: of each asset.
        unscale: whether scale and offset are applied to the values.

    Raises:
        InputError: items state different scales or offsets, which are not applied.
    """
    notes: dict[str, None] = {}
    for name, layer in zip(assets, files, strict=True):
        by_values: dict[tuple[tuple[float, float], ...], list[AssetFile]] = {}
        for file in layer:
            if any(value is not None for value in file.values):
                by_values.setdefault(tuple(value or (1.0, 0.0) for value in file.values), []).append(file)
        if len(by_values) > 1 and not unscale:
            first, second = list(by_values.items())[:2]
            raise InputError(
                f"{storage.redact_url(url)}: asset {name!r} has {_describe(first[0])} in item {first[1][0].item!r}, but "
                f"{_describe(second[0])} in item {second[1][0].item!r}; set `unscale: true`, so that their values mean the "
                "same."
            )
        if len(by_values) > 1:
            parts = [f"{_describe(values)} in {len(found)}" for values, found in by_values.items()]
            notes[f"of the items in {storage.redact_url(url)}, values have {' and '.join(parts)}; each is applied"] = None
    return tuple(notes)


def _describe(values: Sequence[tuple[float, float]]) -> str:
    """Describe scales and offsets of bands."""
    found = list(dict.fromkeys(values))
    return ", ".join(f"scale {gain:g} and offset {offset:g}" for gain, offset in found)
