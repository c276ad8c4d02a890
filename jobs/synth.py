"""synth: a synthetic scene whose truth is known, and the configuration that `mibf run` takes for it.

Everything that can be refused is refused before the first byte is written.
"""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from affine import Affine
from odc.geo.crs import CRS, CRSError

from jobs.config import PALETTE
from jobs.progress import bar
from mibf.errors import InputError
from pipeline import storage
from pipeline.synth import (
    MAX_SOURCES,
    UNLABELLED,
    SyntheticScene,
    SyntheticSource,
    WrittenScene,
    bytes_needed,
    steps,
    write_scene,
)

#: The configuration; it is written last, so a folder with it holds a whole scene.
CONFIG = "synth.yaml"
SMALLEST, LARGEST = 64, 1_000_000  #: pixels along a side
MOST_BANDS = 512  #: of one source: a window of all of them is held at once
SCALES = (1, 2, 4)


@dataclass(frozen=True)
class Made:
    """What came of it: the configuration's path, figures for machines, lines for people."""

    config: Path
    figures: dict[str, Any]
    lines: tuple[str, ...]


def synth(
    folder: str,
    *,
    size: str,
    bands: str,
    labelled: float,
    nodata: float,
    blob: int | None,
    crs: str,
    seed: int,
    overwrite: bool,
) -> Made:
    """Write a synthetic scene and its configuration into a folder; see `pipeline.synth` for the law it obeys.

    Args:
        folder: a local folder, made where it is not there.
        size: `N` or `ROWSxCOLUMNS`, pixels of the reference grid.
        bands: bands of each source, `BANDS+BANDS` or with `@SCALE` behind the bands of a finer source.
        labelled: share of pixels with a label.
        nodata: share of pixels without data in each source after the first.
        blob: typical size of the fields' blobs in pixels; None for 24, or less where the scene is small.
        crs: the coordinate system, projected or geographic.
        seed: decides everything.
        overwrite: take the place of a scene that the folder holds.

    Raises:
        InputError: an option is out of range, the folder holds such files already, or the disk is too small.
    """
    shape, sources, placed = _size(size), _sources(bands), _crs(crs)
    scene = SyntheticScene(shape, sources, seed, _blob(blob, shape), _share("labelled", labelled), _share("nodata", nodata))
    place = _folder(folder)
    held = _held(place)
    if held and not overwrite:
        raise InputError(
            f"{place}: holds {', '.join(path.name for path in held)}; choose another folder, or replace them with "
            "--overwrite."
        )
    _check_disk(place, bytes_needed(scene))
    colors = {c: _color(c, len(scene.class_ids)) for c in scene.class_ids}
    table = {c: (*bytes.fromhex(color[1:]), 255) for c, color in colors.items()}
    with storage.folder_in_use(str(place)):
        with bar("write the scene", steps(scene), unit="windows") as advance:
            transform = _transform(placed)
            written = write_scene(scene, place, transform=transform, crs=placed.to_wkt(), colors=table, each=advance)
        for path in held:
            if path.name not in written.files and path.name != CONFIG:
                path.unlink()  # a source that the scene before had and this one has not
        config = place / CONFIG
        storage.write_bytes(str(config), _config_text(scene, place, colors).encode())
    return Made(config, _figures(scene, written), _lines(scene, written, config))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text)
    if match is None:
        raise InputError(f"--size {text}: give the scene's side in pixels, such as 1024, or ROWSxCOLUMNS, such as 512x2048.")
    rows, columns = int(match[1]), int(match[2] or match[1])
    if min(rows, columns) < SMALLEST or max(rows, columns) > LARGEST:
        raise InputError(f"--size {text}: a side has {SMALLEST} to {LARGEST} pixels.")
    return rows, columns


def _sources(text: str) -> tuple[SyntheticSource, ...]:
    matches = [re.fullmatch(r"(\d{1,9})(?:@(\d{1,9}))?", part) for part in text.split("+")]
    found = [(int(match[1]), int(match[2] or 1)) for match in matches if match]
    if len(found) != len(matches) or not 2 <= len(found) <= MAX_SOURCES:
        raise InputError(
            f"--bands {text}: give the bands of two to {MAX_SOURCES} sources, such as 4+2, finer ones with their scale, "
            "such as 4+1@4."
        )
    for bands, scale in found:
        if not 1 <= bands <= MOST_BANDS:
            raise InputError(f"--bands {text}: a source has 1 to {MOST_BANDS} bands, not {bands}.")
        if scale not in SCALES:
            raise InputError(f"--bands {text}: a source is finer by {', '.join(map(str, SCALES))}, not by {scale}.")
    if all(scale > 1 for _, scale in found):
        raise InputError(f"--bands {text}: all sources are finer than the grid; one at least is on it: leave its @ out.")
    return tuple(SyntheticSource(f"source{k + 1}", bands, scale) for k, (bands, scale) in enumerate(found))


def _blob(value: int | None, shape_yx: tuple[int, int]) -> int:
    """The blob's size; where none is asked for, 16 of them at least go along the scene's shorter side."""
    shorter = min(shape_yx)
    if value is None:
        return min(24, shorter // 16)
    if not 2 <= value <= shorter // 4:
        raise InputError(f"--blob {value}: give 2 to {shorter // 4} pixels, a quarter of the scene's shorter side.")
    return value


def _share(name: str, value: float) -> float:
    low, high = (0.0, 0.9) if name == "nodata" else (0.001, 1.0)
    if not low <= value <= high:  # NaN is refused too
        raise InputError(f"--{name} {value}: give a share of all pixels, {low:g} to {high:g}.")
    return value


def _crs(text: str) -> CRS:
    try:
        crs = CRS(text)
    except CRSError as error:
        raise InputError(
            f"--crs {text}: is no coordinate system that PROJ knows; give a code such as EPSG:32633."
        ) from error
    if not (crs.projected or crs.geographic):
        raise InputError(f"--crs {text}: is neither projected nor geographic; give a code such as EPSG:32633.")
    return crs


def _transform(crs: CRS) -> Affine:
    """Pixels of 10 units, or of 0.0001 degrees: about as much."""
    left, top, side = (400_000.0, 5_800_000.0, 10.0) if crs.projected else (13.0, 52.5, 1e-4)
    return Affine(side, 0.0, left, 0.0, -side, top)


def _folder(text: str) -> Path:
    if not storage.is_local(text):
        raise InputError(f"{text}: a synthetic scene is written to a local folder; copy it from there.")
    folder = Path(storage.local_path(text))
    if "${" in str(folder):
        raise InputError(f"{folder}: `${{` in a configuration stands for an environment variable; choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder.")
    try:
        storage.check_writable(str(folder))
    except InputError as error:
        raise InputError(f"{folder}: cannot be written; check its path and permissions, or choose another.") from error
    return folder


def _held(folder: Path) -> list[Path]:
    """The files in a folder whose names a scene takes."""
    return sorted(folder.glob("source[1-9].tif")) + [
        path for name in ("labels.tif", "truth.tif", CONFIG) if (path := folder / name).exists()
    ]


def _check_disk(folder: Path, needed: int) -> None:
    free = storage.free_bytes(str(folder))
    if free is not None and needed > free:
        raise InputError(
            f"{folder}: the scene takes up to {needed / 1e9:.1f} GB while it is written, and {free / 1e9:.1f} GB are free; "
            "make room, choose another disk, or make the scene smaller."
        )


def _color(class_id: int, classes: int) -> str:
    if classes <= len(PALETTE):
        return PALETTE[class_id - 1]
    red, green, blue = colorsys.hsv_to_rgb(class_id / classes, 0.9 - 0.4 * (class_id % 2), 0.9 - 0.3 * (class_id // 2 % 2))
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _class_name(scene: SyntheticScene, class_id: int) -> str:
    return "-".join("on" if bit else "off" for bit in scene.bits_of(class_id))


def _config_text(scene: SyntheticScene, folder: Path, colors: dict[int, str]) -> str:
    """A configuration that is complete, with absolute paths: it can be run from anywhere."""
    rows, columns = scene.shape_yx
    told = 2 ** (len(scene.sources) - 1)
    samples = rows * columns * scene.labelled / 2  # half of the labels train
    block = max(16, min(96, min(rows, columns) // 8))
    sources: dict[str, Any] = {}
    for k, source in enumerate(scene.sources):
        sources[source.name] = {"url": str(folder / f"{source.name}.tif")}
        if source.scale > 1:
            sources[source.name]["scale"] = source.scale
        if k and scene.nodata:
            sources[source.name]["missing"] = "fill"
    config = {
        "name": "synth",
        "workspace": str(folder / "work"),
        "scenes": [
            {
                "name": "synth",
                "grid": {"like": next(source.name for source in scene.sources if source.scale == 1)},
                "sources": sources,
                "labels": {"url": str(folder / "labels.tif"), "ignore": [UNLABELLED]},
            }
        ],
        "classes": [{"id": c, "name": _class_name(scene, c), "color": color} for c, color in colors.items()],
        "split": {
            "method": "blocks",
            "block": block,
            "fractions": {"train": 0.5, "validation": 0.2, "test": 0.3},
            "seed": 0,
        },
        "model": {"patch": 7},
        # About 200,000 patches in all, of small scenes each one up to twenty times.
        "train": {
            "epochs": max(1, min(20, round(200_000 / samples))),
            "batch": 256 if samples > 10_000 else 64,
            "workers": 1,
        },
        "map": {"tile": 512 if min(rows, columns) >= 1024 else 256, "workers": 1},
    }
    return (
        f"# A synthetic scene of `mibf synth`, seed {scene.seed}: source k sees bit k of the class alone, on or off in its\n"
        f"# name, so one source tells about one pixel in {told} right. The whole truth is in truth.tif.\n"
        + yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    )


def _figures(scene: SyntheticScene, written: WrittenScene) -> dict[str, Any]:
    pixels = scene.shape_yx[0] * scene.shape_yx[1]
    return {
        "shape": list(scene.shape_yx),
        "blob": scene.blob,
        "seed": scene.seed,
        "bytes": {name: path.stat().st_size for name, path in written.files.items()},
        "class_shares": {_class_name(scene, c): n / pixels for c, n in written.classes.items()},
        "labelled_share": sum(written.labelled.values()) / pixels,
        "missing_shares": {name: n / pixels for name, n in written.missing.items()},
        "best_alone": written.alone(scene),
    }


def _lines(scene: SyntheticScene, written: WrittenScene, config: Path) -> tuple[str, ...]:
    figures = _figures(scene, written)
    shares = figures["class_shares"]
    most = max(figures["best_alone"].values())
    listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    spread = f"{100 * min(shares.values()):.2f} to {100 * max(shares.values()):.2f} %"
    lines = [
        f"{scene.shape_yx[0]} x {scene.shape_yx[1]} pixels, blobs of {scene.blob} pixels, seed {scene.seed}",
        f"{len(shares)} classes: {listed if len(shares) <= 8 else f'shares of {spread}'}",
        f"labelled: {100 * figures['labelled_share']:.1f} % of the pixels",
    ]
    for source in scene.sources:
        lines.append(
            f"{source.name}: {source.bands} bands"
            + (f", {source.scale} pixels to one of the grid" if source.scale > 1 else "")
            + (
                f", {100 * figures['missing_shares'][source.name]:.1f} % without data"
                if written.missing[source.name]
                else ""
            )
        )
    lines.append(
        f"one source alone tells at best {100 * most:.1f} % of the pixels right, by the one bit of the class that it sees; "
        "all together nearly all"
    )
    lines += [f"{path}  ({figures['bytes'][name] / 1e6:.1f} MB)" for name, path in written.files.items()]
    return (*lines, str(config))
