"""Shared by all commands: options, registration, error handling with exit statuses, printing and shell completion."""

from __future__ import annotations

import inspect
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

from jobs.runtime.import_path import replaced_package
from jobs.runtime.signals import INTERRUPTED, sigterm_interrupts
from jobs.workflow.result import Result

if TYPE_CHECKING:
    from jobs.workflow.manifest import StageName

#: The panels of `mibf --help`.
Panel = Literal["Run", "Products", "Assess", "Inspect", "Operate", "Models", "Develop"]
#: The order of the commands in `mibf --help`; it also orders the panels.
ORDER = (
    *("demo", "search", "init", "run", "prepare", "train", "evaluate", "map", "report"),
    *("view", "polygons", "change"),
    *("sample", "estimate", "suggest"),
    *("plan", "status", "verify", "runs", "schema"),
    *("rerun", "submit"),
    *("bundle", "baseline", "calibrate", "ablate", "benchmark", "import-checkpoint", "export"),
    *("synth", "bench"),
)
#: The stages in the order in which `mibf run` runs them.
ALL_STAGES: tuple[StageName, ...] = ("prepare", "train", "evaluate", "baseline", "map", "report")
#: The commands that `mibf submit` accepts.
SUBMITTABLE = ("prepare", "train", "evaluate", "map", "report", "run", "rerun", "verify")


class OrderedCommands(TyperGroup):
    """Lists commands in the order of `ORDER`, others last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run a command; characters that the terminal's encoding lacks are escaped, which would raise otherwise."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*arguments, **options)


app = typer.Typer(
    help="Multi-sensor land-cover mapping with MIBF-Net: georeferenced maps with accuracy estimates.",
    cls=OrderedCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from mibf import __version__

        typer.echo(f"mibf {__version__}")
        raise typer.Exit


# --- shell completion ---


def complete_config(incomplete: str) -> list[str]:
    """Complete the path of a YAML file; a folder that is the only match is searched as well."""
    parent, slash, start = incomplete.rpartition("/")
    found = []
    try:
        for path in sorted(Path(f"{parent}{slash}" or ".").iterdir()):
            if path.name.startswith(start) and (start or not path.name.startswith(".")):
                if path.is_dir():
                    found.append(f"{parent}{slash}{path.name}/")
                elif path.suffix in (".yaml", ".yml"):
                    found.append(f"{parent}{slash}{path.name}")
    except OSError:
        return []
    if len(found) == 1 and found[0].endswith("/"):
        return complete_config(found[0]) or found
    return found


def complete_stage(incomplete: str) -> list[str]:
    """Complete the name of a command that can be submitted."""
    return [name for name in SUBMITTABLE if name.startswith(incomplete)]


# --- options ---


def _refuse_renamed(old: str, new: str) -> NoReturn:
    report_failure(f"`{old}` is now called `{new}`.")
    raise typer.Exit(2)


def _refuse_old_restart(given: bool) -> None:
    if given:
        _refuse_renamed("--anew", "--restart")


ConfigPath = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG", help="The YAML configuration file.", show_default=False, autocompletion=complete_config
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a configuration value; repeatable."),
]
Restart = Annotated[bool, typer.Option("--restart", help="Discard the checkpoints of this run's unfinished training.")]
Refresh = Annotated[
    bool, typer.Option("--refresh", help="Search for STAC items again (`stac.search`), and say what has changed.")
]
#: The old name of `--restart`, which is refused.
OldRestart = Annotated[bool, typer.Option("--anew", hidden=True, callback=_refuse_old_restart)]
Replace = Annotated[bool, typer.Option("--replace", help="Replace a map that was made with a different model.")]
Yes = Annotated[bool, typer.Option("--yes", help="Accept areas of more than 2,000,000,000 pixels.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]


def parse_bands(text: str) -> list[int]:
    """Parse the bands of each source, such as `64+2`."""
    from mibf.errors import InputError

    parts = text.split("+")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--bands {text}: give the band count of each source, such as 64+2.")
    return [int(part) for part in parts]


# --- commands ---


@dataclass(frozen=True)
class Failed:
    """A result whose command ends with an error after the result is printed."""

    result: Result
    error: Exception


Function = TypeVar("Function", bound=Callable[..., Result | Failed])


def command(
    panel: Panel | None = None, *, name: str | None = None, group: typer.Typer = app
) -> Callable[[Function], Function]:
    """Register a function as a command with the option `--json`, under a panel of the help.

    The function returns its result, which is printed as text or JSON. Its errors are reported as messages, with the exit
    statuses listed in `jobs.cli`. Everything heavy is imported in its body, so that `--help` responds at once.

    Args:
        panel: the panel in `mibf --help`; None for the commands of a group.
        name: the command's name, if it is not the function's.
        group: where to register it.
    """

    def register(function: Function) -> Function:
        @wraps(function)
        def run(*, as_json: bool, **options: Any) -> None:
            with exit_on_error():
                returned = function(**options)
                print_result(returned.result if isinstance(returned, Failed) else returned, as_json=as_json)
                if isinstance(returned, Failed):
                    raise returned.error

        # Typer reads the options from both; the annotations are evaluated in the function's own module.
        signature = inspect.signature(function, eval_str=True)
        option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
        run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]  # read by inspect
        run.__annotations__ = function.__annotations__ | {"as_json": Json}
        group.command(name, rich_help_panel=panel)(run)
        return function

    return register


def renamed_command(old: str, new: str) -> None:
    """Register a hidden command that refuses the old name of a command and gives the new one."""

    @app.command(
        old,
        hidden=True,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def _refuse() -> None:
        _refuse_renamed(f"mibf {old}", f"mibf {new}")


def print_result(result: Result, *, as_json: bool) -> None:
    """Print a result on standard output; numbers that JSON does not have become null."""
    if as_json:
        from mibf.serialization import without_nan

        typer.echo(json.dumps(without_nan(result.to_json()), indent=1))
    elif lines := result.lines():
        typer.echo("\n".join(lines))


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Report errors in the block as messages, and exit with the matching status."""
    if (message := replaced_package()) is not None:
        typer.echo(f"mibf: {message}", err=True)
        raise typer.Exit(2)

    from jobs.runtime.logs import check_format
    from jobs.runtime.progress import library_messages
    from jobs.runtime.version import check_version
    from jobs.runtime.worker_resources import hide_unassigned_gpus
    from mibf.errors import InputError

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a home folder without room for its cache is no problem
    interrupted = False
    try:
        with sigterm_interrupts(), library_messages():
            # Scenes without a CRS are supported, so GDAL's warnings about them are noise.
            warnings.filterwarnings(
                "ignore", message="Dataset has no geotransform|The given matrix is equal to Affine.identity"
            )
            check_format()
            check_version()
            hide_unassigned_gpus()
            yield
    except InputError as error:
        report_failure(error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        interrupted = True
        report_failure(INTERRUPTED)
        raise typer.Exit(130) from None
    except Exception as error:
        from jobs.workflow.errors import exit_status

        status = exit_status(error)
        if status is None:
            raise
        report_failure(error)
        raise typer.Exit(status) from None
    finally:
        if "ray" in sys.modules:
            from jobs.runtime import ray_cluster

            ray_cluster.close(interrupted=interrupted)


def report_failure(failure: object) -> None:
    """Report why a command failed."""
    from jobs.runtime.logs import event, in_json

    if in_json():
        event(str(failure), level="error")
    else:
        typer.echo(f"mibf: {failure}", err=True)
