"""The items of a series: that their values are comparable, and which of them are left out."""

from __future__ import annotations

from collections.abc import Sequence

from mibf.errors import InputError
from pipeline.io import checksums, storage
from pipeline.rasters.header import Header, RasterFile, stated_band
from pipeline.stac.assets import AssetFile, Skipped
from pipeline.stac.periods import Gaps, Period, listed

#: The scale and offset of a band.
Scaling = tuple[float, float]


def check_values(
    url: str,
    assets: Sequence[str],
    files: Sequence[Sequence[AssetFile]],
    *,
    bands: tuple[int, ...] | None,
    unscale: bool,
    decided: bool,
) -> tuple[str, ...]:
    """Check that the values of each asset's files mean the same; return notes on what is applied.

    Args:
        url: of the items.
        assets: names of the assets.
        files: of each asset.
        bands: that are read of each file, numbered from 1; None: all.
        unscale: whether scale and offset are applied to the values.
        decided: whether the configuration itself says how values are scaled, or that they are not.

    Raises:
        InputError: items state different scales or offsets, which are not applied; or some state one, and others none.
    """
    notes: dict[str, None] = {}
    for name, layer in zip(assets, files, strict=True):
        scalings = [file.scalings(bands) for file in layer]
        for band in range(max(map(len, scalings), default=0)):
            by_scaling: dict[Scaling, list[AssetFile]] = {}
            without: list[AssetFile] = []
            for file, own in zip(layer, scalings, strict=True):
                # What is stated once is stated of all bands.
                found = own[band] if band < len(own) else own[0] if len(own) == 1 else None
                if found is not None:
                    by_scaling.setdefault(found, []).append(file)
                else:
                    without.append(file)
            scaled = next((pair for pair in by_scaling.items() if pair[0] != (1, 0)), None)
            if scaled is not None and without and not decided:
                raise InputError(
                    f"{storage.redact_url(url)}: asset {name!r} has {_describe(scaled[0])} in item {scaled[1][0].item!r}, "
                    f"but item {without[0].item!r} states none, so it is not known whether their values mean the same; set "
                    "`unscale: true` if the files state it, `unscale: false` if values are comparable as stored, or leave "
                    "one of the items out."
                )
            if len(by_scaling) < 2:
                continue
            if not unscale:
                first, second = list(by_scaling.items())[:2]
                raise InputError(
                    f"{storage.redact_url(url)}: asset {name!r} has {_describe(first[0])} in item {first[1][0].item!r}, but "
                    f"{_describe(second[0])} in item {second[1][0].item!r}; set `unscale: true`, so that their values mean "
                    "the same."
                )
            parts = [f"{_describe(scaling)} in {len(found)}" for scaling, found in by_scaling.items()]
            notes[f"of the items in {storage.redact_url(url)}, values have {' and '.join(parts)}; each is applied"] = None
    return tuple(notes)


def split_missing(items: Sequence[AssetFile], layers: Sequence[Sequence[str]]) -> tuple[list[int], tuple[Skipped, ...]]:
    """Return the positions of the items whose files exist, and the other items.

    Args:
        items: one file of each item.
        layers: URLs of files, each with one for every item.
    """
    kept, missing = list[int](), list[Skipped]()
    for position, item in enumerate(items):
        absent = next((layer[position] for layer in layers if checksums.is_missing(layer[position])), None)
        if absent is None:
            kept.append(position)
        else:
            cause = f"item {item.item!r} of {item.date}: {storage.redact_url(absent)} does not exist"
            missing.append(Skipped(item.date, cause))
    return kept, tuple(missing)


def emptied_periods(
    source: str, periods: Sequence[Period], kept: Sequence[str], skipped: Sequence[Skipped], gaps: Gaps
) -> tuple[str, ...]:
    """Return a note on periods of which all items are left out; they are as periods without items.

    Args:
        source: its name.
        periods: in order.
        kept: days of the items that are left.
        skipped: the other items.
        gaps: what becomes of periods without items.

    Raises:
        InputError: gaps are excluded, so that no pixel would have data.
    """
    left = [period for period in periods if not any(day in period for day in kept)]
    causes = {period.name: [item for item in skipped if item.date in period] for period in left}
    names = [name for name, items in causes.items() if items]
    if not names:
        return ()
    items = [item for name in names for item in causes[name]]
    more = f"; and {len(items) - 1} more" if len(items) > 1 else ""
    why = f"source {source!r}: no item is left of {listed(names)}: {str(items[0]).rstrip('.')}{more}"
    if gaps == "exclude":
        raise InputError(f"{why}. Restore the files, choose other `periods`, or set `gaps` to `interpolate` or `fill`.")
    verb = "interpolated" if gaps == "interpolate" else "filled"
    return (f"{why}; values of {len(names)} of {len(periods)} periods are {verb}",)


def check_scaled(source: str, files: Sequence[tuple[RasterFile, Header]]) -> None:
    """Check that a band of a mosaic from a catalogue is scaled in all files, or in none.

    Raises:
        InputError: scales are to be applied, and a file has none that a catalogue states of others.
    """
    if not any(file.unscale and file.stated for file, _ in files):
        return
    for band in range(files[0][1].bands):
        scaled = next((pair for pair in files if _is_stated(*pair, band)), None)
        if scaled is None:
            continue
        for file, header in files:
            if _is_stated(file, header, band) or (header.gains[band], header.offsets[band]) != (1, 0):
                continue
            raise InputError(
                f"source {source!r}: {scaled[0]} has {_describe((scaled[1].gains[band], scaled[1].offsets[band]))}, but "
                f"neither {file} nor its STAC item states any, so `unscale` cannot make their values comparable; correct "
                "the item, or leave it out."
            )


def _is_stated(file: RasterFile, header: Header, band: int) -> bool:
    """Whether a catalogue states the scale of a band that is read, counted from 0."""
    number = band + 1 if file.bands is None else file.bands[band]
    return stated_band(file, number, header.file_bands).gain is not None


def _describe(scaling: Scaling) -> str:
    return f"scale {scaling[0]:g} and offset {scaling[1]:g}"
