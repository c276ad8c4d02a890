"""`mibf init`: inspect the files of a scene, choose the settings, and write the configuration."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from odc.geo.geobox import GeoBox

from jobs.config.loader import load
from jobs.init.arguments import FileArgument, clean_name, parse_file, parse_sources
from jobs.init.choose_split import SplitChoice, choose_patch, choose_split
from jobs.init.class_table import DetectedLabels
from jobs.init.inspect_files import FULL_COVERAGE, InspectedSource, PlacedSource, align_source, check_crs, inspect_source
from jobs.init.raster_labels import find_raster_classes
from jobs.init.vector_labels import find_vector_classes, is_vector
from jobs.init.write_config import Draft, config_text
from jobs.inspection.plan import Plan, plan
from mibf.errors import InputError
from pipeline.codes import SUBSETS
from pipeline.io import storage
from pipeline.parallel.executor import Executor, ThreadExecutor


@dataclass(frozen=True)
class DraftedConfig:
    """A drafted configuration."""

    text: str
    found: tuple[str, ...]  #: what the files contain, as lines of text


@dataclass(frozen=True)
class Initialized:
    """A new configuration, what it was derived from, and its plan."""

    config: str
    found: tuple[str, ...]
    plan: Plan

    def lines(self) -> list[str]:
        """Format what was found and the plan as lines of text."""
        after = f"next: check it, then mibf run {shlex.quote(self.config)}"
        return [*self.found, "", *self.plan.lines(), "", f"written: {self.config}", after]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"config": self.config, "found": list(self.found), "plan": self.plan.to_json()}


def init_config(
    files: Sequence[str],
    *,
    labels: str | None,
    attribute: str | None,
    output: str,
    name: str | None,
    workspace: str | None,
) -> Initialized:
    """Write the configuration of a scene and plan it; arguments and errors as for `draft_config`.

    If the configuration cannot be loaded or planned, it is removed again.
    """
    draft = draft_config(files, labels=labels, attribute=attribute, output=output, name=name, workspace=workspace)
    with write_new(output, draft.text):
        return Initialized(output, draft.found, plan(load(output)))


def draft_config(
    files: Sequence[str],
    *,
    labels: str | None,
    attribute: str | None,
    output: str,
    name: str | None,
    workspace: str | None,
) -> DraftedConfig:
    """Draft the configuration of a scene; writes nothing.

    Args:
        files: `FILE` or `NAME=FILE[,FILE...]`, one source or more; `FILE#ARRAY` names an array of a file.
        labels: a raster of class ids or a vector file; None if the scene is only mapped.
        attribute: the column of a vector file with the class.
        output: where the configuration will be written.
        name: name of the scene; by default the name of the files' folder.
        workspace: folder or URL for the results.

    Raises:
        InputError: a file cannot be used, or the classes cannot be determined.
    """
    check_output(output)
    sources = [inspect_source(argument) for argument in parse_sources(files)]
    check_crs(sources)
    grid = sources[0].grid
    placed = [align_source(source, grid) for source in sources]
    patch = choose_patch(grid)
    folder = PurePosixPath(storage.absolute(sources[0].urls[0])).parent.name
    scene = scene_name(name, clean_name(folder, default="scene"))
    found, split = None, None
    if labels is not None:
        executor = ThreadExecutor()
        found = find_classes(parse_file(labels), attribute, placed[0].source.grid, executor)
        found, split = choose_split(found, grid, executor, patch=patch)
    elif attribute is not None:
        raise InputError(f"--attribute {attribute}: names a column of the label file; give that with --labels.")
    draft = Draft(scene, workspace or f"./work/{scene}", output, placed, patch, found, split)
    lines = (*map(_source_line, placed), *_notes(sources), *label_summary(found, split))
    return DraftedConfig(config_text(draft), lines)


def check_output(output: str) -> None:
    """Check that a configuration can be written without replacing a file.

    Raises:
        InputError: the file exists, or its folder does not.
    """
    with storage.as_input_errors(output):
        exists = storage.exists(output)
    if exists:
        raise _exists(output)
    if storage.is_local(output) and not storage.exists(str(PurePosixPath(storage.local_path(output)).parent)):
        raise InputError(f"{output}: its folder does not exist; create it first, or give another file with --output.")


def _exists(output: str) -> InputError:
    return InputError(
        f"{storage.redact_url(output)}: already exists and is never overwritten. Give another file with --output, or "
        "remove this one first."
    )


@contextmanager
def write_new(output: str, text: str) -> Iterator[None]:
    """Write a new file; it is removed if the block fails, so that a refusal leaves no file.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    with storage.as_input_errors(output):
        if not storage.create_bytes(output, text.encode()):
            raise _exists(output)
    try:
        yield
    except BaseException:
        storage.remove(output)
        raise


def find_classes(file: FileArgument, attribute: str | None, grid: GeoBox, executor: Executor) -> DetectedLabels:
    """Find the classes of a label file on a grid.

    Raises:
        InputError: the file cannot be used, or its classes cannot be determined.
    """
    if is_vector(file, attribute):
        return find_vector_classes(file, grid, attribute)
    return find_raster_classes(file, grid, executor)


def scene_name(name: str | None, default: str) -> str:
    """Return the name of the scene: the given one, else the default.

    Raises:
        InputError: the name is not valid.
    """
    if name is None:
        return default
    if clean_name(name) != name:
        raise InputError(
            f"--name {name}: use letters, digits, `_`, `-` and `.`, starting with a letter or digit, as in "
            f"{clean_name(name)}."
        )
    return name


def _source_line(placed: PlacedSource) -> str:
    how = " and ".join(sorted({str(part.alignment) for part in placed.aligned.parts}))
    scale = f", kept {placed.scale} times as fine as the grid" if placed.scale > 1 else ""
    cover = f", covers {100 * placed.coverage:.0f} % of the grid" if placed.coverage < FULL_COVERAGE else ""
    return f"{placed.source.name}: {placed.source.describe()}; {how}{scale}{cover}"


def _notes(sources: Sequence[InspectedSource]) -> list[str]:
    """Return notes on what the user should check about the sources."""
    notes = []
    richest = max(sources, key=lambda source: source.bands)
    if richest.bands > sources[0].bands:
        notes.append(
            f"{richest.name} has more bands than {sources[0].name}; list it first if its spectrum is richer: the "
            "first source gets the wide branch of the network and sets the grid"
        )
    assumed = [source.name for source in sources if source.files[0].axes is not None]
    if assumed:
        notes.append(f"the axes of {', '.join(assumed)} are assumed to be rows, columns and bands; check `axes`")
    return [f"note: {note}" for note in notes]


def label_summary(found: DetectedLabels | None, split: SplitChoice | None) -> list[str]:
    """Describe the labels and their split as lines of text."""
    if found is None or split is None:
        return ["no labels: the configuration is for mapping; fill in `map.model` and the model's classes"]
    total = max(1, sum(c.pixels for c in found.classes))
    return [
        f"labels: {total:,} labelled pixels of {len(found.classes)} classes",
        *(f"  {c.id} {c.name}: {c.pixels:,} pixels ({100 * c.pixels / total:.1f} %)" for c in found.classes),
        *(f"note: {note}" for note in found.notes),
        f"split: blocks of {split.block} pixels, {split.labelled_blocks:,} with labels; samples "
        + ", ".join(f"{subset} {int(n):,}" for subset, n in zip(SUBSETS, split.samples.sum(axis=1), strict=True)),
    ]
