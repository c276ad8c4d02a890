"""Commands for scheduled reruns and cluster jobs: rerun, submit."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from jobs.cli.common import Failed, OldRestart, Overrides, Replace, Yes, command, complete_config, complete_stage
from jobs.workflow.result import Result


@command("Operate")
def rerun(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="The YAML configuration file; omit it with --all.",
            autocompletion=complete_config,
        ),
    ] = None,
    all_: Annotated[
        str | None,
        typer.Option(
            "--all", metavar="URL", help="Rerun every run below this URL, each with the configuration of its last map."
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="With --all: this many runs at a time, on workers that they share. [default: 1]"
        ),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only tiles that failed.")] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Only tiles whose input, model or settings have changed.")] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Only tiles that have never finished.")] = False,
    tiles: Annotated[list[str] | None, typer.Option(metavar="[SCENE/]yN_xN", help="Only this tile; repeatable.")] = None,
    max_attempts: Annotated[int, typer.Option(min=1, help="Failed attempts after which a tile is skipped and listed.")] = 10,
    backoff: Annotated[
        float, typer.Option(min=0, help="Seconds between a tile's failure and its next attempt; doubles with each failure.")
    ] = 0.0,
    replace: Replace = False,
    set_: Overrides = None,
) -> Result | Failed:
    """Map only missing, failed or stale tiles. For schedules: prints nothing if there is nothing to map."""
    from mibf.errors import InputError

    chosen = [state for state, requested in (("failed", failed), ("stale", stale), ("pending", missing)) if requested]
    options: dict[str, Any] = {"max_attempts": max_attempts, "backoff": backoff, "replace": replace}
    options |= ({"states": tuple(chosen)} if chosen else {}) | ({"tiles": tuple(tiles)} if tiles else {})
    if (config is None) == (all_ is None):
        raise InputError("give a CONFIG, or --all URL to rerun every run below that URL.")
    if all_ is not None:
        if tiles or set_:
            raise InputError("--tiles and --set apply to a single run; give its CONFIG instead of --all.")
        return _rerun_all(all_, options, parallel)
    if parallel is not None:
        raise InputError("--parallel applies to --all; scenes of one configuration share its `map.workers`.")
    return _rerun_one(config or "", set_, options)


def _rerun_all(url: str, options: dict[str, Any], parallel: int | None) -> Result | Failed:
    from jobs.fleet.runs import rerun_all
    from jobs.map.request import TileRequest

    found = rerun_all(url, TileRequest(**options), parallel=parallel)
    return Failed(found, typer.Exit(found.status)) if found.status else found


def _rerun_one(config: str, overrides: list[str] | None, options: dict[str, Any]) -> Result | Failed:
    from jobs.config.loader import load
    from jobs.map.request import TileRequest
    from jobs.map.rerun import rerun as rerun_tiles

    found = rerun_tiles(load(config, overrides=overrides or ()), TileRequest(**options))
    return found if found.failure is None else Failed(found, found.failure)


Stage = Annotated[
    str,
    typer.Argument(
        metavar="STAGE",
        help="prepare, train, evaluate, map, report, run, rerun or verify.",
        show_default=False,
        autocompletion=complete_stage,
    ),
]
OptionalConfig = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONFIG]", help="The YAML configuration: a local file or a URL.", autocompletion=complete_config
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The cluster's job server. [default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265]"
    ),
]


def _check_finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter("must be a number of CPUs.")
    return value


Cpus = Annotated[
    float,
    typer.Option(
        min=0,
        callback=_check_finite,
        help="CPUs for the driver, which it computes with, on any node that has them; 0 runs it on the head node.",
    ),
]
Gpus = Annotated[
    int,
    typer.Option(
        min=0,
        max=1,
        help="A GPU for the driver, for what it computes itself (evaluate, trials, `workers: 0`). Workers have their own.",
    ),
]
Memory = Annotated[int | None, typer.Option(min=1, metavar="BYTES", help="Memory for the driver.")]


@command("Operate")
def submit(
    stage: Stage,
    config: OptionalConfig = None,
    address: Address = None,
    cpus: Cpus = 1.0,
    gpus: Gpus = 0,
    memory: Memory = None,
    attempts: Annotated[int, typer.Option(min=1, help="Maximum number of submissions if the driver's node dies.")] = 3,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Stream the log and wait for the job to end.")] = True,
    again: Annotated[bool, typer.Option("--again", help="Submit even if an identical job has already succeeded.")] = False,
    all_: Annotated[str | None, typer.Option("--all", metavar="URL", help="For rerun: every run below this URL.")] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="For rerun: see `mibf rerun --help`.")] = None,
    backoff: Annotated[float | None, typer.Option(min=0, help="For rerun: see `mibf rerun --help`.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="For rerun --all: see `mibf rerun --help`.")
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="For prepare and run: search for STAC items again.")] = False,
    set_: Overrides = None,
    yes: Yes = False,
    _old_restart: OldRestart = False,
) -> Result | Failed:
    """Run a stage as a job on a Ray cluster. Streams its log to standard error and returns its exit status."""
    from jobs.fleet.submit import SubmitOptions
    from jobs.fleet.submit import submit as submit_job
    from mibf.errors import InputError

    values = {"--max-attempts": max_attempts, "--backoff": backoff, "--parallel": parallel}
    if parallel is not None and all_ is None:
        raise InputError("--parallel applies to rerun --all only.")
    options = SubmitOptions(
        stage,
        config,
        tuple(set_ or ()),
        everything=all_,
        options=_stage_options(stage, values, yes=yes, refresh=refresh),
        address=address,
        cpus=cpus,
        gpus=gpus,
        memory=memory,
        attempts=attempts,
        follow=follow,
        again=again or refresh,
    )
    submitted = submit_job(options)
    return Failed(submitted, typer.Exit(submitted.exit_status)) if submitted.exit_status else submitted


def _stage_options(stage: str, values: dict[str, float | None], *, yes: bool, refresh: bool) -> tuple[str, ...]:
    """The options of the submitted command as command-line arguments; `values` are those of `mibf rerun`."""
    from mibf.errors import InputError

    options = tuple(text for name, value in values.items() if value is not None for text in (name, f"{value:g}"))
    if options and stage != "rerun":
        raise InputError(f"{options[0]} applies to rerun only.")
    flags = tuple(name for name, given in (("--yes", yes), ("--refresh", refresh)) if given)
    if flags and stage not in ("prepare", "run"):
        raise InputError(f"{flags[0]} applies to prepare and run only.")
    return (*options, *flags)
