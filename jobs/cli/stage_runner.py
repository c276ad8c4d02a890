"""Run stages of a configuration, with progress lines and a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.config.config import Config
    from jobs.workflow.manifest import Manifest, StageName
    from jobs.workflow.runner import StageFunction


@dataclass(frozen=True)
class RunSummary:
    """The stages of a run, each with whether it ran or was current and skipped."""

    config: Config
    stages: Sequence[tuple[Manifest, bool]]

    def lines(self) -> list[str]:
        """Format the metrics and outputs of every stage, below an empty line."""
        lines = [""]
        for manifest, ran in self.stages:
            lines.append(f"{manifest.stage}  ({_format_duration(manifest)}{'' if ran else '; current, skipped'})")
            lines += [f"  {line}" for line in manifest.lines]
        return [*lines, "", "made:", *(f"  {output}" for manifest, _ in self.stages for output in manifest.outputs)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        stages = [vars(manifest) | {"skipped": not ran} for manifest, ran in self.stages]
        return {"name": self.config.name, "run": self.config.run, "stages": stages}


def run_one_stage(config: Config, stage: StageName, *, keep_current: bool, **options: Any) -> tuple[Manifest, bool]:
    """Run a stage; with `keep_current` skip it if it is current. Returns its manifest, and whether it ran."""
    from jobs.runtime.progress import info
    from jobs.workflow.runner import run_stage, stale_dependencies

    for needed in () if keep_current else stale_dependencies(config, stage):
        info(
            f"warning: `{needed}` is not current (configuration, inputs or algorithm version changed); `mibf run` "
            "would run it again"
        )

    def work(*arguments: Any) -> Any:
        info(f"== {stage}")
        return _stage_function(stage, options)(*arguments)

    manifest, ran = run_stage(config, stage, work, keep_current=keep_current)
    info(f"   {stage}: {_format_duration(manifest) if ran else 'current, skipped'}")
    return manifest, ran


def _format_duration(manifest: Manifest) -> str:
    return f"{manifest.seconds:.0f} s, peak memory {manifest.peak_memory_bytes / 1e9:.2f} GB"


def _stage_function(stage: StageName, options: dict[str, Any]) -> StageFunction:
    """Return a stage's function with its options, importing only what that stage needs."""
    if stage == "prepare":
        from jobs.prepare.stage import prepare

        return partial(prepare, **options)
    if stage == "train":
        from jobs.train.stage import train

        return partial(train, **options)
    elif stage == "evaluate":
        from jobs.evaluate.stage import evaluate as stage_function
    elif stage == "baseline":
        from jobs.baseline.stage import baseline as stage_function
    elif stage == "map":
        from jobs.map.request import TileRequest
        from jobs.map.stage import map_scenes

        return partial(map_scenes, request=TileRequest(**options))
    else:
        from jobs.report.stage import report as stage_function
    return stage_function
