"""`mibf bench`: measurements on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.cli.common import ConfigPath, Overrides, command, complete_config, parse_bands
from jobs.workflow.result import Result

if TYPE_CHECKING:
    from jobs.config.config import Config

#: Who publishes a scene in `mibf bench fleet`; as `jobs.bench.fleets.capacity.Publisher`, which takes long to import.
Publisher = Literal["driver", "workers"]

bench = typer.Typer(help="Measure speed and memory on this machine, as ratios to named baselines.", no_args_is_help=True)


@bench.callback()
def _bench() -> None:
    """Measure speed and memory on this machine, as ratios to named baselines."""


@command(name="network", group=bench)
def bench_network(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]", help="Use this configuration's trained model and scene.", autocompletion=complete_config
        ),
    ] = None,
    bands: Annotated[
        list[str] | None,
        typer.Option(metavar="B1+B2", help="Without CONFIG: bands of each source of a random network; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of timing rounds; medians are reported.")] = 7,
    set_: Overrides = None,
) -> Result:
    """Benchmark the network: patch by patch, in a loader loop, dense, and in training."""
    from jobs.bench import network

    loaded = _load(config, set_)
    return network.bench_network(loaded, bands=[parse_bands(text) for text in bands or ("64+2", "224+4")], rounds=rounds)


@command(name="prepare", group=bench)
def bench_prepare(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="Use this configuration's scenes; their sources must share a grid.",
            autocompletion=complete_config,
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="N|ROWSxCOLUMNS", help="Without CONFIG: size of a synthetic scene; repeatable."),
    ] = None,
    bands: Annotated[
        str, typer.Option(metavar="B1+B2", help="Without CONFIG: bands of each source of the synthetic scene.")
    ] = "4+2",
    rounds: Annotated[int, typer.Option(min=1, help="Number of timing rounds; medians are reported.")] = 3,
    codecs: Annotated[bool, typer.Option("--codecs", help="Compare compressors and shard sizes instead.")] = False,
    dates: Annotated[
        int | None,
        typer.Option(min=2, help="Compare a median of so many synthetic dates with odc-stac's instead; without CONFIG."),
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure peak memory by number of dates and scene size instead; without CONFIG.")
    ] = False,
    set_: Overrides = None,
) -> Result:
    """Benchmark prepare against a plain Dask copy of the same pixels: speed, memory, stored bytes."""
    import tempfile

    from jobs.bench import composites, prepare
    from mibf.errors import InputError

    if config is not None and (memory or dates is not None):
        raise InputError("--dates and --memory measure synthetic files; leave out CONFIG.")
    if memory:
        return composites.bench_memory()
    if dates is not None:
        return composites.bench_composites(dates, rounds=rounds)
    loaded = _load(config, set_)
    sizes = size or ["4096"]
    if not codecs:
        return prepare.bench_prepare(loaded, sizes=sizes, bands=bands, rounds=rounds)
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        return prepare.bench_codecs(loaded or prepare.synthetic(folder, size=sizes[0], bands=bands))


@command(name="batches", group=bench)
def bench_batches(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="Use this configuration's prepared stores.", autocompletion=complete_config),
    ] = None,
    bands: Annotated[
        str, typer.Option(metavar="B1+B2", help="Without CONFIG: bands of each source of a random scene.")
    ] = "64+2",
    rounds: Annotated[int, typer.Option(min=1, help="Number of timing rounds; medians are reported.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to time.")] = 200,
    set_: Overrides = None,
) -> Result:
    """Benchmark training batches on one core against a loader loop, and the time the network waits for them."""
    from jobs.bench import batches

    return batches.bench_batches(_load(config, set_), bands=parse_bands(bands), rounds=rounds, steps=steps)


@command(name="train", group=bench)
def bench_train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]", help="Use this configuration's prepared stores and settings.", autocompletion=complete_config
        ),
    ] = None,
    bands: Annotated[
        str, typer.Option(metavar="B1+B2", help="Without CONFIG: bands of each source of a random scene.")
    ] = "64+2",
    rounds: Annotated[int, typer.Option(min=1, help="Number of timing rounds; medians are reported.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to time in one process.")] = 200,
    workers: Annotated[
        bool,
        typer.Option(
            "--workers/--no-workers",
            help="Also compare two workers with one, two epochs each; sampling.epoch_fraction shortens them.",
        ),
    ] = True,
    set_: Overrides = None,
) -> Result:
    """Benchmark training against the authors' training loop, and two workers against one."""
    from jobs.bench import train

    return train.bench_train(_load(config, set_), bands=parse_bands(bands), rounds=rounds, steps=steps, workers=workers)


@command(name="map", group=bench)
def bench_map(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="Use this configuration's trained model and first scene.",
            autocompletion=complete_config,
        ),
    ] = None,
    bands: Annotated[
        str, typer.Option(metavar="B1+B2", help="Without CONFIG: bands of each source of a random scene.")
    ] = "64+2",
    size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Side length of the scene in pixels; repeatable with --memory. [default: 2048; with --memory 2048, "
            "4096, 8192 and 16384]",
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Network precision: float32 or bf16. [default: the configuration's, else float32]")
    ] = None,
    tile: Annotated[list[int] | None, typer.Option(metavar="N", help="Tile side in pixels; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of timing rounds; medians are reported.")] = 3,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Measure peak memory against scene size instead, with a minimal network."),
    ] = False,
    tiles: Annotated[
        int | None,
        typer.Option(min=100, metavar="N", help="Measure the scheduling overhead of N empty tiles instead."),
    ] = None,
    set_: Overrides = None,
) -> Result:
    """Benchmark mapping a scene against the bare network, memory against scene size, and the scheduling of many tiles."""
    from mibf.errors import InputError

    if memory and tiles is not None:
        raise InputError("--memory and --tiles are separate measurements; give only one.")
    if config is not None and (memory or tiles is not None or size):
        raise InputError("--size, --memory and --tiles generate their own scenes; omit CONFIG.")
    if memory:
        from jobs.bench import map_memory

        return map_memory.bench_memory(size or map_memory.SIDES)
    if tiles is not None:
        from jobs.bench import map_scheduling

        return map_scheduling.bench_tiles(tiles)
    if size and len(size) > 1:
        raise InputError("--size can be repeated only with --memory.")
    from jobs.bench import map as map_bench

    side = (size or [2048])[0]
    return map_bench.bench_map(
        _load(config, set_), bands=parse_bands(bands), side=side, rounds=rounds, precision=precision, tiles=tile or ()
    )


@command(name="loader", group=bench)
def bench_loader(
    bands: Annotated[
        list[str] | None,
        typer.Option(metavar="B1+B2", help="Bands of each source of a random scene; repeatable. [default: 4+2 and 64+2]"),
    ] = None,
    size: Annotated[int, typer.Option(metavar="N", help="Side length of the scenes in pixels.")] = 2048,
    rounds: Annotated[int, typer.Option(min=1, help="Number of timing rounds; medians are reported.")] = 3,
) -> Result:
    """Benchmark what a map reads and writes on one core and on two, with a network that costs nothing."""
    from jobs.bench import map_loader

    return map_loader.bench_loader([parse_bands(text) for text in bands or ("4+2", "64+2")], side=size, rounds=rounds)


@command(name="publish", group=bench)
def bench_publish(
    size: Annotated[int, typer.Option(metavar="N", help="Side length of the map in pixels.")] = 8192,
    rounds: Annotated[int, typer.Option(min=1, help="Number of timing rounds; medians are reported.")] = 3,
    folder: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Folder for the published maps, such as one in a bucket. [default: a temporary one]"
        ),
    ] = None,
) -> Result:
    """Benchmark publishing a map on one and on more workers, and after a change of one tile, against a GDAL script."""
    from jobs.bench import publishing

    return publishing.bench_publishing(size, rounds=rounds, folder=folder)


@command(name="submit", group=bench)
def bench_submit(
    config: ConfigPath,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="The cluster's job server, as for `mibf submit`.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of timing rounds for both; medians are reported.")] = 5,
) -> Result:
    """Measure the overhead of a cluster job over the same command run directly. CONFIG must already be prepared."""
    from jobs.bench.fleets import submit

    return submit.bench_submit(config, address, rounds=rounds)


@command(name="rerun", group=bench)
def bench_rerun(
    to: Annotated[
        str | None, typer.Option(metavar="URL", help="Folder or bucket prefix for the runs. [default: a temporary folder]")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Number of runs mapped in parallel.")] = 200,
    parallel: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 8,
    few: Annotated[int, typer.Option(min=1, help="Number of runs mapped one after the other.")] = 5,
) -> Result:
    """Measure `mibf rerun --all --parallel` on many small runs, against one after the other."""
    from jobs.bench.fleets import rerun

    return rerun.bench_rerun(to, runs=runs, parallel=parallel, few=few)


@command(name="fleet", group=bench)
def bench_fleet(
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 10_000,
    pixels: Annotated[float, typer.Option(min=1, help="Pixels per scene.")] = 1e8,
    workers: Annotated[int, typer.Option(min=1, help="Total workers over all drivers, each one GPU or several CPUs.")] = 100,
    side_by_side: Annotated[int, typer.Option(min=1, help="Scenes mapped in parallel.")] = 1,
    rate: Annotated[float, typer.Option(min=1, help="Pixels per second of one worker, from `mibf bench map`.")] = 50_000.0,
    price: Annotated[float | None, typer.Option(min=0, help="Price per worker-hour, in any currency.")] = None,
    publisher: Annotated[
        Publisher, typer.Option(help="Who publishes: the scene's driver alone, or its workers in parallel.")
    ] = "workers",
    publish_seconds: Annotated[float, typer.Option(min=0, help="Seconds of one process to publish one pixel.")] = 0.4e-6,
    tile_gets: Annotated[
        float | None, typer.Option(min=0, help="GET requests per tile for its input. [default: 8 per source]")
    ] = None,
    get_rate: Annotated[float, typer.Option(min=1, help="GET requests per second that the bucket answers.")] = 5500.0,
    page: Annotated[bool, typer.Option(help="Whether a page is published with each map (`map.page`).")] = True,
    simulate: Annotated[
        int | None,
        typer.Option("--simulate", min=100, metavar="N", help="Also simulate planning, ledger and reruns for N tiles."),
    ] = None,
) -> Result:
    """Estimate time, cost, objects and requests for many scenes; optionally simulate many tiles."""
    from jobs.bench.fleets import capacity

    fleet = capacity.Fleet(
        scenes,
        pixels,
        workers,
        side_by_side,
        rate,
        price=price,
        publisher=publisher,
        publish_seconds=publish_seconds,
        tile_gets=tile_gets,
        get_rate=get_rate,
        page=page,
    )
    return capacity.Capacity(fleet, None if simulate is None else capacity.simulate(simulate))


@command(name="planning", group=bench)
def bench_planning(
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 10_000,
    side: Annotated[int, typer.Option(min=256, help="Side of each scene in pixels.")] = 10_000,
) -> Result:
    """Measure the planning of many scenes: assignment of blocks, order of samples, opening of stores."""
    from jobs.bench.fleets import planning

    return planning.bench_planning(scenes=scenes, side=side)


@command(name="polygons", group=bench)
def bench_polygons(
    size: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Side of a synthetic map in pixels; repeatable. [default: 2048, 4096 and 8192]"),
    ] = None,
) -> Result:
    """Benchmark `mibf polygons`: time and peak memory against the size of the map, and against a script."""
    from jobs.bench import polygons

    return polygons.bench_polygons(size or polygons.SIDES)


def _load(config: str | None, overrides: list[str] | None) -> Config | None:
    """Load the configuration if one is given."""
    from jobs.config.loader import load

    return None if config is None else load(config, overrides=overrides or ())
