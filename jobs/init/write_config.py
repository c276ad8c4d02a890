"""Write a configuration as YAML, with comments on what to check and change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from jobs.config.split import BlocksSection, FractionsSection
from jobs.init.choose_split import SplitChoice
from jobs.init.class_table import DetectedClass, DetectedLabels
from jobs.init.inspect_files import FULL_COVERAGE, PlacedSource

#: Classes with a smaller share of the labels are rare.
_RARE = 0.02
#: Keys written under `train` and under `map`, with their values.
TRAIN: dict[str, Any] = {"recipe": "auto", "workers": 1, "seed": 0}
MAP: dict[str, Any] = {"products": ["class", "confidence"], "workers": 1}
#: Placeholder classes for scenes without labels.
PLACEHOLDERS = (DetectedClass(1, "class 1", "#0072b2"), DetectedClass(2, "class 2", "#e69f00"))

#: Comments on a scene with one source, and with several.
GRID_OF_ONE = "    # Grid of labels and map: that of the source, whose pixels are not resampled."
GRID = (
    "    # Grid of labels and map: that of the first source, whose pixels are not resampled; the others are aligned",
    "    # with it. Name another source to map at its resolution.",
)
LABELS_HINT = "    # labels: {url: labels.tif}  # class ids, or a vector file with `attribute`; needed for training"
ORDER = "    # List the source with the richest spectrum first: it gets the wide branch of the network."


@dataclass(frozen=True)
class Draft:
    """The content of a configuration."""

    name: str
    workspace: str
    output: str
    sources: Sequence[PlacedSource]
    patch: int
    labels: DetectedLabels | None = None
    split: SplitChoice | None = None  #: set if there are labels


def config_text(draft: Draft, scene: Sequence[str] | None = None) -> str:
    """Return the text of a configuration file; `scene` are the lines of its scene, by default those of the draft's files."""
    lines = [*_head(draft), *(_scene(draft) if scene is None else scene), *_classes(draft)]
    lines += _training(draft) if draft.labels is not None else _mapping()
    return "\n".join(lines) + "\n"


def scalar(value: Any) -> str:
    """Return a value as YAML on one line, quoted where it must be.

    >>> scalar("on"), scalar("a: b"), scalar(["x.tif", 3])
    ("'on'", "'a: b'", '[x.tif, 3]')
    """
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.strip()[1:-1]


def _head(draft: Draft) -> list[str]:
    mapping = draft.labels is None
    task = "Fill in `map.model` and `classes`" if mapping else "Check the classes"
    return [
        f"# Configuration of mibf for {draft.name}, written by `mibf init`. {task}, then run",
        f"#   mibf run {draft.output}",
        "# docs/configuration.md lists every key. Relative paths start at the folder in which mibf is run.",
        "# For completion in editors: run `mibf schema --output mibf.schema.json` and make this the first line:",
        "#   yaml-language-server: $schema=mibf.schema.json",
        f"name: {scalar(draft.name)}  # shown in the report",
        f"workspace: {scalar(draft.workspace)}  # all results go here: a folder or the URL of an object store",
    ]


def _scene(draft: Draft) -> list[str]:
    first, is_single = draft.sources[0].source, len(draft.sources) == 1
    lines = [
        "scenes:",
        f"  - name: {scalar(draft.name)}",
        "    # datetime: 2024-07-01T10:30:00Z  # time of acquisition, for the STAC item of the map",
        *([GRID_OF_ONE] if is_single else GRID),
        f"    grid: {{like: {scalar(first.name)}}}",
        *([] if is_single else [ORDER]),
        "    sources:",
    ]
    for placed in draft.sources:
        lines += _source(placed)
    if draft.labels is None:
        return [*lines, LABELS_HINT]
    return lines + label_section(draft.labels)


def _source(placed: PlacedSource) -> list[str]:
    source, file = placed.source, placed.source.files[0]
    lines = [f"      # {source.describe()}", f"      {scalar(source.name)}:"]

    def add(key: str, value: Any, comment: str = "") -> None:
        lines.append(f"        {key}: {scalar(value)}" + (f"  # {comment}" if comment else ""))

    if len(source.urls) == 1:
        add("url", source.urls[0])
    else:
        lines.append("        urls:  # their bands are stacked in this order")
        lines.extend(f"          - {scalar(url)}" for url in source.urls)
    if file.variable is not None:
        add("variable", file.variable)
    if file.axes is not None:
        add("axes", list(file.axes), "assumed, as MATLAB's size() shows them; check it")
    if file.bands is not None:
        add("bands", list(file.bands), "without the transparency band")
    if placed.scale > 1:
        add("scale", placed.scale, f"kept {placed.scale} times as fine as the grid")
    if placed.resampling is not None:
        add("resampling", placed.resampling, "to the grid; nearest, bilinear, cubic, average and others")
    integers = all(np.dtype(dtype).kind in "iu" for head in source.headers for dtype in head.dtypes)
    if integers and all(value is None for head in source.headers for value in head.nodata):
        lines.append("        # nodata: 0  # the files declare no nodata value; set it if one of their values means no data")
    if placed.coverage < FULL_COVERAGE:
        comment = f"covers {100 * placed.coverage:.0f} % of the grid; `fill` maps the rest without this source"
        add("missing", "exclude", comment)
    return lines


def label_section(found: DetectedLabels) -> list[str]:
    """Return the lines of a scene's labels."""
    labels = found.labels
    lines = ["    labels:", f"      url: {scalar(found.url)}"]
    for key, comment in (
        ("attribute", "column with the class"),
        ("layer", ""),
        ("variable", ""),
        ("band", "the other one is transparency"),
    ):
        value = getattr(labels, key)
        if value is not None:
            lines.append(f"      {key}: {scalar(value)}" + (f"  # {comment}" if comment else ""))
    if labels.ignore:
        lines.append(f"      ignore: {scalar(list(labels.ignore))}  # no label; move a value to `classes` if it is a class")
    return lines


def _classes(draft: Draft) -> list[str]:
    classes: tuple[DetectedClass, ...] = PLACEHOLDERS if draft.labels is None else draft.labels.classes
    if draft.labels is None:
        line = "# The classes of the model, in its order; `mibf bundle show MODEL` lists them."
    elif draft.labels.labels.attribute is None:
        line = "# `id` is the value in the labels and in the map; names and colours are free."
    else:
        line = "# `id` is the value in the map. A name, or the id, is what the labels call the class; colours are free."
    lines = [line]
    lines.append("classes:")
    for c in classes:
        count = f"  # {c.pixels:,} labelled pixels" if c.pixels else ""
        lines.append(f'  - {{id: {c.id}, name: {scalar(c.name)}, color: "{c.color}"}}{count}')
    return lines


def _training(draft: Draft) -> list[str]:
    assert draft.split is not None
    training = int(draft.split.samples[0].sum())
    shares = draft.split.pixels / draft.split.pixels.sum()
    split = {
        "method": "blocks",
        "block": draft.split.block,
        "fractions": FractionsSection().model_dump(),
        "seed": BlocksSection().seed,
    }
    lines = [
        f"# Square blocks of `block` pixels, {draft.split.labelled_blocks:,} of them with labels; the buffer is patch - 1.",
        "# With more scenes, {method: scenes, test: [NAME]} tests on entire ones.",
        f"split: {scalar(split)}",
        "# Side of the neighbourhood that the network sees, in pixels of the grid, odd.",
        f"model: {{patch: {draft.patch}}}",
    ]
    if shares.min() < _RARE:
        name = draft.labels.classes[int(shares.argmin())].name if draft.labels is not None else ""
        lines += [
            f"# {name} has {100 * shares.min():.2g} % of the labels. To find rare classes at the cost of common ones:",
            "# sampling: {frequencies: sqrt}",
            "# prediction: {priors: uniform}",
        ]
    return [
        *lines,
        f"# {training:,} training pixels. `auto` chooses how to train by trials on blocks of them, in `budget_minutes`.",
        "# `workers` are data-parallel: one for each GPU, or sharing the CPUs.",
        f"train: {scalar(TRAIN)}",
        "# More products: probabilities, entropy and others (docs/mapping.md).",
        f"map: {scalar(MAP)}",
    ]


def _mapping() -> list[str]:
    return [
        "# There are no labels to train on: map with a model that was trained on other scenes of these sources.",
        "map:",
        "  # model: work/OTHER/models/main  # folder or URL of the model",
        *(f"  {key}: {scalar(value)}" for key, value in MAP.items()),
    ]
