"""The command line: one module per group of commands; `app` is the entry point.

Nothing heavy is imported until a command needs it, so that `mibf --help` responds at once.

Exit status: 0 done; 1 unexpected failure; 2 configuration or input refused, nothing written; 3 finished, with tiles that
failed or a damaged store or map; 4 another run holds the workspace; 130 interrupted.
"""

from __future__ import annotations

from jobs.cli import assess, bench, fleet, init, inspection, models, products, stages, view
from jobs.cli.common import app

__all__ = ["app"]

app.add_typer(models.bundle, name="bundle", rich_help_panel="Models")
app.add_typer(bench.bench, name="bench", rich_help_panel="Develop")
COMMANDS = (stages, view, products, assess, inspection, fleet, init)  # imported for the commands that they register
