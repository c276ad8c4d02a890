"""Commands that assess the map of a run, and say where to label next: sample, estimate, suggest."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.cli.common import ConfigPath, Overrides, command
from jobs.cli.stage_runner import run_one_stage
from jobs.workflow.result import Result

Points = Annotated[int | None, typer.Option("--n", metavar="N", help="Number of points.", show_default=False)]
StandardError = Annotated[
    float | None,
    typer.Option(
        "--se", metavar="SE", help="Choose N for this standard error of overall accuracy, as in 0.01.", show_default=False
    ),
]
DesignOption = Annotated[
    str, typer.Option("--design", metavar="DESIGN", help="stratified (by the map's classes), random or systematic.")
]
AllocationOption = Annotated[
    str, typer.Option(metavar="RULE", help="Points of each stratum: proportional to its size, equal, or neyman.")
]
Minimum = Annotated[int, typer.Option(metavar="N", help="Points of each stratum, at least.")]
Expected = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS=ACCURACY",
        help="Expected user's accuracy, for --se and neyman; repeatable. By default the precision on test samples.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SUBSET",
        help="Never draw samples of this subset: train, validation, test or none; repeatable. By default train.",
        show_default=False,
    ),
]
Scenes = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Sample the map of this scene alone; repeatable.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the random numbers; the same one draws the same points.")]
Name = Annotated[str, typer.Option(help="Name of the sample's folder, in runs/RUN/samples.")]
ReplaceSample = Annotated[bool, typer.Option("--replace", help="Replace the sample of that name.")]
ShowMap = Annotated[
    bool, typer.Option("--show-map", help="Show the map's class on the sheet; labels then tend to agree with it.")
]


@command("Assess")
def sample(
    config: ConfigPath,
    points: Points = None,
    standard_error: StandardError = None,
    design: DesignOption = "stratified",
    allocation: AllocationOption = "proportional",
    minimum: Minimum = 25,
    expected: Expected = None,
    exclude: Exclude = None,
    scene: Scenes = None,
    seed: Seed = 0,
    name: Name = "sample",
    replace: ReplaceSample = False,
    show_map: ShowMap = False,
    set_: Overrides = None,
) -> Result:
    """Draw a probability sample of the published map, to be labelled for `mibf estimate`."""
    from jobs.assess.sample import SampleRequest
    from jobs.assess.sample import sample as draw
    from jobs.config.loader import load
    from pipeline.assessment.allocation import ALLOCATIONS
    from pipeline.assessment.design import DESIGNS
    from pipeline.codes import SUBSETS

    request = SampleRequest(
        design=_choice("--design", design, DESIGNS),
        points=points,
        standard_error=standard_error,
        allocation=_choice("--allocation", allocation, ALLOCATIONS),
        minimum=minimum,
        expected=_expected(expected or []),
        scenes=tuple(scene or ()),
        excluded=_excluded(exclude, SUBSETS),
        seed=seed,
        name=name,
        replace=replace,
        show_map=show_map,
    )
    return draw(load(config, overrides=set_ or ()), request)


@command("Assess")
def estimate(
    config: ConfigPath,
    sample: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="The labelled sample: GeoPackage, another vector file, or CSV.", show_default=False
        ),
    ],
    design: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Its design.json, if that is neither next to it nor in the run's folder."),
    ] = None,
    other_map: Annotated[
        bool,
        typer.Option("--other-map", help="Accept a sample of another map of the same ground, and use that map's strata."),
    ] = False,
    skip_unlabelled: Annotated[
        bool, typer.Option("--skip-unlabelled", help="Take points without a label as missing at random in their stratum.")
    ] = False,
    set_: Overrides = None,
) -> Result:
    """Estimate the map's accuracy, and the area of every class, with confidence intervals."""
    from jobs.assess.estimate import estimate_map
    from jobs.config.loader import load
    from jobs.runtime.progress import warn
    from jobs.workflow.manifest import read_manifest
    from jobs.workflow.workspace import Workspace
    from mibf.errors import InputError

    loaded = load(config, overrides=set_ or ())
    found = estimate_map(loaded, sample, design_url=design, other_map=other_map, skip_unlabelled=skip_unlabelled)
    if read_manifest(Workspace.of(loaded), "report") is not None:
        try:
            run_one_stage(loaded, "report", keep_current=False)
        except InputError as error:  # the estimates are complete without it
            warn(f"the report was not written again: {error}")
    return found


@command("Assess")
def suggest(
    config: ConfigPath,
    number: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Number of places, over all scenes.")] = 50,
    side: Annotated[int, typer.Option(min=1, max=99, metavar="PIXELS", help="Side of a place.")] = 3,
    distance: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="PIXELS",
            help="Distance between two places, at least; by default it depends on their number and the area.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice.")] = 0,
    output: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Folder of the GeoPackages; by default runs/RUN/suggestions.", show_default=False),
    ] = None,
    set_: Overrides = None,
) -> Result:
    """Suggest where to label next: uncertain places on the map, of every class, and others by chance, as GeoPackages."""
    from jobs.config.loader import load
    from jobs.suggest.command import suggest as suggest_places

    loaded = load(config, overrides=set_ or ())
    return suggest_places(loaded, number=number, side=side, distance=distance, seed=seed, output=output)


def _choice(option: str, value: str, choices: tuple[str, ...]) -> Any:
    from mibf.errors import InputError

    if value not in choices:
        raise InputError(f"{option} {value}: must be {', '.join(choices[:-1])} or {choices[-1]}.")
    return value


def _excluded(given: list[str] | None, subsets: tuple[str, ...]) -> Any:
    """The subsets to exclude: `none` stands alone."""
    from mibf.errors import InputError

    chosen = ["train"] if given is None else [subset for subset in given if subset != "none"]
    if given is not None and "none" in given and chosen:
        raise InputError(f"--exclude none: cannot be combined with --exclude {chosen[0]}.")
    return tuple(dict.fromkeys(_choice("--exclude", subset, (*subsets, "none")) for subset in chosen))


def _expected(pairs: list[str]) -> dict[str, float]:
    from mibf.errors import InputError

    found = {}
    for pair in pairs:
        name, _, value = pair.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError(f"--expected {pair}: must be CLASS=ACCURACY, such as Water=0.9.") from None
    return found
