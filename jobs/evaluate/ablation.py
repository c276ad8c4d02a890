"""`mibf ablate`: measure the contribution of each part of the method, and of each source, on the user's own scenes.

The configuration is trained as it is, then without each part of the network, including the centre path if it has one, then
on each source alone, with the same split, seeds and recipe. If there is only one source, it cannot be left out, and the
network has no part that relates sources. Metrics are on validation pixels, which also selected the epoch; test pixels are
read only on request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.config.config import Config
from jobs.runtime.progress import info
from jobs.workflow.fingerprint import imported_checkpoint
from jobs.workflow.manifest import Manifest, StageName
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from mibf.network.spec import BETWEEN, ONE_SOURCE, PARTS
from pipeline.io import storage
from pipeline.io.lease import acquire

#: Runs a stage of a configuration unless it is current.
Stage = Callable[[Config, StageName], Manifest]
WHOLE = "full method"
#: End of the name of a variant with a single source.
ALONE = " alone"
BRANCHES = "A single source keeps the branch that it has in the full method: wide for the first source, narrow for the rest."
#: The reported metrics of each variant, with their column headings.
FIGURES = {"overall_accuracy": "OA", "average_accuracy": "AA", "macro_f1": "macro-F1", "kappa": "kappa"}


@dataclass(frozen=True)
class Row:
    """One variant: its run, and the accuracies of its seeds on validation pixels and, if they were read, test pixels."""

    variant: str
    run: str
    seconds: float
    validation: list[dict[str, float | None]]
    test: list[dict[str, float | None]]

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return vars(self)


@dataclass(frozen=True)
class Ablation:
    """All variants, the full method first."""

    rows: list[Row]

    def lines(self) -> list[str]:
        """Format the rows as a Markdown table: means over seeds, with the standard deviation if there are several."""
        seeds = max(len(row.validation) or len(row.test) for row in self.rows)
        subsets = [name for name in ("validation", "test") if any(getattr(row, name) for row in self.rows)]
        heads = [f"{subset} {name}" for subset in subsets for name in FIGURES.values()]
        lines = [
            f"Means over {seeds} seeds ± standard deviation."
            if seeds > 1
            else "One seed: differences may be due to chance.",
            "",
            "| variant | " + " | ".join(heads) + " | training, s |",
            "|---" * (len(heads) + 2) + "|",
        ]
        for row in self.rows:
            cells = [_cell([f[key] for f in getattr(row, subset)]) for subset in subsets for key in FIGURES]
            lines.append(f"| {row.variant} | " + " | ".join(cells) + f" | {row.seconds:.0f} |")
        alone = any(row.variant.endswith(ALONE) for row in self.rows)
        return [*lines, "", BRANCHES if alone else f"{ONE_SOURCE[0].upper()}{ONE_SOURCE[1:]}: there is less to leave out."]

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to JSON values."""
        return [row.to_json() for row in self.rows]


def variants(config: Config) -> Iterator[tuple[str, Config]]:
    """The configuration, then the variants without each part and with each source alone, each as a separate run.

    Raises:
        InputError: the configuration itself leaves something out, or does not train a single network by a fixed recipe.
    """
    only = len(config.scenes[0].sources) == 1
    absent = BETWEEN if only else ()  # parts that no network of these sources has
    if set(config.model.without) - set(absent) or config.model.sources is not None:
        raise InputError(
            "model.without or model.sources leaves out a part of the method; remove them from the configuration: an "
            "ablation starts from the full method."
        )
    if config.train.recipe == "auto" or config.model.kind != "mibf" or config.train.ensemble or config.train.blend:
        raise InputError(
            "an ablation compares networks that are trained alike, but `auto`, boosted trees, ensembles and blends make "
            "other models of each variant; set `train.recipe: standard`, and leave out model.kind, train.ensemble and "
            "train.blend."
        )
    yield WHOLE, config
    for part in (part for part in PARTS if part not in absent):
        yield f"without {part}", _changed(config, f"without-{part}", {"without": (part,)})
    if config.model.centre:
        yield "without centre", _changed(config, "without-centre", {"centre": False})
    for source in () if only else config.scenes[0].sources:
        model = {"sources": (source,), "without": BETWEEN}
        yield f"{source}{ALONE}", _changed(config, f"only-{source}", model, {"source_dropout": 0.0})


def _changed(config: Config, name: str, model: dict[str, Any], train: dict[str, Any] | None = None) -> Config:
    """The configuration as another run, with changed values in these sections. A single source cannot be dropped out."""
    values = config.model_dump()
    changed = {"model": values["model"] | model, "train": values["train"] | (train or {})}
    if "sources" in model:  # no variant is mapped, so a product that a single source lacks must not refuse it
        changed["map"] = values["map"] | {"products": [p for p in config.map.products if p != "gate"] or ["class"]}
    return Config.model_validate(values | {"run": f"{config.run}-{name}"} | changed)


def ablate(config: Config, stage: Stage, *, test: bool) -> Ablation:
    """Train every variant that is not current, and evaluate it if `test`; store the table alongside the run's metrics."""
    planned = list(variants(config))
    workspace = Workspace.of(config)
    if imported_checkpoint(workspace):
        raise InputError(
            f"{workspace.bundle}: was imported from a reference checkpoint, but an ablation trains its own models; use "
            "another run name (`--set run=NAME`)."
        )
    if not (config.validated or test):
        raise InputError(
            "the split has no validation pixels, and test pixels are read only on request, so there is nothing to report; "
            "add validation pixels (split.validation), or add --test and do not use the table for model selection."
        )
    rows = []
    for variant, changed in planned:
        info(f"== {variant} (run {changed.run})")
        stage(changed, "prepare")
        trained = stage(changed, "train")
        validation = [
            _accuracies(seed["calibrated"]["trained"]) for seed in trained.figures["seeds"] if "calibrated" in seed
        ]
        measured = [_accuracies(seed) for seed in stage(changed, "evaluate").figures["seeds"]] if test else []
        rows.append(Row(variant, changed.run, trained.seconds, validation, measured))
    found = Ablation(rows)
    with acquire(workspace.url, what=f"mibf ablate of {config.name}, run {config.run}") as lease:
        lease.check()
        storage.write_json(workspace.ablation, found.to_json())
    return found


def _accuracies(figures: dict[str, Any]) -> dict[str, float | None]:
    return {key: figures[key] for key in FIGURES}


def _cell(values: list[float | None]) -> str:
    known = np.array(values, float)  # None, which stands for values that JSON cannot represent, becomes NaN
    if not np.isfinite(known).all() or not values:
        return "-"
    mean = f"{known.mean():.3f}"
    return mean if len(values) == 1 else f"{mean} ± {known.std(ddof=1):.3f}"
