"""The command line. Nothing heavy is imported until a command needs it: `mibf --help` answers at once.

Exit status: 0 done; 1 unexpected failure; 2 configuration or input refused, nothing written;
3 finished, with tiles that failed, or a store or map that is broken; 4 another run holds the workspace; 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jobs.config import Config
    from jobs.map import Request
    from jobs.stages import Manifest, StageName, Work

ALL_STAGES: tuple[StageName, ...] = ("prepare", "train", "evaluate", "map", "report")

app = typer.Typer(
    help="Honest, georeferenced land-cover maps from several sensors at once, with MIBF-Net.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML configuration file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Put a value in place of the file's; may be given again."),
]
Anew = Annotated[
    bool, typer.Option("--anew", help="Throw away the checkpoints of a training of this run that was not finished.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Also where another model has mapped before.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from mibf import __version__

        typer.echo(f"mibf {__version__}")
        raise typer.Exit


@app.command()
def run(config: ConfigPath, set_: Overrides = None, as_json: Json = False, anew: Anew = False) -> None:
    """Do all stages, from prepare to report, skipping those that are current."""
    _stages(config, set_, as_json, ALL_STAGES, keep_current=True, train={"anew": anew}, map={"replace": True})


@app.command()
def demo(
    workspace: Annotated[str, typer.Option(help="Where the results go.")] = "mibf-demo",
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Do all stages on the real Sentinel-2 sample that comes with mibf."""

    def configuration() -> str:
        from jobs.sample import demo_config

        return demo_config()

    overrides = [f"workspace={json.dumps(workspace)}", *(set_ or [])]
    _stages(configuration, overrides, as_json, ALL_STAGES, keep_current=True, map={"replace": True})


@app.command()
def prepare(config: ConfigPath, set_: Overrides = None, as_json: Json = False) -> None:
    """Bring the scenes to patch stores, split them, fit the scaling."""
    _stages(config, set_, as_json, ("prepare",), keep_current=False)


@app.command()
def train(config: ConfigPath, set_: Overrides = None, as_json: Json = False, anew: Anew = False) -> None:
    """Train the network on the training subset; the best epoch by validation becomes the model."""
    _stages(config, set_, as_json, ("train",), keep_current=False, train={"anew": anew})


@app.command()
def evaluate(config: ConfigPath, set_: Overrides = None, as_json: Json = False) -> None:
    """Measure the model on the held-out test subset."""
    _stages(config, set_, as_json, ("evaluate",), keep_current=False)


@app.command(name="map")
def map_(
    config: ConfigPath,
    anew: Annotated[bool, typer.Option("--anew", help="Map every tile, those that are done too.")] = False,
    replace: Replace = False,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Classify the whole scenes into cloud-optimised GeoTIFFs: the tiles that are missing, failed or stale."""
    _stages(config, set_, as_json, ("map",), keep_current=False, map={"anew": anew, "replace": replace})


@app.command()
def rerun(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="The YAML configuration file; none with --all.")
    ] = None,
    all_: Annotated[
        str | None,
        typer.Option(
            "--all", metavar="URL", help="Every run below this URL, by the configuration that its map was made with."
        ),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only tiles that failed.")] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Only tiles whose input, model or settings have changed.")] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Only tiles that were never finished.")] = False,
    tiles: Annotated[
        list[str] | None, typer.Option(metavar="[SCENE/]yN_xN", help="Only this tile; may be given again.")
    ] = None,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="Failed attempts after which a tile is left alone and listed.")
    ] = 10,
    backoff: Annotated[
        float, typer.Option(min=0, help="Seconds from a tile's failure to its next attempt; doubled with each failure.")
    ] = 0.0,
    replace: Replace = False,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Map what is missing, failed or stale, and no more; for schedules: nothing is said where nothing is to do."""
    chosen = [state for state, wanted in (("failed", failed), ("stale", stale), ("pending", missing)) if wanted]
    options: dict[str, Any] = {"max_attempts": max_attempts, "backoff": backoff, "replace": replace}
    options |= ({"states": tuple(chosen)} if chosen else {}) | ({"tiles": tuple(tiles)} if tiles else {})

    def work() -> None:
        from jobs.config import load
        from jobs.map import Request
        from jobs.reruns import rerun as work
        from mibf.errors import InputError

        if (config is None) == (all_ is None):
            raise InputError("give a CONFIG, or --all URL for every run below it.")
        if config is None or all_ is not None:
            if tiles or set_:
                raise InputError("--tiles and --set are for one run; give its CONFIG in place of --all.")
            _rerun_all(all_ or "", Request(**options), as_json)
            return
        found = work(load(config, overrides=set_ or ()), Request(**options))
        if as_json:
            typer.echo(_json(found.to_json()))
        else:
            for line in found.lines:
                typer.echo(line)
        if found.failure is not None:
            raise found.failure

    _guarded(work)


def _rerun_all(url: str, request: Request, as_json: bool) -> None:
    from jobs.runs import rerun_all

    found = rerun_all(url, request)
    if as_json:
        typer.echo(_json(found.to_json()))
    else:
        for line in found.lines:
            typer.echo(line)
    if found.status:
        raise typer.Exit(found.status)


@app.command()
def runs(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="A workspace, or a folder above some: a path or URL.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """List every run below a URL with its state; writes nothing."""

    def work() -> None:
        from jobs.runs import lines
        from jobs.runs import runs as work

        found = work(url)
        typer.echo(_json([run.to_json() for run in found]) if as_json else "\n".join(lines(found)))

    _guarded(work)


@app.command()
def submit(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE", help="prepare, train, evaluate, map, report, run, rerun or verify.", show_default=False
        ),
    ],
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="The YAML configuration: a file here, or a URL.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The cluster's job server. [default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265]"
        ),
    ] = None,
    cpus: Annotated[
        float, typer.Option(min=0, help="CPUs for the driver, on any node that has them; 0 has it on the head.")
    ] = 1.0,
    memory: Annotated[int | None, typer.Option(min=1, metavar="BYTES", help="Memory for the driver.")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="How often it is submitted where the node of its driver dies.")] = 3,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show the log, wait for the end.")] = True,
    again: Annotated[bool, typer.Option("--again", help="Also where a job has done the very same before.")] = False,
    all_: Annotated[str | None, typer.Option("--all", metavar="URL", help="Of rerun: every run below this URL.")] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="Of rerun: as there.")] = None,
    backoff: Annotated[float | None, typer.Option(min=0, help="Of rerun: as there.")] = None,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Run a stage as a job of a Ray cluster: its log goes to standard error, its exit status is this command's."""

    def work() -> None:
        from jobs.submit import Asked
        from jobs.submit import submit as work
        from mibf.errors import InputError

        given = {"--max-attempts": max_attempts, "--backoff": backoff}
        options = tuple(text for name, value in given.items() if value is not None for text in (name, f"{value:g}"))
        if options and stage != "rerun":
            raise InputError(f"{options[0]} is of rerun alone.")
        asked = Asked(
            stage,
            config,
            tuple(set_ or ()),
            everything=all_,
            options=options,
            address=address,
            cpus=cpus,
            memory=memory,
            attempts=attempts,
            follow=follow,
            again=again,
        )
        found = work(asked)
        if as_json:
            typer.echo(_json(found.to_json()))
        else:
            ended = "" if found.exit_status is None else f", exit status {found.exit_status}"
            typer.echo(f"{found.id}: {found.status}{ended}{f': {found.message}' if found.message else ''}")
        if found.exit_status:
            raise typer.Exit(found.exit_status)

    _guarded(work)


@app.command()
def status(config: ConfigPath, set_: Overrides = None, as_json: Json = False) -> None:
    """Tell of every scene's tiles by state, with the causes of those that failed or are stale; writes nothing."""

    def work() -> None:
        from jobs.config import load
        from jobs.status import lines
        from jobs.status import status as work

        found = work(load(config, overrides=set_ or ()))
        typer.echo(_json([scene.to_json() for scene in found]) if as_json else "\n".join(lines(found)))

    _guarded(work)


@app.command()
def report(config: ConfigPath, set_: Overrides = None, as_json: Json = False) -> None:
    """Write one self-contained HTML page of the results."""
    _stages(config, set_, as_json, ("report",), keep_current=False)


@app.command()
def ablate(
    config: ConfigPath,
    test: Annotated[
        bool, typer.Option("--test", help="Read the test pixels too, once each is trained; choose nothing by them.")
    ] = False,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train without each part of the method, and on each source alone: what each of them is worth."""

    def work() -> None:
        from jobs.ablate import ablate as work
        from jobs.ablate import table
        from jobs.config import load

        def stage(changed: Config, name: StageName) -> Manifest:
            return _stage(changed, name, keep_current=True)[0]

        rows = work(load(config, overrides=set_ or ()), stage, test=test)
        typer.echo(_json([row.to_json() for row in rows]) if as_json else table(rows))

    _guarded(work)


@app.command()
def plan(config: ConfigPath, set_: Overrides = None, as_json: Json = False) -> None:
    """Tell what `prepare` and `map` would write, with memory and time; writes nothing."""

    def work() -> None:
        from jobs.config import load
        from jobs.plan import lines
        from jobs.plan import plan as work

        found = work(load(config, overrides=set_ or ()))
        typer.echo(_json(found) if as_json else "\n".join(lines(found)))

    _guarded(work)


@app.command()
def verify(
    config: ConfigPath,
    sample: Annotated[
        int, typer.Option(min=0, metavar="N", help="Compute N tiles of each map again, and compare them bit for bit.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Decides which tiles are computed again.")] = 0,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check the patch stores and the published maps against what was made; exit status 3 names what is broken."""

    def work() -> None:
        from jobs.config import load
        from jobs.stages import BrokenError
        from jobs.verify import lines
        from jobs.verify import verify as work

        found = work(load(config, overrides=set_ or ()), sample=sample, seed=seed)
        typer.echo(_json(found.to_json()) if as_json else "\n".join(lines(found)))
        if found.remedies:
            raise BrokenError("\n".join(found.remedies))

    _guarded(work)


def _json(value: Any) -> str:
    from pipeline.storage import without_nan

    return json.dumps(without_nan(value), indent=1)


@app.command()
def authors_to_bundle(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="What the authors' code saved: a path or URL.", show_default=False),
    ],
    config: Annotated[str, typer.Option(metavar="CONFIG", help="The YAML configuration file.", show_default=False)],
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Take a checkpoint of the authors' own code as the run's model, in place of training."""

    def work(loaded: Config) -> list[tuple[Manifest, bool]]:
        from jobs.authors import authors_to_bundle as work

        return [(work(loaded, checkpoint), True)]

    _carry_out(config, set_, as_json, work)


@app.command()
def synth(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A local folder for its files.", show_default=False)],
    size: Annotated[str, typer.Option(metavar="N|ROWSxCOLUMNS", help="Pixels of the reference grid.")] = "1024",
    bands: Annotated[
        str,
        typer.Option(metavar="B1+B2", help="Bands of each of two or more sources; a finer one as BANDS@SCALE: 4+1@4."),
    ] = "4+2",
    labelled: Annotated[float, typer.Option(metavar="SHARE", help="Share of the pixels with a label.")] = 0.2,
    nodata: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the pixels without data in each source after the first.")
    ] = 0.0,
    blob: Annotated[
        int | None,
        typer.Option(help="Typical size of a patch of ground in pixels. [default: 24, less for small scenes]"),
    ] = None,
    crs: Annotated[
        str, typer.Option(help="Coordinate system, projected (pixels of 10 units) or geographic.")
    ] = "EPSG:32633",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Decides everything.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take the place of a scene that the folder holds.")] = False,
    as_json: Json = False,
) -> None:
    """Write a synthetic scene, whose classes no single source can tell, with its truth and its configuration."""

    def work() -> None:
        from jobs.synth import synth as work

        made = work(
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
        if as_json:
            typer.echo(json.dumps({"config": str(made.config), **made.figures}, indent=1))
            return
        for line in made.lines:
            typer.echo(line)
        typer.echo(f"\nnext: mibf run {shlex.quote(str(made.config))}")

    _guarded(work)


bundle = typer.Typer(help="Look into trained models.", no_args_is_help=True)
app.add_typer(bundle, name="bundle")


@bundle.callback()
def _bundle() -> None:
    """Look into trained models."""


@bundle.command(name="show")
def bundle_show(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="The model's folder or its model.json: a path or URL.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Tell what a model holds, and check that it is whole."""

    def work() -> None:
        from jobs.bundle import lines, show

        shown = show(url)
        typer.echo(_json(shown.to_json()) if as_json else "\n".join(lines(shown)))

    _guarded(work)


bench = typer.Typer(
    help="Measure speed and memory on this machine, as ratios against named baselines.", no_args_is_help=True
)
app.add_typer(bench, name="bench")


@bench.callback()
def _bench() -> None:
    """Measure speed and memory on this machine, as ratios against named baselines."""


@bench.command(name="network")
def bench_network(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="Take this configuration's trained model and scene.")
    ] = None,
    bands: Annotated[
        list[str] | None,
        typer.Option(metavar="B1+B2", help="Without CONFIG: bands of each source of a random network; may be given again."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often all is timed; medians are told.")] = 7,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """The network patch by patch, in a loader loop, dense, and in training."""

    def work() -> None:
        from jobs.bench.network import as_json as json_of
        from jobs.bench.network import bench_network as work
        from jobs.bench.network import table
        from jobs.config import load

        loaded = None if config is None else load(config, overrides=set_ or ())
        results = work(loaded, bands=[_bands(text) for text in bands or ("64+2", "224+4")], rounds=rounds)
        typer.echo(json.dumps(json_of(results), indent=1) if as_json else table(results))

    _guarded(work)


@bench.command(name="prepare")
def bench_prepare(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="Take this configuration's scenes, whose sources share a grid.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="N|ROWSxCOLUMNS", help="Without CONFIG: size of a synthetic scene; may be given again."),
    ] = None,
    bands: Annotated[str, typer.Option(metavar="B1+B2", help="Without CONFIG: bands of its sources.")] = "4+2",
    rounds: Annotated[int, typer.Option(min=1, help="How often all is timed; medians are told.")] = 3,
    codecs: Annotated[bool, typer.Option("--codecs", help="Compare compressors and shard sides instead.")] = False,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Prepare against a plain Dask copy of the same pixels: speed, memory, stored bytes."""

    def work() -> None:
        import tempfile
        from dataclasses import asdict

        from jobs.bench.prepare import bench_codecs, codec_table, synthetic, table
        from jobs.bench.prepare import bench_prepare as work
        from jobs.config import load

        loaded = None if config is None else load(config, overrides=set_ or ())
        sizes = size or ["4096"]
        if codecs:
            with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
                rows = bench_codecs(loaded or synthetic(folder, size=sizes[0], bands=bands))
            typer.echo(_json([asdict(row) for row in rows]) if as_json else codec_table(rows))
            return
        results = work(loaded, sizes=sizes, bands=bands, rounds=rounds)
        typer.echo(_json([result.to_json() for result in results]) if as_json else table(results))

    _guarded(work)


@bench.command(name="batches")
def bench_batches(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="Take this configuration's prepared stores.")
    ] = None,
    bands: Annotated[
        str, typer.Option(metavar="B1+B2", help="Without CONFIG: bands of each source of a random scene.")
    ] = "64+2",
    rounds: Annotated[int, typer.Option(min=1, help="How often all is timed; medians are told.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps that are timed.")] = 200,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Training's batches on one core against a loader loop, and how long the network waits for them."""

    def work() -> None:
        from jobs.bench.batches import as_json as json_of
        from jobs.bench.batches import bench_batches as work
        from jobs.bench.batches import table
        from jobs.config import load

        loaded = None if config is None else load(config, overrides=set_ or ())
        result = work(loaded, bands=_bands(bands), rounds=rounds, steps=steps)
        typer.echo(json.dumps(json_of(result), indent=1) if as_json else table(result))

    _guarded(work)


@bench.command(name="train")
def bench_train(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="Take this configuration's prepared stores and its settings.")
    ] = None,
    bands: Annotated[
        str, typer.Option(metavar="B1+B2", help="Without CONFIG: bands of each source of a random scene.")
    ] = "64+2",
    rounds: Annotated[int, typer.Option(min=1, help="How often all is timed; medians are told.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps that are timed in one process.")] = 200,
    workers: Annotated[
        bool,
        typer.Option(
            "--workers/--no-workers", help="Also two workers beside one, two epochs each; sampling.rate makes them shorter."
        ),
    ] = True,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Training beside the authors' own loop, and on two workers beside one."""

    def work() -> None:
        from jobs.bench.train import as_json as json_of
        from jobs.bench.train import bench_train as work
        from jobs.bench.train import table
        from jobs.config import load

        loaded = None if config is None else load(config, overrides=set_ or ())
        result = work(loaded, bands=_bands(bands), rounds=rounds, steps=steps, workers=workers)
        typer.echo(json.dumps(json_of(result), indent=1) if as_json else table(result))

    _guarded(work)


@bench.command(name="map")
def bench_map(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="Take this configuration's trained model and first scene.")
    ] = None,
    bands: Annotated[
        str, typer.Option(metavar="B1+B2", help="Without CONFIG: bands of each source of a random scene.")
    ] = "64+2",
    size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Side of the scenes in pixels; with --memory it may be given again. [default: 2048; with --memory 2048, "
            "4096, 8192 and 16384]",
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the network: float32 or bf16. [default: the configuration's, float32]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often all is timed; medians are told.")] = 3,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Instead: peak memory over the scene's size, with next to no network."),
    ] = False,
    tiles: Annotated[
        int | None,
        typer.Option(min=100, metavar="N", help="Instead: what scheduling so many tiles takes, with nothing to do in them."),
    ] = None,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """The map of a scene against the bare network; its memory over the scene's size; its scheduling of many tiles."""

    def work() -> None:
        from jobs.config import load
        from mibf.errors import InputError

        if memory and tiles is not None:
            raise InputError("--memory and --tiles are two measurements; give one.")
        if config is not None and (memory or tiles is not None or size):
            raise InputError("--size, --memory and --tiles are of scenes made for it; leave CONFIG out.")
        if memory:
            from jobs.bench import map_memory

            peaks = map_memory.bench_memory(size or map_memory.SIDES)
            typer.echo(_json(map_memory.as_json(peaks)) if as_json else map_memory.table(peaks))
            return
        if tiles is not None:
            from jobs.bench import map_tiles

            runs = map_tiles.bench_tiles(tiles)
            typer.echo(_json(map_tiles.as_json(runs)) if as_json else map_tiles.table(runs))
            return
        from jobs.bench.map import as_json as json_of
        from jobs.bench.map import bench_map as work
        from jobs.bench.map import table

        if size and len(size) > 1:
            raise InputError("--size may be given again with --memory alone.")
        loaded = None if config is None else load(config, overrides=set_ or ())
        result = work(loaded, bands=_bands(bands), side=(size or [2048])[0], rounds=rounds, precision=precision)
        typer.echo(_json(json_of(result)) if as_json else table(result))

    _guarded(work)


@bench.command(name="submit")
def bench_submit(
    config: ConfigPath,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="The cluster's job server, as of `mibf submit`.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often both are timed; medians are told.")] = 5,
    as_json: Json = False,
) -> None:
    """What a job of a cluster takes beyond the same command run directly; CONFIG is prepared already."""

    def work() -> None:
        from jobs.bench.submit import as_json as json_of
        from jobs.bench.submit import bench_submit as work
        from jobs.bench.submit import table

        result = work(config, address, rounds=rounds)
        typer.echo(_json(json_of(result)) if as_json else table(result))

    _guarded(work)


@bench.command(name="fleet")
def bench_fleet(
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 10_000,
    pixels: Annotated[float, typer.Option(min=1, help="Pixels of each.")] = 1e8,
    workers: Annotated[int, typer.Option(min=1, help="Workers, each a GPU or some CPUs, of all drivers together.")] = 100,
    side_by_side: Annotated[int, typer.Option(min=1, help="Scenes that are mapped at a time.")] = 1,
    rate: Annotated[float, typer.Option(min=1, help="Pixels a second of one worker, as `mibf bench map` tells.")] = 50_000.0,
    price: Annotated[float | None, typer.Option(min=0, help="Of a worker's hour, in any currency.")] = None,
    simulate: Annotated[
        int | None,
        typer.Option("--simulate", min=100, metavar="N", help="Also so many tiles through planning, ledger and reruns."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What a fleet of scenes takes: time, cost, objects and requests on paper; many tiles simulated."""

    def work() -> None:
        from jobs.bench import fleet

        asked = fleet.Fleet(scenes, pixels, workers, side_by_side, rate, price=price)
        simulated = None if simulate is None else fleet.simulate(simulate)
        if as_json:
            typer.echo(_json(fleet.as_json(asked, simulated)))
            return
        told = fleet.paper_lines(asked, fleet.on_paper(asked))
        typer.echo("\n".join([*told, *([] if simulated is None else ["", *fleet.simulated_lines(simulated)])]))

    _guarded(work)


def _bands(text: str) -> list[int]:
    """The bands of each source from `64+2`."""
    from mibf.errors import InputError

    parts = text.split("+")
    if len(parts) < 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--bands {text}: give the number of bands of two or more sources, such as 64+2.")
    return [int(part) for part in parts]


def _stages(
    config: str | Callable[[], str],
    overrides: Sequence[str] | None,
    as_json: bool,
    stages: Sequence[StageName],
    *,
    keep_current: bool,
    **options: dict[str, Any],
) -> None:
    """Do stages in order, each with the options of its name."""

    def work(loaded: Config) -> list[tuple[Manifest, bool]]:
        wanted = stages
        if len(stages) > 1 and loaded.map.model is not None:
            _check_model(loaded)
            wanted = stages if loaded.labelled else ("prepare", "map")
        return [_stage(loaded, stage, keep_current=keep_current, **options.get(stage, {})) for stage in wanted]

    _carry_out(config, overrides, as_json, work)


def _check_model(config: Config) -> None:
    """Refuse a model from elsewhere that cannot map, before the stages that come before the map."""
    from jobs.scene_maps import Recipe
    from jobs.workspace import Workspace

    Recipe.of(config, Workspace.of(config))


def _carry_out(
    config: str | Callable[[], str],
    overrides: Sequence[str] | None,
    as_json: bool,
    work: Callable[[Config], list[tuple[Manifest, bool]]],
) -> None:
    """Do a command's work on its configuration and print what came of it."""

    def all_of_it() -> None:
        from jobs.config import load

        loaded = load(config if isinstance(config, str) else config(), overrides=overrides or ())
        _print_summary(loaded, work(loaded), as_json)

    _guarded(all_of_it)


def _guarded(work: Callable[[], None]) -> None:
    """Do a command's work and end the process with the status that says how it went."""
    from jobs.logs import check_format
    from jobs.version import check_version
    from mibf.errors import InputError

    # Scenes without a CRS are taken as they are: no cause for GDAL's warnings about them.
    warnings.filterwarnings("ignore", message="Dataset has no geotransform|The given matrix is equal to Affine.identity")
    try:
        check_format()
        check_version()
        work()
    except InputError as error:
        _tell(error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _tell("interrupted; run the same command again to go on.")
        raise typer.Exit(130) from None
    except Exception as error:
        from jobs.exits import exit_status

        status = exit_status(error)
        if status is None:
            raise
        _tell(error)
        raise typer.Exit(status) from None
    finally:
        if "ray" in sys.modules:
            from jobs import cluster

            cluster.close()


def _tell(failure: object) -> None:
    """Tell why a command ends otherwise than it should."""
    from jobs.logs import event, in_json

    if in_json():
        event(str(failure), level="error")
    else:
        typer.echo(f"mibf: {failure}", err=True)


def _stage(config: Config, stage: StageName, *, keep_current: bool, **options: Any) -> tuple[Manifest, bool]:
    from jobs.progress import say
    from jobs.stages import run_stage, stale_needs

    for needed in () if keep_current else stale_needs(config, stage):
        say(f"warning: `{needed}` is not current with the configuration, inputs or code; `mibf run` would do it again")

    def work(*arguments: Any) -> Any:
        say(f"== {stage}")
        return _work_of(stage, options)(*arguments)

    manifest, done = run_stage(config, stage, work, keep_current=keep_current)
    say(f"   {stage}: {_took(manifest) if done else 'current, skipped'}")
    return manifest, done


def _work_of(stage: StageName, options: dict[str, Any]) -> Work:
    """A stage's function with its options; importing it brings in what that stage needs and no more."""
    if stage == "prepare":
        from jobs.prepare import prepare as work
    elif stage == "train":
        from jobs.train import train

        return partial(train, **options)
    elif stage == "evaluate":
        from jobs.evaluate import evaluate as work
    elif stage == "map":
        from jobs.map import Request, map_scenes

        return partial(map_scenes, request=Request(**options))
    else:
        from jobs.report import report as work
    return work


def _took(manifest: Manifest) -> str:
    return f"{manifest.seconds:.0f} s, peak memory {manifest.peak_memory_bytes / 1e9:.2f} GB"


def _print_summary(config: Config, done: Sequence[tuple[Manifest, bool]], as_json: bool) -> None:
    if as_json:
        stages = [vars(manifest) | {"skipped": not now} for manifest, now in done]
        typer.echo(_json({"name": config.name, "run": config.run, "stages": stages}))
        return
    typer.echo()
    for manifest, now in done:
        typer.echo(f"{manifest.stage}  ({_took(manifest)}{'' if now else '; current, skipped'})")
        for line in manifest.lines:
            typer.echo(f"  {line}")
    typer.echo("\nmade:")
    for manifest, _ in done:
        for output in manifest.outputs:
            typer.echo(f"  {output}")


if __name__ == "__main__":
    app()
