"""The command `view`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.common import Overrides, command, complete_config
from jobs.workflow.result import Result


@command("Products")
def view(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|URL",
            help="The YAML configuration file, or the folder of a published map: a path or URL.",
            show_default=False,
            autocompletion=complete_config,
        ),
    ],
    scene: Annotated[str | None, typer.Option(metavar="NAME", help="Show only this scene of CONFIG.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0 takes a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser.")] = True,
    allow_origin: Annotated[
        str | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this site read the maps, too, as https://example.org does."),
    ] = None,
    set_: Overrides = None,
) -> Result:
    """Show published maps in a browser, from a server at 127.0.0.1; Ctrl-C stops it. Read-only."""
    from jobs.view.view import find_maps, serve

    return serve(find_maps(target, overrides=set_ or (), scene=scene), port=port, browser=open_, origin=allow_origin)
