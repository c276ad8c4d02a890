"""Read-only commands: plan, status, verify, runs."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.common import ConfigPath, Failed, Overrides, Yes, command
from jobs.workflow.result import Result


@command("Inspect")
def plan(config: ConfigPath, set_: Overrides = None, yes: Yes = False) -> Result:
    """Estimate what `prepare` and `map` would write, and the memory and time they need. Read-only."""
    from jobs.config.loader import load
    from jobs.inspection.plan import plan as make_plan

    return make_plan(load(config, overrides=set_ or ()), any_size=yes)


@command("Inspect")
def status(config: ConfigPath, set_: Overrides = None) -> Result:
    """Show every scene's tiles by state, with the causes of failed and stale tiles. Read-only."""
    from jobs.config.loader import load
    from jobs.map.status import status as map_status

    return map_status(load(config, overrides=set_ or ()))


@command("Inspect")
def verify(
    config: ConfigPath,
    sample: Annotated[
        int, typer.Option(min=0, metavar="N", help="Recompute N tiles of each map and compare them bit for bit.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed for selecting the tiles to recompute.")] = 0,
    set_: Overrides = None,
) -> Result | Failed:
    """Check the patch stores and published maps against their records; exit status 3 if any object is corrupt."""
    from jobs.config.loader import load
    from jobs.inspection.verify import verify as verify_run
    from jobs.workflow.errors import BrokenError

    verified = verify_run(load(config, overrides=set_ or ()), sample=sample, seed=seed)
    return Failed(verified, BrokenError("\n".join(verified.remedies))) if verified.remedies else verified


@command("Inspect")
def runs(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A workspace, or a folder that contains workspaces: a path or URL.", show_default=False
        ),
    ],
) -> Result:
    """List every run below a URL with its state. Read-only."""
    from jobs.fleet.runs import runs as list_runs

    return list_runs(url)
