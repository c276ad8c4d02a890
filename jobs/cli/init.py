"""Commands for a first configuration: search, init, schema."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.cli.common import app, command, exit_on_error
from jobs.workflow.result import Result


@command("Run")
def search(
    catalogue: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="A STAC API, a static catalogue or collection, or a file of items (.json, .parquet).",
            show_default=False,
        ),
    ],
    dates: Annotated[
        str,
        typer.Option(metavar="START/END", help="First and last day, as in 2024-03-01/2024-10-31.", show_default=False),
    ],
    output: Annotated[
        str, typer.Option(metavar="FILE", help="File for the items: .parquet (STAC-GeoParquet) or .json.")
    ] = "items.parquet",
    area: Annotated[str | None, typer.Option(metavar="FILE", help="Vector file with the polygons to cover.")] = None,
    bbox: Annotated[
        str | None, typer.Option(metavar="W,S,E,N", help="Box to cover, in degrees; W > E crosses the antimeridian.")
    ] = None,
    collection: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Collection to search; repeatable. By default all.")
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option("--filter", metavar="CQL2", help="Filter of an API, as in 'eo:cloud_cover < 20', or as CQL2 JSON."),
    ] = None,
    max_items: Annotated[int, typer.Option(min=1, metavar="N", help="Refuse a search that finds more.")] = 1000,
    refresh: Annotated[bool, typer.Option("--refresh", help="Replace an earlier result, and say what is new.")] = False,
) -> Result:
    """Find STAC items of an area and dates, and save them for `stac: {url: FILE}` of a configuration."""
    from jobs.search.search import find_items

    return find_items(
        catalogue,
        area=area,
        bbox=bbox,
        dates=dates,
        collections=collection or (),
        filter_text=filter_,
        max_items=max_items,
        output=output,
        refresh=refresh,
    )


@command("Run")
def init(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE...]",
            help="Rasters of one or more sources: FILE, or NAME=FILE,FILE for one source whose files hold bands that "
            "follow each other. FILE#ARRAY names an array of a MATLAB, Zarr, NetCDF or HDF5 file.",
            show_default=False,
        ),
    ] = None,
    area: Annotated[
        str | None, typer.Option(metavar="FILE", help="In place of rasters: vector file with the polygons to map.")
    ] = None,
    dates: Annotated[
        str | None, typer.Option(metavar="START/END", help="With --area: first and last day, as in 2024-03-01/2024-10-31.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --area: sources to search; s2-s1-dem, hls, landsat, alphaearth or tessera."),
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --recipe: earth-search or planetary-computer. By default the recipe's."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="FILE", help="Raster of class ids, or vector file; FILE#LAYER names a layer.")
    ] = None,
    attribute: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the vector file that holds the class.")
    ] = None,
    output: Annotated[str, typer.Option(metavar="FILE", help="Configuration to write; never overwritten.")] = "mibf.yaml",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the scene. By default that of the folder of the first file.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(metavar="URL", help="Where results will go. By default ./work/NAME.")
    ] = None,
) -> Result:
    """Write a commented configuration: of the files of a scene, with its plan, or of an area and dates."""
    from mibf.errors import InputError

    given: Any = {"labels": labels, "attribute": attribute, "output": output, "name": name, "workspace": workspace}
    if recipe is not None and not files:
        from jobs.init.recipe_config import init_recipe

        return init_recipe(recipe, area=area, dates=dates, api=api, **given)
    if not files or any(value is not None for value in (area, dates, recipe, api)):
        raise InputError("give either the rasters of a scene, or --area, --dates and --recipe.")
    from jobs.init.command import init_config

    return init_config(files, **given)


@app.command(rich_help_panel="Inspect")
def schema(
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="File to write, in place of standard output.", show_default=False)
    ] = None,
) -> None:
    """Print the JSON Schema of the configuration, for completion and checks in editors."""
    with exit_on_error():
        from jobs.init.config_schema import config_schema_text

        text = config_schema_text()
        if output is None:
            typer.echo(text, nl=False)
            return
        from pipeline.io import storage

        with storage.as_input_errors(output):
            storage.write_bytes(output, text.encode())
