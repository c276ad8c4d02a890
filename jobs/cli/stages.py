"""Commands that run stages: demo, run, prepare, train, evaluate, map, report; and synth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.common import ALL_STAGES, ConfigPath, OldRestart, Overrides, Refresh, Replace, Restart, Yes, command
from jobs.cli.stage_runner import RunSummary, run_one_stage
from jobs.workflow.result import Result

if TYPE_CHECKING:
    from jobs.config.config import Config
    from jobs.workflow.manifest import StageName


@command("Run")
def demo(
    workspace: Annotated[
        str | None, typer.Option(help="Folder or URL for the results; default mibf-demo, with --search mibf-demo-search.")
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Search a STAC catalogue that is made of the sample, with three cloudy days, and combine them, instead of "
            "reading the sample's files. The catalogue is written to WORKSPACE-catalogue.",
        ),
    ] = False,
    set_: Overrides = None,
) -> Result:
    """Run all stages on the real Sentinel-2 sample bundled with mibf."""
    if search:
        from jobs.sample.catalogue import search_config
        from mibf.errors import InputError

        workspace = workspace or "mibf-demo-search"
        if "://" in workspace:
            raise InputError(f"--workspace {workspace}: must be a folder with --search, for the catalogue is next to it.")
        config = search_config(Path(f"{workspace.rstrip('/')}-catalogue"))
    else:
        from jobs.sample import demo_config

        workspace = workspace or "mibf-demo"
        config = demo_config()
    overrides = [f"workspace={json.dumps(workspace)}", *(set_ or [])]
    return _stages(config, overrides, ALL_STAGES, keep_current=True, map={"replace": True})


@command("Run")
def run(
    config: ConfigPath,
    set_: Overrides = None,
    refresh: Refresh = False,
    restart: Restart = False,
    _old_restart: OldRestart = False,
    yes: Yes = False,
) -> Result:
    """Run all stages, from prepare to report, skipping those that are current."""
    options = {"prepare": {"any_size": yes}, "train": {"restart": restart}, "map": {"replace": True}}
    return _stages(config, set_, ALL_STAGES, keep_current=True, refresh=refresh, **options)


@command("Run")
def prepare(config: ConfigPath, set_: Overrides = None, refresh: Refresh = False, yes: Yes = False) -> Result:
    """Build the patch stores of all scenes, split the samples and fit the normalization."""
    return _stages(config, set_, ("prepare",), keep_current=False, refresh=refresh, prepare={"any_size": yes})


@command("Run")
def train(config: ConfigPath, set_: Overrides = None, restart: Restart = False, _old_restart: OldRestart = False) -> Result:
    """Train the network on the training subset; the epoch with the best validation score becomes the model."""
    return _stages(config, set_, ("train",), keep_current=False, train={"restart": restart})


@command("Run")
def evaluate(
    config: ConfigPath,
    scene: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|CONFIG#NAME",
            help="Evaluate this scene alone: one of CONFIG on its test samples, one that another configuration declares "
            "on all its samples; repeatable.",
        ),
    ] = None,
    set_: Overrides = None,
) -> Result:
    """Evaluate the model on the held-out test subset, or on single scenes."""
    if scene:
        from jobs.config.loader import load
        from jobs.evaluate.scene_accuracy import evaluate_scenes

        return evaluate_scenes(load(config, overrides=set_ or ()), scene)
    return _stages(config, set_, ("evaluate",), keep_current=False)


@command("Run", name="map")
def map_(
    config: ConfigPath,
    restart: Annotated[bool, typer.Option("--restart", help="Map every tile, including finished ones.")] = False,
    _old_restart: OldRestart = False,
    replace: Replace = False,
    set_: Overrides = None,
) -> Result:
    """Map whole scenes to cloud-optimised GeoTIFFs; only missing, failed and stale tiles are computed."""
    return _stages(config, set_, ("map",), keep_current=False, map={"restart": restart, "replace": replace})


@command("Run")
def report(config: ConfigPath, set_: Overrides = None) -> Result:
    """Write the results as one self-contained HTML page."""
    return _stages(config, set_, ("report",), keep_current=False)


@command("Develop")
def synth(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A local folder for the scene's files.", show_default=False)
    ],
    size: Annotated[str, typer.Option(metavar="N|ROWSxCOLUMNS", help="Size of the reference grid in pixels.")] = "1024",
    bands: Annotated[
        str,
        typer.Option(
            metavar="B1+B2", help="Bands of each source, two or more; for a finer source BANDS@SCALE, as in 4+1@4."
        ),
    ] = "4+2",
    labelled: Annotated[float, typer.Option(metavar="SHARE", help="Fraction of labelled pixels.")] = 0.2,
    nodata: Annotated[
        float, typer.Option(metavar="SHARE", help="Fraction of nodata pixels in each source after the first.")
    ] = 0.0,
    blob: Annotated[
        int | None,
        typer.Option(help="Typical size of a land-cover region in pixels. [default: 24, less for small scenes]"),
    ] = None,
    crs: Annotated[
        str, typer.Option(help="Coordinate reference system, projected (10-unit pixels) or geographic.")
    ] = "EPSG:32633",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed of the whole scene.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a scene that is already in the folder.")] = False,
) -> Result:
    """Write a synthetic scene that no single source can classify, with its ground truth and configuration."""
    from jobs.sample.synthetic import synth as write_scene

    return write_scene(
        folder,
        size=size,
        bands=bands,
        labelled=labelled,
        nodata=nodata,
        blob=blob,
        crs=crs,
        seed=seed,
        overwrite=overwrite,
    )


def _stages(
    config: str,
    overrides: Sequence[str] | None,
    stages: Sequence[StageName],
    *,
    keep_current: bool,
    refresh: bool = False,
    **options: dict[str, Any],
) -> RunSummary:
    """Run stages of a configuration in order, each with the options given under its name; search for items before."""
    from jobs.config.loader import load

    loaded = load(config, overrides=overrides or ())
    if len(stages) > 1 and loaded.map.model is not None:
        _check_model(loaded)
        stages = stages if loaded.trainable else ("prepare", "map")
    if not loaded.baselines.enabled:
        stages = [stage for stage in stages if stage != "baseline"]
    if "prepare" in stages:
        from jobs.search.frozen import freeze

        freeze(loaded, refresh=refresh)
    done = [run_one_stage(loaded, stage, keep_current=keep_current, **options.get(stage, {})) for stage in stages]
    return RunSummary(loaded, done)


def _check_model(config: Config) -> None:
    """Refuse an external model (map.model) that cannot map these scenes, before any earlier stage runs."""
    from jobs.map.spec import MapSpec
    from jobs.workflow.workspace import Workspace

    MapSpec.of(config, Workspace.of(config))
