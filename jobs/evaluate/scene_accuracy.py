"""`mibf evaluate CONFIG --scene NAME`: metrics of single scenes, also of scenes that another configuration declares.

A scene of the run's own configuration is evaluated on its test samples. A scene of another configuration gave the model no
training samples, so all samples of its store are used, whatever their subset there; its labelled ground must be apart from
that of the run's training and validation samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.config.scene import SceneSection
from jobs.evaluate.stage import check_trained_on, class_table, model_caveat, pooled, scene_figures, scene_line
from jobs.runtime.progress import info, progress_bar
from jobs.workflow.manifest import check_dependencies
from jobs.workflow.runner import stale_dependencies
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.errors import InputError
from pipeline.codes import CODES, SUBSETS, UNLABELLED, Subset
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.io.lease import acquire
from pipeline.maps.predictor import check_sources
from pipeline.parallel.cpu_count import cpu_count
from pipeline.sampling.predictions import predict
from pipeline.sampling.sampler import Sampler
from pipeline.scenes.label_counts import LabelGrid, count_shared
from pipeline.store.patch_store import PatchStore, check_matching

#: Separates the file of another configuration from the name of one of its scenes.
SEPARATOR = "#"


@dataclass(frozen=True)
class SceneAccuracies:
    """The metrics of each requested scene, by the name that was given for it."""

    scenes: dict[str, dict[str, Any]]

    def lines(self) -> list[str]:
        """Format the metrics as lines for a terminal."""
        lines = []
        for name, figures in self.scenes.items():
            lines += [f"note: {figures['caveat']}"] if figures["caveat"] else []
            lines += [f"{name}: {scene_line(figures)}", *(f"  {line}" for line in class_table(figures["classes"]))]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return vars(self)


@dataclass(frozen=True)
class _Scene:
    """A scene to evaluate on the samples of some subsets of its store."""

    given: str  #: its name on the command line
    stored: str  #: the name under which its metrics are stored
    store: PatchStore
    subsets: tuple[Subset, ...]
    caveat: str | None


@dataclass(frozen=True)
class _SampleLabels:
    """The labels of a store's samples of some subsets."""

    store: PatchStore
    subsets: tuple[Subset, ...]
    notes: tuple[str, ...] = ()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids (height, width) of a window, `UNLABELLED` where there is no sample of the subsets."""
        ids, codes = self.store.labelled(window)
        return np.where(np.isin(codes, [CODES[subset] for subset in self.subsets]), ids, np.uint8(UNLABELLED))

    def unknown(self, window: Window) -> dict[float, int]:
        """Always empty: a store has no other labels."""
        del window
        return {}


def evaluate_scenes(config: Config, names: Sequence[str]) -> SceneAccuracies:
    """Evaluate the run's model on the named scenes, and store the metrics of each in the run's folder.

    Args:
        config: the configuration that the model was trained with.
        names: names of its scenes, or `FILE#NAME` for a scene of another configuration, which must be prepared.

    Raises:
        InputError: there is no such scene, it has no samples or other sources or classes than the model, or its ground
            was used in training.
        LeaseHeldError: another run holds the workspace lease.
    """
    check_dependencies(config, "evaluate")
    workspace = Workspace.of(config)
    bundle = workspace.read_bundle()
    priors = config.prediction.priors
    bundle.network(priors)
    check_trained_on(config, workspace)
    scenes = [_open(config, workspace, bundle, name) for name in dict.fromkeys(names)]
    torch.set_num_threads(cpu_count())
    with acquire(workspace.url, what=f"mibf evaluate of {config.name}, run {config.run}") as lease:
        samplers = {
            scene.given: [Sampler([scene.store], bundle.scaling, bundle.spec.patch, subset) for subset in scene.subsets]
            for scene in scenes
        }
        total = sum(sampler.samples() for own in samplers.values() for sampler in own)
        found = {}
        with progress_bar("evaluate", total, unit="samples") as advance:
            for scene in scenes:
                parts = [predict(bundle, sampler, config.model.beta, advance) for sampler in samplers[scene.given]]
                figures = scene_figures(pooled(parts).by_priors[priors], bundle)
                found[scene.given] = figures | {"subsets": [*scene.subsets], "priors": priors, "caveat": scene.caveat}
        for scene in scenes:
            lease.check()
            result = {"model": bundle.digest, "scene": scene.given, **found[scene.given]}
            storage.write_json(workspace.scene_evaluation(scene.stored), result)
    return SceneAccuracies(found)


def _open(config: Config, workspace: Workspace, bundle: Bundle, given: str) -> _Scene:
    """Open the store of a scene and check that it can be evaluated."""
    file, separated, name = given.rpartition(SEPARATOR)
    declaring = load(file) if separated else config
    scene = next((scene for scene in declaring.scenes if scene.name == name), None)
    if scene is None:
        listed = ", ".join(scene.name for scene in declaring.scenes)
        other = "" if separated else f"; a scene of another configuration is given as CONFIG{SEPARATOR}NAME"
        raise InputError(f"--scene {given}: there is no scene {name!r}; the scenes are {listed}{other}.")
    if scene.labels is None:
        raise InputError(f"--scene {given}: the scene has no `labels` to compare with.")
    is_own = Workspace.of(declaring).url == workspace.url and name in {own.name for own in config.scenes}
    if not is_own:
        check_dependencies(declaring, "train")
        if stale_dependencies(declaring, "train"):
            info(f"warning: `prepare` of {file} is not current; run `mibf prepare {file}` to read its present files")
    store = PatchStore(Workspace.of(declaring).store(name))
    check_sources(store, bundle)
    check_matching(store, bundle.scaling)
    known, declared = ([(c.id, c.name) for c in classes] for classes in (bundle.classes, store.classes))
    if known != declared:
        listed, wanted = (", ".join(f"{i} {label}" for i, label in classes) for classes in (declared, known))
        raise InputError(
            f"--scene {given}: {store.url} has the classes {listed}; the model has {wanted}. Declare the same classes in "
            "the same order and run `mibf prepare` for the scene."
        )
    subsets: tuple[Subset, ...] = ("test",) if is_own else SUBSETS
    if not any(store.windows_with_samples(subset) for subset in subsets):
        remedy = "see `split`" if is_own else "check that its labels cover its grid"
        raise InputError(f"--scene {given}: the scene has no {'test ' if is_own else ''}samples; {remedy}.")
    if is_own:
        return _Scene(given, name, store, subsets, model_caveat(bundle, storage.read_json(workspace.split)))
    place = _check_apart(config, workspace, given, scene, store, reach=bundle.spec.patch - 1)
    caveats = "; ".join(filter(None, [model_caveat(bundle), place]))
    return _Scene(given, f"{declaring.name}.{name}", store, subsets, caveats or None)


def _check_apart(
    config: Config, workspace: Workspace, given: str, scene: SceneSection, store: PatchStore, *, reach: int
) -> str | None:
    """Check that no sample of a scene is within `reach` pixels of a sample that trained or selected the model.

    Returns:
        A caveat if their places cannot be compared.
    """
    assert scene.labels is not None
    caveat = None
    seen: tuple[Subset, ...] = ("train", "validation")
    for own in config.scenes:
        if own.labels is None:
            continue
        trained = PatchStore(workspace.store(own.name), without=("test",))
        if not any(trained.windows_with_samples(subset) for subset in seen):
            continue
        if trained.grid.crs is None or store.grid.crs is None:
            shared = int(storage.absolute(own.labels.url) == storage.absolute(scene.labels.url))
            caveat = "a scene without a CRS cannot be compared with the training ground, which it may share"
        else:
            shared = count_shared(
                LabelGrid(_SampleLabels(store, SUBSETS), store.shape),
                store.grid,
                LabelGrid(_SampleLabels(trained, seen), trained.shape),
                trained.grid,
                reach=reach,
            )
        if shared:
            raise InputError(
                f"--scene {given}: its labels are on ground of scene {own.name!r} on which the model was trained or "
                f"selected, so its metrics would be too high. Use labels more than {reach} pixels away, or `--scene "
                f"{own.name}` for the test samples of that scene."
            )
    return caveat
