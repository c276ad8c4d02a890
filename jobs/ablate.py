"""ablate: what each part of the method, and each source, is worth on one's own scenes.

The configuration is trained as it is, then without each part of the network, then on each source alone: same split, same
seeds, same recipe. Figures are of validation pixels, which chose the epoch; test pixels are read where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.config import Config
from jobs.progress import say
from jobs.stages import Manifest, StageName, imported
from jobs.workspace import Workspace
from mibf.errors import InputError
from mibf.spec import BETWEEN, PARTS
from pipeline import storage

#: Does a stage of a configuration, unless it is current.
Stage = Callable[[Config, StageName], Manifest]
WHOLE = "the whole method"
#: What is told of each variant, and how it is headed.
FIGURES = {"overall_accuracy": "OA", "average_accuracy": "AA", "macro_f1": "macro-F1", "kappa": "kappa"}


@dataclass(frozen=True)
class Row:
    """One variant: its run, and the accuracies of its seeds on validation and, where they were read, test pixels."""

    variant: str
    run: str
    seconds: float
    validation: list[dict[str, float | None]]
    test: list[dict[str, float | None]]

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return vars(self)


def variants(config: Config) -> Iterator[tuple[str, Config]]:
    """The configuration, and what is left of it without each part or with each source alone; each a run of its own.

    Raises:
        InputError: the configuration leaves something out itself.
    """
    if config.model.without or config.model.sources is not None:
        raise InputError(
            "model.without or model.sources leaves a part of the method out; take them out of the configuration: an "
            "ablation begins with the whole method."
        )
    yield WHOLE, config
    for part in PARTS:
        yield f"without {part}", _changed(config, f"without-{part}", {"without": (part,)})
    for source in config.scenes[0].sources:
        alone = {"sources": (source,), "without": BETWEEN}
        yield f"{source} alone", _changed(config, f"only-{source}", alone, {"source_dropout": 0.0})


def _changed(config: Config, name: str, model: dict[str, Any], train: dict[str, Any] | None = None) -> Config:
    """Another run, with other values in these sections. A source alone cannot be lost."""
    values = config.model_dump()
    changed = {"model": values["model"] | model, "train": values["train"] | (train or {})}
    return Config.model_validate(values | {"run": f"{config.run}-{name}"} | changed)


def ablate(config: Config, stage: Stage, *, test: bool) -> list[Row]:
    """Train every variant that is not current, and with `test` evaluate it; the table is kept beside the run's figures."""
    planned = list(variants(config))
    workspace = Workspace.of(config)
    if imported(workspace):
        raise InputError(
            f"{workspace.bundle}: was read from a checkpoint of the authors, and an ablation trains; give it a run of its "
            "own, `--set run=NAME`."
        )
    if not (config.validated or test):
        raise InputError(
            "the split has no validation pixels, and test pixels are read only where that is asked for, so that there is "
            "nothing to tell; give it some (split.validation), or add --test and choose nothing by the table."
        )
    rows = []
    for variant, changed in planned:
        say(f"== {variant} (run {changed.run})")
        stage(changed, "prepare")
        trained = stage(changed, "train")
        validation = [
            _accuracies(seed["calibrated"]["trained"]) for seed in trained.figures["seeds"] if "calibrated" in seed
        ]
        measured = [_accuracies(seed) for seed in stage(changed, "evaluate").figures["seeds"]] if test else []
        rows.append(Row(variant, changed.run, trained.seconds, validation, measured))
    storage.write_json(workspace.ablation, [row.to_json() for row in rows])
    return rows


def _accuracies(figures: dict[str, Any]) -> dict[str, float | None]:
    return {key: figures[key] for key in FIGURES}


def table(rows: list[Row]) -> str:
    """The rows in Markdown: means over seeds, with their standard deviation where there are several."""
    seeds = max(len(row.validation) or len(row.test) for row in rows)
    subsets = [name for name in ("validation", "test") if any(getattr(row, name) for row in rows)]
    heads = [f"{subset} {name}" for subset in subsets for name in FIGURES.values()]
    lines = [
        f"Means over {seeds} seeds ± standard deviation." if seeds > 1 else "One seed: differences may be chance.",
        "",
        "| variant | " + " | ".join(heads) + " | training, s |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for row in rows:
        cells = [_cell([f[key] for f in getattr(row, subset)]) for subset in subsets for key in FIGURES]
        lines.append(f"| {row.variant} | " + " | ".join(cells) + f" | {row.seconds:.0f} |")
    lines += [
        "",
        "A source alone keeps the branch that it has among the others: wide for the first one, narrow for the rest.",
    ]
    return "\n".join(lines)


def _cell(values: list[float | None]) -> str:
    known = np.array(values, float)  # None, of what JSON cannot hold, is NaN
    if not np.isfinite(known).all() or not values:
        return "-"
    mean = f"{known.mean():.3f}"
    return mean if len(values) == 1 else f"{mean} ± {known.std(ddof=1):.3f}"
