"""Commands for models: bundle show, baseline, calibrate, ablate, benchmark, import-checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.common import ConfigPath, Overrides, command, complete_config, renamed_command
from jobs.cli.stage_runner import RunSummary, run_one_stage
from jobs.workflow.result import Result

if TYPE_CHECKING:
    from jobs.config.config import Config
    from jobs.workflow.manifest import Manifest, StageName


@command("Models")
def baseline(
    config: ConfigPath,
    test: Annotated[
        bool,
        typer.Option("--test", help="Also classify the test pixels; never select a model by these scores."),
    ] = False,
    samples: Annotated[
        int, typer.Option(min=100, metavar="N", help="Fit to at most N training samples, stratified by class.")
    ] = 20_000,
    seconds: Annotated[
        float, typer.Option(min=1, metavar="S", help="Leave out fits that would probably exceed S seconds in all.")
    ] = 60.0,
    set_: Overrides = None,
) -> Result:
    """Baselines: fit forests, gradient boosting and logistic regression to the run's samples, and compare its model."""
    from jobs.baseline.command import baseline as run_baseline
    from jobs.config.loader import load

    return run_baseline(load(config, overrides=set_ or ()), test=test, samples=samples, seconds=seconds)


@command("Models")
def calibrate(config: ConfigPath, set_: Overrides = None) -> Result:
    """Fit the thresholds of prediction sets of the run's model to validation pixels, without training again."""
    from jobs.config.loader import load
    from jobs.models.calibrate import calibrate as calibrate_run

    return calibrate_run(load(config, overrides=set_ or ()))


@command("Models")
def ablate(
    config: ConfigPath,
    test: Annotated[
        bool,
        typer.Option(
            "--test", help="Also evaluate each trained variant on the test pixels; never select a variant by these scores."
        ),
    ] = False,
    set_: Overrides = None,
) -> Result:
    """Ablation: train without each part of the method and on each source alone, and compare."""
    from jobs.config.loader import load
    from jobs.evaluate.ablation import ablate as run_ablation

    def stage(changed: Config, name: StageName) -> Manifest:
        return run_one_stage(changed, name, keep_current=True)[0]

    return run_ablation(load(config, overrides=set_ or ()), stage, test=test)


@command("Models")
def benchmark(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="houston2013, houston2018, trento, trento-italy, muufl, muufl-lidar, augsburg, berlin or indian-pines.",
            show_default=False,
        ),
    ],
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder or URL of the data set's files; nothing is downloaded.")],
    workspace: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Folder or URL for the results; mibf-benchmark/NAME by default.", show_default=False
        ),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            metavar="S1,S2", help="Of official, random, blocks; by default all that the data set has.", show_default=False
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N1,N2", help="Seeds of training, and of random and block splits.")
    ] = "0,1,2",
    block: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Side of the blocks in pixels, where the usual one leaves a class untrained."),
    ] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Accept files with another SHA-256 than the published ones, with a note.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Check the files and print what would run; write nothing.")] = False,
    set_: Overrides = None,
) -> Result:
    """Benchmark a published data set: official, random and block split with the network and baselines, in one table."""
    from jobs.benchmark.command import benchmark as run_benchmark
    from mibf.errors import InputError

    def stage(config: Config, name: StageName) -> Manifest:
        return run_one_stage(config, name, keep_current=True)[0]

    if not all(part.strip().isdecimal() for part in seeds.split(",")):
        raise InputError(f"--seeds {seeds}: give different integers from 0, such as 0,1,2.")
    return run_benchmark(
        name,
        data,
        stage,
        workspace=workspace or f"mibf-benchmark/{name}",
        splits=None if splits is None else [part.strip() for part in splits.split(",")],
        seeds=[int(part) for part in seeds.split(",")],
        block=block,
        overrides=set_ or (),
        unverified=unverified,
        plan=plan,
    )


@command("Models")
def import_checkpoint(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A checkpoint saved by the authors' released code: a path or URL.", show_default=False
        ),
    ],
    config: Annotated[
        str,
        typer.Option(
            metavar="CONFIG", help="The YAML configuration file.", show_default=False, autocompletion=complete_config
        ),
    ],
    set_: Overrides = None,
) -> Result:
    """Import a reference checkpoint (written by the authors' released code) as the run's model, instead of training."""
    from jobs.config.loader import load
    from jobs.train.import_checkpoint import import_checkpoint as import_model

    loaded = load(config, overrides=set_ or ())
    return RunSummary(loaded, [(import_model(loaded, checkpoint), True)])


renamed_command("authors-to-bundle", "import-checkpoint")

bundle = typer.Typer(help="Inspect trained models.", no_args_is_help=True)


@bundle.callback()
def _bundle() -> None:
    """Inspect trained models."""


@command(name="show", group=bundle)
def bundle_show(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="The model's folder or model.json: a path or URL.", show_default=False),
    ],
) -> Result:
    """Show the contents of a model and check that it is intact."""
    from jobs.inspection.show_bundle import summarize

    return summarize(url)
