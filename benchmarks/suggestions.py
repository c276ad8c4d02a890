"""Measure what labels at suggested places gain, against as many labels at random places.

Run `PYTHONPATH=. python benchmarks/suggestions.py FOLDER [SEEDS]` with a scene like that of `examples/zion.yaml`: four
bands `landsat_b2.tif` to `landsat_b5.tif`, `srtm.tif`, classes `nlcd.tif` and a split `split.tif`. For each seed, some
pixels of each class keep their labels on the training ground, and a map is made from them. Squares of it are then
labelled from the complete classes: those of `mibf suggest`, and as many drawn at random. Accuracy is that on the
validation blocks, which lie apart from the training ground; test blocks are not read. Models are boosted trees, which
take seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
import shapely.affinity
import yaml
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import reproject

FIRST, PLACES, SIDE, SEEDS = 25, 100, 3, 5
CLASSES = ("Water", "Developed", "Barren", "Forest", "Shrubland", "Herbaceous", "Cultivated", "Wetlands")
TRAIN = 1
METRICS = ("OA", "AA", "kappa", "F1")


def mibf(*arguments: str) -> Any:
    """Run a command and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


class Scene:
    """The scene's complete labels and split on its grid, and runs on it in a folder."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data.resolve(), folder
        with rasterio.open(data / "split.tif") as file:
            self.split, self.profile = file.read(1), file.profile
        with rasterio.open(data / "nlcd.tif") as file:
            self.classes = np.full(self.split.shape, 255, np.uint8)
            reproject(
                file.read(1),
                self.classes,
                src_transform=file.transform,
                src_crs=file.crs,
                src_nodata=255,
                dst_transform=self.profile["transform"],
                dst_crs=self.profile["crs"],
                dst_nodata=255,
            )

    def write_labels(self, seed: int) -> Path:
        """Write the labels of all ground but the training ground, where some pixels of each class keep theirs."""
        generator = np.random.default_rng(seed)
        labels = np.where(self.split == TRAIN, np.uint8(255), self.classes)
        for number in range(1, len(CLASSES) + 1):
            known = np.flatnonzero((self.split == TRAIN) & (self.classes == number))
            labels.flat[generator.choice(known, FIRST, replace=False)] = number
        path = self.folder / f"labels-{seed}.tif"
        with rasterio.open(path, "w", **self.profile | {"dtype": "uint8", "nodata": 255}) as file:
            file.write(labels, 1)
        return path

    def configure(self, name: str, labels: Path, *, seed: int, also: Path | None = None) -> str:
        """Write a configuration and return its path; each has a workspace of its own."""
        more = {} if also is None else {"also": [{"url": str(also), "attribute": "label"}]}
        sources = {
            "optical": {"urls": [str(self.data / f"landsat_b{band}.tif") for band in (2, 3, 4, 5)]},
            "elevation": {"url": str(self.data / "srtm.tif"), "resampling": "bilinear", "missing": "fill"},
        }
        labelled = {"url": str(labels), **more}
        content = {
            "name": name,
            "workspace": str(self.folder / name),
            "scenes": [{"name": "scene", "grid": {"like": "optical"}, "sources": sources, "labels": labelled}],
            "classes": [{"id": number, "name": label} for number, label in enumerate(CLASSES, 1)],
            "split": {"method": "raster", "url": str(self.data / "split.tif")},
            "model": {"kind": "boosting"},
            "train": {"recipe": "standard", "workers": 0, "seed": seed},
            "map": {"products": ["class", "confidence", "entropy"], "workers": 0},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)

    def map(self, config: str) -> dict[str, float]:
        """Prepare, train and map; return the map's accuracy on validation pixels."""
        for stage in ("prepare", "train", "map"):
            mibf(stage, config)
        with rasterio.open(self.folder / Path(config).stem / "maps/scene/main/class.tif") as file:
            found = file.read(1)
        use = (self.split == 2) & (self.classes != 255) & (found != 255)
        return accuracy(self.classes[use], found[use])

    def label(self, places: geopandas.GeoDataFrame, path: Path) -> Path:
        """Label each square by the most frequent class in it, as a person would, and write the file."""
        labels = []
        for row, column in zip(places["row"], places["column"], strict=True):
            y, x = max(0, row - SIDE // 2), max(0, column - SIDE // 2)
            seen = self.classes[y : y + SIDE, x : x + SIDE]
            known = seen[seen != 255]
            labels.append(CLASSES[np.bincount(known).argmax() - 1] if known.size else None)
        places.assign(label=labels).to_file(path, driver="GPKG")
        return path

    def random_places(self, number: int, seed: int) -> geopandas.GeoDataFrame:
        """Squares around random pixels of the training ground."""
        generator = np.random.default_rng([seed, 1])
        drawn = generator.choice(np.flatnonzero((self.split == TRAIN) & (self.classes != 255)), number, replace=False)
        rows, columns = np.unravel_index(drawn, self.split.shape)
        squares = [
            shapely.affinity.affine_transform(shapely.box(0, 0, SIDE, SIDE), self._to_crs(row, column))
            for row, column in zip(rows, columns, strict=True)
        ]
        return geopandas.GeoDataFrame({"row": rows, "column": columns}, geometry=squares, crs=self.profile["crs"])

    def _to_crs(self, row: int, column: int) -> list[float]:
        """The affine transform of pixels counted from the first one of the square around a pixel."""
        moved = self.profile["transform"] @ Affine.translation(column - SIDE // 2, row - SIDE // 2)
        return [moved.a, moved.b, moved.d, moved.e, moved.c, moved.f]


def accuracy(true: NDArray[np.uint8], found: NDArray[np.uint8]) -> dict[str, float]:
    """Overall and average accuracy, kappa and the mean F1 of the classes that are there."""
    counts = np.zeros((len(CLASSES) + 1,) * 2)
    np.add.at(counts, (true, found), 1)
    there = counts.sum(axis=1) > 0
    right, rows, columns = np.diag(counts)[there], counts.sum(axis=1)[there], counts.sum(axis=0)[there]
    total = counts.sum()
    overall, chance = right.sum() / total, (rows * columns).sum() / total**2
    values = overall, mean(right / rows), (overall - chance) / (1 - chance), mean(2 * right / (rows + columns))
    return dict(zip(METRICS, map(float, values), strict=True))


def compare(scene: Scene, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy from the first labels alone, with suggested places, and with as many random ones."""
    labels = scene.write_labels(seed)
    first = scene.configure(f"first-{seed}", labels, seed=seed)
    found = {"first labels": scene.map(first)}
    written = mibf("suggest", first, "--n", str(PLACES), "--side", str(SIDE), "--seed", str(seed))
    suggested = geopandas.read_file(written["files"]["scene"]).drop(columns="label")
    for way, places in ("suggested", suggested), ("random", scene.random_places(len(suggested), seed)):
        added = scene.label(places, scene.folder / f"{way}-{seed}.gpkg")
        found[way] = scene.map(scene.configure(f"{way}-{seed}", labels, seed=seed, also=added))
    return found


def main(arguments: Sequence[str]) -> None:
    """Print the accuracy of each way, by seed and in the mean."""
    data, seeds = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else SEEDS
    print(f"{FIRST} labelled pixels of each class, then {PLACES} squares of {SIDE} x {SIDE}; accuracy on validation blocks")
    with tempfile.TemporaryDirectory(prefix="mibf-") as folder:
        scene = Scene(data, Path(folder))
        results = []
        for seed in range(seeds):
            results.append(compare(scene, seed))
            for way, values in results[-1].items():
                print(f"seed {seed}  {way:<14}", *(f"{name} {value:.3f}" for name, value in values.items()), flush=True)
    for way in results[0]:
        print(f"mean    {way:<14}", *(f"{name} {mean(r[way][name] for r in results):.3f}" for name in METRICS))


if __name__ == "__main__":
    main(sys.argv[1:])
