"""Commands for what comes after the map: polygons, change, export."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.common import Overrides, command, complete_config
from jobs.workflow.result import Result

Target = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG|MAP_URL",
        help="The YAML configuration file, or the folder of a published map: a path or URL.",
        show_default=False,
        autocompletion=complete_config,
    ),
]
Scene = Annotated[str | None, typer.Option(metavar="NAME", help="Only this scene of the configuration.")]


@command("Products")
def polygons(
    target: Target,
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="File to write, .gpkg or .parquet; repeatable; {scene} is the scene's name. "
            "[default: polygons.gpkg and polygons.parquet in the map's folder]",
        ),
    ] = None,
    majority: Annotated[int, typer.Option(metavar="N", help="First take the most frequent class of N x N pixels; odd.")] = 1,
    sieve: Annotated[int, typer.Option(metavar="N", help="Remove regions of fewer than N pixels.")] = 1,
    minimum: Annotated[
        float, typer.Option(metavar="HECTARES", help="Minimum mapping unit: remove regions that are smaller.")
    ] = 0.0,
    connectivity: Annotated[
        int, typer.Option(metavar="4|8", help="Pixels are connected at edges (4), or at corners as well (8).")
    ] = 4,
    scene: Scene = None,
    set_: Overrides = None,
) -> Result:
    """Write the polygons of a published class map: class, area in hectares, mean confidence, pixels."""
    from jobs.products.polygons import polygons as write
    from pipeline.polygons.generalize import Rules

    rules = Rules(majority, sieve, minimum, connectivity)  # type: ignore[arg-type]  # checked by Rules
    return write(target, rules, outputs=output or (), scene=scene, overrides=set_ or ())


SceneOfBoth = Annotated[str | None, typer.Option(metavar="NAME", help="The scene, where a configuration has several.")]
_MAP_HELP = "The {} map: a YAML configuration file, or the folder of a published map, a path or URL."


@command("Products")
def change(
    first: Annotated[str, typer.Argument(metavar="A", help=_MAP_HELP.format("earlier"), autocompletion=complete_config)],
    second: Annotated[str, typer.Argument(metavar="B", help=_MAP_HELP.format("later"), autocompletion=complete_config)],
    output: Annotated[str | None, typer.Option(metavar="URL", help="Also write all transitions as a table, .csv.")] = None,
    raster: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Also write a raster of the transitions, .tif: 1000 x class in A + class in B."),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Estimate areas of change from labelled points, with columns `before` and `after`."
        ),
    ] = None,
    sampled_by: Annotated[
        str,
        typer.Option(metavar="DESIGN", help="How the points were drawn: within transitions (see --raster), or random."),
    ] = "transitions",
    scene: SceneOfBoth = None,
) -> Result:
    """Compare two published maps of the same grid: pixels and hectares by class in A and B; with a sample, the estimate."""
    from jobs.products.change import change as compare
    from jobs.products.published import one_map

    maps = [one_map(target, scene=scene) for target in (first, second)]
    return compare(*maps, output=output, raster=raster, sample=sample, sampled_by=sampled_by)


@command("Models")
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|CONFIG",
            help="The folder of a trained model, or the YAML configuration that it was trained with: a path or URL.",
            show_default=False,
            autocompletion=complete_config,
        ),
    ],
    output: Annotated[
        str | None, typer.Option(metavar="URL", help="Folder to write. [default: export/ in the model's folder]")
    ] = None,
    set_: Overrides = None,
) -> Result:
    """Export the networks of a model as ONNX and torch.export, with normalization inside, verified against mibf."""
    from jobs.products.export import export as export_model

    return export_model(model, output=output, overrides=set_ or ())
