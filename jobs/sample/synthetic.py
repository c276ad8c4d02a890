"""`mibf synth`: write a synthetic scene with known ground truth, and a configuration for `mibf run`.

All options are validated before the first byte is written.
"""

from __future__ import annotations

import colorsys
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from affine import Affine
from odc.geo.crs import CRS, CRSError

from jobs.config.scene import PALETTE
from jobs.runtime.progress import progress_bar
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.scenes.synthetic import MAX_SOURCES, UNLABELLED, SyntheticScene, SyntheticSource
from pipeline.scenes.synthetic_files import WrittenScene, bytes_needed, write_scene, write_steps

#: The configuration; it is written last, so a folder that contains it holds a complete scene.
CONFIG = "synth.yaml"
SMALLEST, LARGEST = 64, 1_000_000  #: pixels along a side
MOST_BANDS = 512  #: per source: a window of all bands is held in memory
SCALES = (1, 2, 4)


@dataclass(frozen=True)
class SyntheticOutput:
    """The result: the configuration's path, values for machines, a description for a person."""

    config: Path
    figures: dict[str, Any]
    description: tuple[str, ...]

    def lines(self) -> list[str]:
        """Format the description and the next command."""
        return [*self.description, "", f"next: mibf run {shlex.quote(str(self.config))}"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"config": str(self.config), **self.figures}


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
) -> SyntheticOutput:
    """Write a synthetic scene and its configuration into a folder; see `pipeline.scenes.synthetic` for the model behind it.

    Args:
        folder: a local folder, created if it does not exist.
        size: `N` or `ROWSxCOLUMNS`, pixels of the reference grid.
        bands: bands of each source, `BANDS+BANDS`, with `@SCALE` after the bands of a finer source.
        labelled: share of pixels with a label.
        nodata: share of pixels without data in each source after the first.
        blob: typical size of the fields' blobs in pixels; None for 24, or less if the scene is small.
        crs: the coordinate reference system, projected or geographic.
        seed: random seed; it determines all values.
        overwrite: replace a scene in the folder.

    Raises:
        InputError: an option is out of range, the folder already contains such files, or the disk is too small.
    """
    shape, sources, placed = _size(size), _sources(bands), _crs(crs)
    scene = SyntheticScene(shape, sources, seed, _blob(blob, shape), _share("labelled", labelled), _share("nodata", nodata))
    target = _folder(folder)
    existing = _existing_files(target)
    if existing and not overwrite:
        raise InputError(
            f"{target}: already contains {', '.join(path.name for path in existing)}; choose another folder, or replace "
            "them with --overwrite."
        )
    _check_disk(target, bytes_needed(scene))
    colors = {c: _color(c, len(scene.class_ids)) for c in scene.class_ids}
    table = {c: (*bytes.fromhex(color[1:]), 255) for c, color in colors.items()}
    with storage.folder_in_use(str(target)):
        with progress_bar("write the scene", write_steps(scene), unit="windows") as advance:
            transform = _transform(placed)
            written = write_scene(scene, target, transform=transform, crs=placed.to_wkt(), colors=table, each=advance)
        for path in existing:
            if path.name not in written.files and path.name != CONFIG:
                path.unlink()  # a source of the replaced scene that this one does not have
        config = target / CONFIG
        storage.write_bytes(str(config), _config_text(scene, target, colors).encode())
    return SyntheticOutput(config, _figures(scene, written), _lines(scene, written, config))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text)
    if match is None:
        raise InputError(f"--size {text}: give the scene's side in pixels, such as 1024, or ROWSxCOLUMNS, such as 512x2048.")
    rows, columns = int(match[1]), int(match[2] or match[1])
    if min(rows, columns) < SMALLEST or max(rows, columns) > LARGEST:
        raise InputError(f"--size {text}: each side must have {SMALLEST} to {LARGEST} pixels.")
    return rows, columns


def _sources(text: str) -> tuple[SyntheticSource, ...]:
    matches = [re.fullmatch(r"(\d{1,9})(?:@(\d{1,9}))?", part) for part in text.split("+")]
    found = [(int(match[1]), int(match[2] or 1)) for match in matches if match]
    if len(found) != len(matches) or not 2 <= len(found) <= MAX_SOURCES:
        raise InputError(
            f"--bands {text}: give the number of bands of two to {MAX_SOURCES} sources, such as 4+2; add the scale of "
            "finer sources, such as 4+1@4."
        )
    for bands, scale in found:
        if not 1 <= bands <= MOST_BANDS:
            raise InputError(f"--bands {text}: a source must have 1 to {MOST_BANDS} bands, not {bands}.")
        if scale not in SCALES:
            raise InputError(f"--bands {text}: the scale of a source must be {', '.join(map(str, SCALES))}, not {scale}.")
    if all(scale > 1 for _, scale in found):
        raise InputError(
            f"--bands {text}: all sources are finer than the grid; at least one must be on it: omit the @SCALE of one."
        )
    return tuple(SyntheticSource(f"source{k + 1}", bands, scale) for k, (bands, scale) in enumerate(found))


def _blob(value: int | None, shape_yx: tuple[int, int]) -> int:
    """The blob size; by default at least 16 blobs fit along the scene's shorter side."""
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
            f"--crs {text}: is not a coordinate reference system that PROJ knows; give a code such as EPSG:32633."
        ) from error
    if not (crs.projected or crs.geographic):
        raise InputError(f"--crs {text}: is neither projected nor geographic; give a code such as EPSG:32633.")
    return crs


def _transform(crs: CRS) -> Affine:
    """The affine of pixels of 10 units, or of 0.0001 degrees, which is about the same size."""
    left, top, side = (400_000.0, 5_800_000.0, 10.0) if crs.projected else (13.0, 52.5, 1e-4)
    return Affine(side, 0.0, left, 0.0, -side, top)


def _folder(text: str) -> Path:
    if not storage.is_local(text):
        raise InputError(f"{text}: a synthetic scene can only be written to a local folder; copy it from there.")
    folder = Path(storage.local_path(text))
    if "${" in str(folder):
        raise InputError(f"{folder}: `${{` in a configuration starts an environment variable; choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder.")
    try:
        storage.check_writable(str(folder))
    except InputError as error:
        raise InputError(
            f"{folder}: cannot be written; check the path and permissions, or choose another folder."
        ) from error
    return folder


def _existing_files(folder: Path) -> list[Path]:
    """The existing files in a folder whose names a scene uses."""
    return sorted(folder.glob("source[1-9].tif")) + [
        path for name in ("labels.tif", "truth.tif", CONFIG) if (path := folder / name).exists()
    ]


def _check_disk(folder: Path, needed: int) -> None:
    free = storage.free_bytes(str(folder))
    if free is not None and needed > free:
        raise InputError(
            f"{folder}: the scene needs up to {needed / 1e9:.1f} GB while it is written, but only {free / 1e9:.1f} GB are "
            "free; free some space, choose another disk, or make the scene smaller."
        )


def _color(class_id: int, classes: int) -> str:
    if classes <= len(PALETTE):
        return PALETTE[class_id - 1]
    red, green, blue = colorsys.hsv_to_rgb(class_id / classes, 0.9 - 0.4 * (class_id % 2), 0.9 - 0.3 * (class_id // 2 % 2))
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _class_name(scene: SyntheticScene, class_id: int) -> str:
    return "-".join("on" if bit else "off" for bit in scene.class_bits(class_id))


def _config_text(scene: SyntheticScene, folder: Path, colors: dict[int, str]) -> str:
    """A complete configuration with absolute paths, which can be run from any directory."""
    rows, columns = scene.shape_yx
    combinations = 2 ** (len(scene.sources) - 1)
    samples = rows * columns * scene.labelled / 2  # half of the labels are for training
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
        # About 200,000 patches in total; in small scenes each patch is used up to 20 times.
        "train": {
            "epochs": max(1, min(20, round(200_000 / samples))),
            "batch_size": 256 if samples > 10_000 else 64,
            "workers": 1,
        },
        "map": {"tile_size": 512 if min(rows, columns) >= 1024 else 256, "workers": 1},
    }
    return (
        f"# Synthetic scene written by `mibf synth`, seed {scene.seed}: source k observes only bit k of the class, on or\n"
        f"# off in its name, so a single source classifies about one pixel in {combinations} correctly. truth.tif has all "
        "labels.\n" + yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
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
        "best_alone": written.single_source_accuracy(scene),
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
            + (f", {source.scale} pixels per grid pixel along each axis" if source.scale > 1 else "")
            + (
                f", {100 * figures['missing_shares'][source.name]:.1f} % without data"
                if written.missing[source.name]
                else ""
            )
        )
    lines.append(
        f"a single source can classify at most {100 * most:.1f} % of the pixels correctly, from the one bit of the class "
        "that it observes; all sources together nearly all"
    )
    lines += [f"{path}  ({figures['bytes'][name] / 1e6:.1f} MB)" for name, path in written.files.items()]
    return (*lines, str(config))
