"""The command line: one file per command; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import logging
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from patchscaler._version import __version__
from patchscaler.cli.calibrate import calibrate
from patchscaler.cli.evaluate import evaluate
from patchscaler.cli.info import info
from patchscaler.cli.memory import memory
from patchscaler.cli.serve import serve
from patchscaler.cli.train import train
from patchscaler.cli.ui import ui
from patchscaler.cli.upscale import upscale
from patchscaler.errors import PatchScalerError


class _Commands(TyperGroup):
    """Turns what users can mend into one line and an exit code; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PatchScalerError as error:
            typer.echo(f"patchscaler: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("patchscaler: interrupted, nothing was left half-written", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="patchscaler",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="PatchScaler: super-resolution x4 that spends its diffusion steps where the image is hard.",
)
for _command in (upscale, ui, serve, info, evaluate, train, calibrate):
    app.command()(_command)
app.add_typer(memory)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"patchscaler {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    logging.getLogger("pyvips").addHandler(logging.NullHandler())  # what it says arrives as our one line
    warnings.filterwarnings("ignore", module="PIL")  # of tags it cannot read


def main() -> None:
    """Entry point of the `patchscaler` command."""
    app()
